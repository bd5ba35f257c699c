// Where a sampling point lies: the tokens at its corners and their weights; and the lanes that work on one together.
//
// F             float or double: the type of locations and weights
// Token         of a token's index: unsigned in the fast kernels, where one wide multiplication makes an address of it;
//               int64_t for any size
// Team          Team<LANES, SLOTS>, see there
// X             any type
// WITH_WEIGHTS  whether points have given weights
#pragma once

#include "arguments.cuh"

namespace deform_attn {
namespace {

template <class F, class Token>
struct Point {
  Axis<F> x, y;
  Token token[4];  // in the order of Corners
};

template <class Token, class F>
__device__ __forceinline__ Point<F, Token> locate_point(const Level& level, F x, F y) {
  Point<F, Token> point;
  point.x = locate(x, F(level.width));
  point.y = locate(y, F(level.height));
  const Token row = Token(level.start) + Token(int(point.y.low)) * Token(level.width);
  const Token next_row = Token(level.start) + Token(int(point.y.high)) * Token(level.width);
  const Token low = Token(int(point.x.low)), high = Token(int(point.x.high));
  point.token[0] = row + low;
  point.token[1] = row + high;
  point.token[2] = next_row + low;
  point.token[3] = next_row + high;
  return point;
}

template <class F>
__device__ __forceinline__ F dot(const F (&a)[4], const F (&b)[4]) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
}

// The threads of a warp that share a (query, head): SLOTS slots of LANES lanes. A slot works on one point at a time,
// each of its lanes on some channels. One warp at D = 32 with 4 channels per lane, 16 bytes of float32:
//
//   thread            0   1    2 ..   7 |   8   9   10 ..  15 |  16  17   18 ..  23 |  24  25   26 ..  31
//   lane              0   1    2 ..   7 |   0   1    2 ..   7 |   0   1    2 ..   7 |   0   1    2 ..   7
//   channels        0-3 4-7 8-11 .. -31 | 0-3 4-7 8-11 .. -31 | 0-3 4-7 8-11 .. -31 | 0-3 4-7 8-11 .. -31
//
//   Team<8, 1>, for many queries: four teams, each with a query of its own
//   team, slot             0, 0         |         1, 0        |         2, 0        |         3, 0
//   gathers points    0, 1, 2, 3, ...   |   0, 1, 2, 3, ...   |   0, 1, 2, 3, ...   |   0, 1, 2, 3, ...
//
//   Team<8, 4>, for few queries: one team, its slots side by side on one query
//   team, slot             0, 0         |         0, 1        |         0, 2        |         0, 3
//   gathers points    0, 4, 8, 12, ...  |   1, 5, 9, 13, ...  |   2, 6, 10, 14, ... |   3, 7, 11, 15, ...
//
// Geometry is shared out among all members (lane + slot * LANES): member m locates the points m, m + SIZE, ..., and the
// slot that gathers one of them learns of it by shuffles.
template <int LANES_, int SLOTS_>
struct Team {
  static constexpr int LANES = LANES_, SLOTS = SLOTS_, SIZE = LANES * SLOTS;
  static constexpr int PER_WARP = kWarp / SIZE, PER_BLOCK = kThreads / SIZE;
  static_assert(SIZE <= kWarp);

  int lane, slot, member, in_warp;

  __device__ __forceinline__ Team()
      : lane(threadIdx.x % LANES),
        slot(threadIdx.x / LANES % SLOTS),
        member(threadIdx.x % SIZE),
        in_warp(threadIdx.x % kWarp / SIZE) {}

  template <class F>
  static __device__ __forceinline__ F sum_of_lanes(F x) {
    return sum_over_lanes<1, LANES>(x);
  }
  template <class F>
  static __device__ __forceinline__ F sum_of_slots(F x) {
    return sum_over_lanes<LANES, SIZE>(x);
  }
  template <class F>
  static __device__ __forceinline__ F max_of_slots(F x) {
    return max_over_lanes<LANES, SIZE>(x);
  }

  template <class X>
  static __device__ __forceinline__ X from_member(X x, int member) {
    return __shfl_sync(kAllLanes, x, member, SIZE);
  }

  // Each slot has an x for the point it works on in this step; the member that located that point takes it.
  __device__ __forceinline__ void give(int step, float x, float& mine) const {
    const float given = SLOTS == 1 ? x : from_member(x, member % SLOTS * LANES);
    if (member / SLOTS == step) mine = given;
  }
};

// What the lanes of a team learn of a point from the one that located it; the slopes later, to save registers.
template <class Team>
struct SharedPoint {
  unsigned token[4];
  Axis<float> x, y;

  __device__ __forceinline__ SharedPoint(const Point<float, unsigned>& mine, int owner) {
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) token[corner] = Team::from_member(mine.token[corner], owner);
    share_weights(x, mine.x, owner);
    share_weights(y, mine.y, owner);
  }

  __device__ __forceinline__ void learn_slopes(const Point<float, unsigned>& mine, int owner) {
    share_slopes(x, mine.x, owner);
    share_slopes(y, mine.y, owner);
  }

 private:
  static __device__ __forceinline__ void share_weights(Axis<float>& axis, const Axis<float>& mine, int owner) {
    axis.weight_low = Team::from_member(mine.weight_low, owner);
    axis.weight_high = Team::from_member(mine.weight_high, owner);
  }
  static __device__ __forceinline__ void share_slopes(Axis<float>& axis, const Axis<float>& mine, int owner) {
    axis.slope_low = Team::from_member(mine.slope_low, owner);
    axis.slope_high = Team::from_member(mine.slope_high, owner);
  }
};

// Pointers of the input types into tensors [B, count, M, width], for the batch and head of the block.
template <class X>
__device__ __forceinline__ X* of_head(void* tensor, const Arguments& a, int64_t count, int offset, int width) {
  const int64_t batch = a.first_batch + blockIdx.z;
  return static_cast<X*>(tensor) + (batch * count * a.heads + blockIdx.y) * width + offset;
}
template <class X>
__device__ __forceinline__ const X* of_head(const void* tensor, const Arguments& a, int64_t count, int offset,
                                            int width) {
  return of_head<X>(const_cast<void*>(tensor), a, count, offset, width);
}

// Reads SIZE points at a time, one per member; the next ones are on their way from memory while these are used.
template <class Team, bool WITH_WEIGHTS>
struct PointReader {
  const float *locations, *weights;
  int k;  // of the point that is read next
  float x, y, weight;

  __device__ __forceinline__ PointReader(const Arguments& a, const Team& team, unsigned query) : k(team.member) {
    const int64_t batch = a.first_batch + blockIdx.z;
    locations = address(
        static_cast<const float*>(a.locations) + batch * a.location_strides[0] + blockIdx.y * a.location_strides[2],
        query, unsigned(a.location_strides[1] * sizeof(float)));
    if constexpr (WITH_WEIGHTS) {
      weights = address(of_head<float>(a.attention_weights, a, a.queries, 0, a.all_points), query,
                        unsigned(a.heads * a.all_points * sizeof(float)));
    }
    read(a);
  }

  // Beyond the last point it repeats that: no other token is touched.
  __device__ __forceinline__ void read(const Arguments& a) {
    const int valid = ::min(k, a.all_points - 1);
    const float* const location = address(locations, valid, 2 * sizeof(float));
    x = __ldg(location);
    y = __ldg(location + 1);
    if constexpr (WITH_WEIGHTS) weight = k < a.all_points ? __ldg(weights + k) : 0;
  }

  __device__ __forceinline__ Point<float, unsigned> next(const Arguments& a, float& point_weight) {
    const unsigned level = __umulhi(2u * ::min(k, a.all_points - 1), a.points_inverse);
    const float point_x = x, point_y = y;
    if constexpr (WITH_WEIGHTS) point_weight = weight;
    k += Team::SIZE;
    read(a);
    return locate_point<unsigned>(a.levels[level], point_x, point_y);
  }
};

}  // namespace
}  // namespace deform_attn
