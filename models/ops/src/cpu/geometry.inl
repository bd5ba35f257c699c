// Where points sample: the tokens at their corners, the bilinear weights of these and their slopes.
//
// A   float or double: the type of locations, weights and sums
// W   lanes of a vector of A. The L * P points of a query and head go in groups of W, one per lane
// S   Simd<A>, with V, its vector of A, and I, its vector of integers Int
#pragma once

#include "scratch.inl"
#include "simd.h"

namespace deform_attn {
namespace {

// The level that each point samples, with the points padded to whole groups.
template <class A>
struct PointLevels {
  using S = Simd<A>;
  using Int = typename S::Int;
  A *width, *height;
  Int *row, *start;

  PointLevels(const Problem& p, Scratch& scratch) {
    const int64_t size = round_up(p.num_levels * p.points, S::width);
    width = scratch.take<A>(size);
    height = scratch.take<A>(size);
    row = scratch.take<Int>(size);
    start = scratch.take<Int>(size);
  }
  void fill(const Problem& p) {
    const int count = p.num_levels * p.points, size = round_up(count, S::width);
    for (int k = 0; k < size; ++k) {
      const Level level = k < count ? p.levels[k / p.points] : Level{0, 0, 0};
      width[k] = A(level.width);
      height[k] = A(level.height);
      row[k] = level.width;
      start[k] = level.start;
    }
  }
};

// Where a group of points of one query and head samples: four tokens and their bilinear weights. Where fewer than W
// points are left, the lanes after them have weight 0.
template <class A>
struct Group {
  static constexpr int W = Simd<A>::width;
  alignas(kAlign) typename Simd<A>::Int token[4][W];
  alignas(kAlign) A weight[4][W];
};

// Derivatives of the weights with respect to the points' locations.
template <class A>
struct Slopes {
  alignas(kAlign) A x[4][Simd<A>::width], y[4][Simd<A>::width];
};

// The group of `count` points that starts at point `first`, and where slopes is not null, these too.
template <class A>
INLINE void place(const PointLevels<A>& levels, const A* locations, int first, int count, Group<A>* group,
                  Slopes<A>* slopes) {
  using S = Simd<A>;
  using V = typename S::V;
  using I = typename S::I;
  constexpr int W = S::width;
  V location_x, location_y;
  if (count == W) {
    S::load_pairs(locations + 2 * first, location_x, location_y);
  } else {
    A padded[2 * W];
    for (int i = 0; i < 2 * W; ++i)
      padded[i] = i < 2 * count ? locations[2 * first + i] : std::numeric_limits<A>::quiet_NaN();
    S::load_pairs(padded, location_x, location_y);
  }
  const Axis<V> x = locate<V>(location_x, S::load(levels.width + first));
  const Axis<V> y = locate<V>(location_y, S::load(levels.height + first));
  const I row = S::load_int(levels.row + first), start = S::load_int(levels.start + first);
  const I left = __builtin_convertvector(x.low, I), right = __builtin_convertvector(x.high, I);
  const I top = __builtin_convertvector(y.low, I) * row + start;
  const I bottom = __builtin_convertvector(y.high, I) * row + start;
  const I tokens[4] = {top + left, top + right, bottom + left, bottom + right};
  const Corners<V> weights = bilinear(y, x);
  memcpy(group->token, tokens, sizeof tokens);
  memcpy(group->weight, weights.weight, sizeof weights);
  if (slopes) {
    const Corners<V> along_x = slope_x(y, x), along_y = slope_y(y, x);
    memcpy(slopes->x, along_x.weight, sizeof along_x);
    memcpy(slopes->y, along_y.weight, sizeof along_y);
  }
}

}  // namespace
}  // namespace deform_attn
