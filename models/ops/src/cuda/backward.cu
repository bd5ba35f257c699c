// The backward pass. It goes over the points once: probabilities come from the saved log-sum-exp.
//
// T        type of query, key, value and output: float, double, Half or BFloat16
// F        type of locations and sums: double for double, otherwise float
// Team     the lanes that share a (query, head): Team<LANES, SLOTS> of points.cuh
// WEIGHTS  how the weights of the points come about
#include "any_channels.cuh"
#include "dispatch.cuh"

namespace deform_attn {
namespace {

// The gradients at one sampling point. A score is a logit times log2(e).
template <class F>
struct PointGradient {
  F probability, logit, score;

  __device__ __forceinline__ PointGradient(F probability, F grad_probability, F delta)
      : probability(probability),
        logit(logit_gradient(probability, grad_probability, delta)),
        score(logit * F(1 / kLog2E)) {}
};

// Channels per lane: as many as one vector atomic adds. In half precision wider loads would be possible, but then the
// lanes of a team would add to each token in two steps of half a cache line, and the atomics set the pace.
constexpr int kItems = 4;

// Channels in the order in which the lanes of a team add them up in memory: at every step, neighbouring lanes work on
// neighbouring runs of kAtomicWidth channels, so that they fill whole sectors.
template <class T, class Team>
__device__ __forceinline__ void load_for_atomics(const T* head, const Team& team, float (&x)[kItems]) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int run = i / kAtomicWidth * Team::LANES + team.lane;
    x[i] = widen(head[run * kAtomicWidth + i % kAtomicWidth]);
  }
}

template <class Team>
__device__ __forceinline__ void scatter(float* first_run, unsigned stride, const unsigned (&token)[4],
                                        const float (&weight)[4], const float (&x)[kItems]) {
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (weight[corner] == 0) continue;
    float* const run = address(first_run, token[corner], stride);
#pragma unroll
    for (int i = 0; i < kItems; i += kAtomicWidth) {
      float weighted[kAtomicWidth];
#pragma unroll
      for (int j = 0; j < kAtomicWidth; ++j) weighted[j] = weight[corner] * x[i + j];
      atomic_add(run + i * Team::LANES, weighted);
    }
  }
}

template <class T, class Team, Weights WEIGHTS>
__global__ void __launch_bounds__(kThreads, kBlocks<WEIGHTS>) backward_kernel(const __grid_constant__ Arguments a) {
  constexpr bool kKeyAware = WEIGHTS != Weights::Given;
  const Team team;
  const Tile tile(a.order, blockIdx.x);
  const unsigned stride = unsigned(a.heads * a.channels * sizeof(T));
  const unsigned grad_stride = unsigned(a.heads * a.channels * sizeof(float));
  const int channel = team.lane * kItems;
  const T* const values = of_head<T>(a.value, a, a.tokens, channel, a.channels);
  const T* const keys = of_head<T>(a.key, a, a.tokens, channel, a.channels);
  const int first_run = team.lane * kAtomicWidth;
  float* const grad_values = of_head<float>(a.gradients.grad_value, a, a.tokens, first_run, a.channels);
  float* const grad_keys = of_head<float>(a.gradients.grad_key, a, a.tokens, first_run, a.channels);

  for (int first = threadIdx.x / kWarp * Team::PER_WARP; first < tile.count; first += Team::PER_BLOCK) {
    // All lanes of the warp take part in the shuffles: those without a query of their own repeat the last one.
    const int item = first + team.in_warp;
    const bool active = item < tile.count;
    const unsigned query_index = tile.query(::min(item, tile.count - 1));
    const auto of_query = [&](const void* tensor, int offset) {
      return address(of_head<T>(tensor, a, a.queries, offset, a.channels), query_index, stride);
    };

    // The channels that a lane adds up in memory are those that it gathers only where atomics take all of them.
    constexpr bool kOwn = kAtomicWidth == kItems;
    float grad_output[kItems], other_grad_output[kItems];
    const float (&atomic_grad_output)[kItems] = kOwn ? grad_output : other_grad_output;
    load_vector(of_query(a.gradients.grad_output, channel), grad_output);
    if constexpr (!kOwn) load_for_atomics(of_query(a.gradients.grad_output, 0), team, other_grad_output);

    float query[kItems], other_query[kItems], grad_query[kItems] = {}, delta = 0, log_sum_exp = 0;
    const float (&atomic_query)[kItems] = kOwn ? query : other_query;
    if constexpr (kKeyAware) {
      float output[kItems];
      load_vector(of_query(a.query, channel), query);
      if constexpr (!kOwn) load_for_atomics(of_query(a.query, 0), team, other_query);
      load_vector(of_query(a.output, channel), output);
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        delta += grad_output[i] * output[i];
        keep(query[i] *= float(a.score_scale));
        if constexpr (!kOwn) keep(other_query[i] *= float(a.score_scale));
      }
      delta = Team::sum_of_lanes(delta);
      log_sum_exp = of_head<float>(a.log_sum_exp, a, a.queries, 0, 1)[int64_t(query_index) * a.heads];
    }

    const auto of_points = [&](void* tensor, int width) {
      return of_head<float>(tensor, a, a.queries, 0, a.all_points * width) +
             int64_t(query_index) * a.heads * a.all_points * width;
    };
    PointReader<Team, WEIGHTS == Weights::Given> reader(a, team, query_index);
    for (int k = 0; k < a.all_points; k += Team::SIZE) {
      float my_weight;
      const Point<float, unsigned> mine = reader.next(a, my_weight);
      float my_grad_x = 0, my_grad_y = 0, my_grad_weight = 0;
#pragma unroll 1
      for (int step = 0; step < Team::LANES; ++step) {
        if (k + step * Team::SLOTS >= a.all_points) break;
        const int owner = step * Team::SLOTS + team.slot;
        const bool valid = k + owner < a.all_points;
        SharedPoint<Team> point(mine, owner);
        const Corners<float> corners = bilinear(point.y, point.x);

        // Products with the corners' tokens: of the query with the keys, of the output's gradient with the values.
        float of_query_key[4] = {}, of_grad_value[4] = {}, key_sample[kItems] = {};
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          float value[kItems], distinct_key[kItems];
          load_vector(address(values, point.token[corner], stride), value);
          if constexpr (WEIGHTS == Weights::DistinctKey) {
            load_vector(address(keys, point.token[corner], stride), distinct_key);
          }
          const float* const key = WEIGHTS == Weights::DistinctKey ? distinct_key : value;
#pragma unroll
          for (int i = 0; i < kItems; ++i) {
            of_grad_value[corner] += grad_output[i] * value[i];
            if constexpr (kKeyAware) {
              of_query_key[corner] += query[i] * key[i];
              key_sample[i] += corners.weight[corner] * key[i];
            }
          }
        }
        const float grad_probability = Team::sum_of_lanes(dot(corners.weight, of_grad_value));
        float probability;
        if constexpr (kKeyAware) {
          probability = Number<float>::exp2(Team::sum_of_lanes(dot(corners.weight, of_query_key)) - log_sum_exp);
        } else {
          probability = Team::from_member(my_weight, owner);
        }
        const PointGradient<float> gradient(valid ? probability : 0, grad_probability, delta);

        float grad_corner[4];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          grad_corner[corner] = gradient.probability * of_grad_value[corner];
          if constexpr (kKeyAware) grad_corner[corner] += gradient.score * of_query_key[corner];
        }
        point.learn_slopes(mine, owner);
        const float grad_x = Team::sum_of_lanes(dot(slope_x(point.y, point.x).weight, grad_corner));
        const float grad_y = Team::sum_of_lanes(dot(slope_y(point.y, point.x).weight, grad_corner));
        team.give(step, grad_x, my_grad_x);
        team.give(step, grad_y, my_grad_y);
        if constexpr (!kKeyAware) team.give(step, grad_probability, my_grad_weight);

        if constexpr (kKeyAware) {
#pragma unroll
          for (int i = 0; i < kItems; ++i) grad_query[i] += gradient.logit * key_sample[i];
        }
        if (!(active && valid)) continue;
        float grad_value[kItems], grad_key[kItems];
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
          grad_value[i] = gradient.probability * atomic_grad_output[i];
          if constexpr (kKeyAware) grad_key[i] = gradient.score * atomic_query[i];
          if constexpr (WEIGHTS == Weights::KeyIsValue) grad_value[i] += grad_key[i];
        }
        if (a.gradients.grad_value) {
          scatter<Team>(grad_values, grad_stride, point.token, corners.weight, grad_value);
        }
        if (WEIGHTS == Weights::DistinctKey && a.gradients.grad_key) {
          scatter<Team>(grad_keys, grad_stride, point.token, corners.weight, grad_key);
        }
      }
      const int my_k = k + team.member;
      if (active && my_k < a.all_points) {
        if (a.gradients.grad_locations) {
          *reinterpret_cast<float2*>(of_points(a.gradients.grad_locations, 2) + 2 * my_k) =
              make_float2(my_grad_x, my_grad_y);
        }
        if (!kKeyAware && a.gradients.grad_attention_weights) {
          of_points(a.gradients.grad_attention_weights, 1)[my_k] = my_grad_weight;
        }
      }
    }

    if constexpr (kKeyAware) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) grad_query[i] = Team::sum_of_slots(grad_query[i] * float(a.logit_scale));
      if (active && team.slot == 0 && a.gradients.grad_query) {
        store_vector(const_cast<T*>(of_query(a.gradients.grad_query, channel)), grad_query);
      }
    }
  }
}

template <class T, Weights WEIGHTS>
__global__ void __launch_bounds__(kThreads) backward_any_kernel(const __grid_constant__ Arguments a) {
  using F = Accumulated<T>;
  constexpr bool kKeyAware = WEIGHTS != Weights::Given;
  const Row<T> row(a);
  if (!row.valid) return;
  const int lane = threadIdx.x % kWarp;
  const Gradients& gradients = a.gradients;
  const T* const grad_output = static_cast<const T*>(gradients.grad_output) + row.row * a.channels;
  const int64_t head = row.value - static_cast<const T*>(a.value);
  F* const grad_value = static_cast<F*>(gradients.grad_value) + head;
  F* const grad_key = static_cast<F*>(gradients.grad_key) + head;

  F delta = 0, log_sum_exp = 0;
  if constexpr (kKeyAware) {
    for (int i = lane; i < a.channels; i += kWarp) {
      delta += widen(grad_output[i]) * widen(static_cast<const T*>(a.output)[row.row * a.channels + i]);
    }
    delta = sum_over_lanes<1, kWarp>(delta);
    log_sum_exp = static_cast<const F*>(a.log_sum_exp)[row.row];
  }

  for (int begin = 0; begin < a.channels; begin += kChannels) {
    const int end = ::min(begin + kChannels, a.channels);
    F grad_query[kHeld] = {};
    for (int k = 0; k < a.all_points; ++k) {
      const auto point = row.point(a, k);
      const Corners<F> corners = bilinear(point.y, point.x);
      F of_query_key[4] = {}, of_grad_value[4] = {};
      for (int i = lane; i < a.channels; i += kWarp) {
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          of_grad_value[corner] += widen(grad_output[i]) * widen(row.value[point.token[corner] + i]);
          if constexpr (kKeyAware) {
            of_query_key[corner] += F(a.score_scale) * widen(row.query[i]) * widen(row.key[point.token[corner] + i]);
          }
        }
      }
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        of_grad_value[corner] = sum_over_lanes<1, kWarp>(of_grad_value[corner]);
        if constexpr (kKeyAware) of_query_key[corner] = sum_over_lanes<1, kWarp>(of_query_key[corner]);
      }
      const F grad_probability = dot(corners.weight, of_grad_value);
      F probability;
      if constexpr (kKeyAware) {
        probability = Number<F>::exp2(dot(corners.weight, of_query_key) - log_sum_exp);
      } else {
        probability = row.weights[k];
      }
      const PointGradient<F> gradient(probability, grad_probability, delta);

      if (begin == 0 && lane == 0) {
        F grad_corner[4];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          grad_corner[corner] = gradient.probability * of_grad_value[corner];
          if constexpr (kKeyAware) grad_corner[corner] += gradient.score * of_query_key[corner];
        }
        if (gradients.grad_locations) {
          F* const grad_location = static_cast<F*>(gradients.grad_locations) + 2 * (row.row * a.all_points + k);
          grad_location[0] = dot(slope_x(point.y, point.x).weight, grad_corner);
          grad_location[1] = dot(slope_y(point.y, point.x).weight, grad_corner);
        }
        if (!kKeyAware && gradients.grad_attention_weights) {
          static_cast<F*>(gradients.grad_attention_weights)[row.row * a.all_points + k] = grad_probability;
        }
      }

      for (int j = 0; j < kHeld; ++j) {
        const int i = begin + lane + j * kWarp;
        if (i >= end) break;
        F for_value = gradient.probability * widen(grad_output[i]), for_key = 0;
        if constexpr (kKeyAware) {
          for_key = gradient.score * F(a.score_scale) * widen(row.query[i]);
          grad_query[j] += gradient.logit * sample(row.key, point.token, corners.weight, i);
        }
        if constexpr (WEIGHTS == Weights::KeyIsValue) for_value += for_key;
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const F weight = corners.weight[corner];
          if (weight == 0) continue;
          if (gradients.grad_value) atomicAdd(grad_value + point.token[corner] + i, weight * for_value);
          if (WEIGHTS == Weights::DistinctKey && gradients.grad_key) {
            atomicAdd(grad_key + point.token[corner] + i, weight * for_key);
          }
        }
      }
    }
    if (kKeyAware && gradients.grad_query) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        const int i = begin + lane + j * kWarp;
        if (i < end) {
          static_cast<T*>(gradients.grad_query)[row.row * a.channels + i] = narrow<T>(grad_query[j] * F(a.logit_scale));
        }
      }
    }
  }
}

struct BackwardKernels {
  template <class T>
  static constexpr int kLaneChannels = kItems;
  template <class T, class Team, Weights WEIGHTS>
  static Kernel fast() {
    return backward_kernel<T, Team, WEIGHTS>;
  }
  template <class T, Weights WEIGHTS>
  static Kernel any() {
    return backward_any_kernel<T, WEIGHTS>;
  }
};

}  // namespace

const char* backward_cuda(const Problem& problem, const Gradients& gradients, CUstream_st* stream) {
  return launch_problem<BackwardKernels>(problem, gradients, stream);
}

}  // namespace deform_attn
