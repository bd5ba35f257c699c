// The forward pass. Softmax is computed online, in base 2.
//
// T        type of query, key, value and output: float, double, Half or BFloat16
// F        type of locations and sums: double for double, otherwise float
// Team     the lanes that share a (query, head): Team<LANES, SLOTS> of points.cuh
// WEIGHTS  how the weights of the points come about
// COUNT    channels of a vector
#include "any_channels.cuh"
#include "dispatch.cuh"

namespace deform_attn {
namespace {

// A finite stand-in for minus infinity, so that differences of two are no NaN.
constexpr float kLowest = -3e38f;

// Channels per lane: what one load of 16 bytes brings.
template <class T>
constexpr int kVector = 16 / sizeof(T);

// How many points of a slot enter the softmax together. With two gathers, more would not fit the registers; with slots
// side by side, more would often be beyond the last point.
template <class Team, Weights WEIGHTS>
constexpr int kGroupPoints =
    std::min({WEIGHTS == Weights::DistinctKey ? 2 : 4, Team::LANES, Team::SLOTS > 1 ? 16 / Team::SLOTS : 4});

template <class T, int COUNT>
__device__ __forceinline__ void add_samples(const T* tokens, unsigned stride, const unsigned (&token)[4],
                                            const float (&weight)[4], float (&sum)[COUNT]) {
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    float x[COUNT];
    load_vector(address(tokens, token[corner], stride), x);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) sum[i] += weight[corner] * x[i];
  }
}

template <class T, class Team, Weights WEIGHTS>
__global__ void __launch_bounds__(kThreads, kBlocks<WEIGHTS>) forward_kernel(const __grid_constant__ Arguments a) {
  constexpr int kItems = kVector<T>;
  constexpr int kGroup = kGroupPoints<Team, WEIGHTS>;
  const Team team;
  const Tile tile(a.order, blockIdx.x);
  const unsigned stride = unsigned(a.heads * a.channels * sizeof(T));
  const int channel = team.lane * kItems;
  const T* const values = of_head<T>(a.value, a, a.tokens, channel, a.channels);
  const T* const keys = of_head<T>(a.key, a, a.tokens, channel, a.channels);

  for (int first = threadIdx.x / kWarp * Team::PER_WARP; first < tile.count; first += Team::PER_BLOCK) {
    // All lanes of the warp take part in the shuffles: those without a query of their own repeat the last one.
    const int item = first + team.in_warp;
    const unsigned query = tile.query(::min(item, tile.count - 1));

    float scaled_query[kItems];
    if constexpr (WEIGHTS != Weights::Given) {
      load_vector(address(of_head<T>(a.query, a, a.queries, channel, a.channels), query, stride), scaled_query);
#pragma unroll
      for (int i = 0; i < kItems; ++i) keep(scaled_query[i] *= float(a.score_scale));
    }
    float sum[kItems] = {};
    OnlineSoftmax<float> softmax{kLowest, 0};

    PointReader<Team, WEIGHTS == Weights::Given> reader(a, team, query);
    for (int k = 0; k < a.all_points; k += Team::SIZE) {
      float given;
      const Point<float, unsigned> mine = reader.next(a, given);
      Corners<float> corners = bilinear(mine.y, mine.x);
      if constexpr (WEIGHTS == Weights::Given) {
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) corners.weight[corner] *= given;
      }
#pragma unroll 1
      for (int step = 0; step < Team::LANES; step += kGroup) {
        if (k + step * Team::SLOTS >= a.all_points) break;
        unsigned token[kGroup][4];
        float weight[kGroup][4], score[kGroup], sample[kGroup][kItems] = {};
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          const int owner = (step + i) * Team::SLOTS + team.slot;
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            token[i][corner] = Team::from_member(mine.token[corner], owner);
            weight[i][corner] = Team::from_member(corners.weight[corner], owner);
          }
          if constexpr (WEIGHTS == Weights::Given) {
            add_samples(values, stride, token[i], weight[i], sum);
          } else {
            add_samples(WEIGHTS == Weights::KeyIsValue ? values : keys, stride, token[i], weight[i], sample[i]);
            float product = 0;
#pragma unroll
            for (int j = 0; j < kItems; ++j) product += scaled_query[j] * sample[i][j];
            product = Team::sum_of_lanes(product);
            score[i] = k + owner < a.all_points ? product : kLowest;
          }
        }
        if constexpr (WEIGHTS != Weights::Given) {
          float group_max = score[0];
#pragma unroll
          for (int i = 1; i < kGroup; ++i) group_max = Number<float>::max(group_max, score[i]);
          const float factor = softmax.raise(group_max);
#pragma unroll
          for (int j = 0; j < kItems; ++j) sum[j] *= factor;
#pragma unroll
          for (int i = 0; i < kGroup; ++i) {
            const float unnormalised = Number<float>::exp2(score[i] - softmax.max);
            softmax.sum += unnormalised;
            if constexpr (WEIGHTS == Weights::KeyIsValue) {
#pragma unroll
              for (int j = 0; j < kItems; ++j) sum[j] += unnormalised * sample[i][j];
            } else {
#pragma unroll
              for (int corner = 0; corner < 4; ++corner) weight[i][corner] *= unnormalised;
              add_samples(values, stride, token[i], weight[i], sum);
            }
          }
        }
      }
    }

    float scale = 1;
    if constexpr (WEIGHTS != Weights::Given) {
      if constexpr (Team::SLOTS > 1) scale = softmax.raise(Team::max_of_slots(softmax.max));
      softmax.sum = Team::sum_of_slots(softmax.sum);
      scale /= softmax.sum;
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) sum[i] = Team::sum_of_slots(sum[i] * scale);
    if (item < tile.count && team.slot == 0) {
      store_vector(address(of_head<T>(a.output, a, a.queries, channel, a.channels), query, stride), sum);
      if (WEIGHTS != Weights::Given && team.lane == 0) {
        of_head<float>(a.log_sum_exp, a, a.queries, 0, 1)[int64_t(query) * a.heads] = softmax.log_sum_exp();
      }
    }
  }
}

template <class T, Weights WEIGHTS>
__global__ void __launch_bounds__(kThreads) forward_any_kernel(const __grid_constant__ Arguments a) {
  using F = Accumulated<T>;
  const Row<T> row(a);
  if (!row.valid) return;
  const int lane = threadIdx.x % kWarp;
  for (int begin = 0; begin < a.channels; begin += kChannels) {
    const int end = ::min(begin + kChannels, a.channels);
    F sum[kHeld] = {};
    OnlineSoftmax<F> softmax{F(kLowest), 0};
    for (int k = 0; k < a.all_points; ++k) {
      const auto point = row.point(a, k);
      const Corners<F> corners = bilinear(point.y, point.x);
      F weight, factor = 1;
      if constexpr (WEIGHTS == Weights::Given) {
        weight = row.weights[k];
      } else {
        F score = 0;
        for (int i = lane; i < a.channels; i += kWarp) {
          score += widen(row.query[i]) * sample(row.key, point.token, corners.weight, i);
        }
        score = sum_over_lanes<1, kWarp>(score) * F(a.score_scale);
        factor = softmax.raise(score);
        weight = Number<F>::exp2(score - softmax.max);
        softmax.sum += weight;
      }
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        const int i = begin + lane + j * kWarp;
        if (i < end) sum[j] = sum[j] * factor + weight * sample(row.value, point.token, corners.weight, i);
      }
    }
    const F scale = WEIGHTS == Weights::Given ? F(1) : 1 / softmax.sum;
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int i = begin + lane + j * kWarp;
      if (i < end) static_cast<T*>(a.output)[row.row * a.channels + i] = narrow<T>(sum[j] * scale);
    }
    if (WEIGHTS != Weights::Given && begin == 0 && lane == 0) {
      static_cast<F*>(a.log_sum_exp)[row.row] = softmax.log_sum_exp();
    }
  }
}

struct ForwardKernels {
  template <class T>
  static constexpr int kLaneChannels = kVector<T>;
  template <class T, class Team, Weights WEIGHTS>
  static Kernel fast() {
    return forward_kernel<T, Team, WEIGHTS>;
  }
  template <class T, Weights WEIGHTS>
  static Kernel any() {
    return forward_any_kernel<T, WEIGHTS>;
  }
};

}  // namespace

const char* forward_cuda(const Problem& problem, CUstream_st* stream) {
  return launch_problem<ForwardKernels>(problem, {}, stream);
}

}  // namespace deform_attn
