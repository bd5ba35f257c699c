// What the forward and the backward pass share: scratch memory, and where the operands of a query and head lie.
//
// T   type of query, key, value and output in memory: float, double or BFloat16
// A   float or double: the type of locations and sums
// D   channels per head where the compiler knows them, else 0
// W   lanes of a vector of A, and points of a group
// S   Simd<A>, with V, its vector of A
#pragma once

#include "channels.inl"

namespace deform_attn {
namespace {

// One head's operands lie too far apart for the processor to foresee.
template <class Element>
INLINE void prefetch(const Element* x, int64_t count) {
  for (int64_t i = 0; i < count; i += kAlign / sizeof(Element)) __builtin_prefetch(x + i);
}

template <class T, class A, int D>
struct Pass {
  using S = Simd<A>;
  using V = typename S::V;
  static constexpr int W = S::width;
  const Problem& p;
  Scratch scratch;
  Channels<A, D> channels{p.channels};
  PointLevels<A> levels{p, scratch};
  int width = channels.padded();
  int num_points = p.num_levels * p.points;

  // Of tensors [B, Q, M, ...].
  int64_t query_row(int64_t image, int64_t q, int64_t head) const { return (image * p.queries + q) * p.heads + head; }
  // Of tensors [B, N, M, ...].
  int64_t token_row(int64_t image, int64_t token, int64_t head) const {
    return (image * p.tokens + token) * p.heads + head;
  }
  const T* row_of(const void* tensor, int64_t row) const { return static_cast<const T*>(tensor) + row * p.channels; }
  T* row_of(void* tensor, int64_t row) const { return static_cast<T*>(tensor) + row * p.channels; }

  const A* locations(int64_t image, int64_t q, int64_t head) const {
    const int64_t* strides = p.location_strides;
    return static_cast<const A*>(p.locations) + image * strides[0] + q * strides[1] + head * strides[2];
  }

  INLINE void prefetch_operands(int64_t image, int64_t q, int64_t head) const {
    prefetch(locations(image, q, head), 2 * num_points);
    if (p.key_aware) prefetch(row_of(p.query, query_row(image, q, head)), p.channels);
  }

  // Points of the group that starts at point `first`.
  int group_count(int first) const { return first + W <= num_points ? W : num_points - first; }

  // Scores of a group, from the products of query and keys: those of the lanes after `count` are -infinity.
  INLINE V scores(V products, int count) const {
    V scores = products * A(score_scale(p.channels));
    for (int k = count; k < W; ++k) scores[k] = -INFINITY;
    return scores;
  }
};

// Dense rows of one head of one image, in the type of sums. The heads of a token lie side by side in memory, so that
// one head's rows fall into few sets of a cache and on many pages; densely they stay in the cache.
template <class T, class A, int D>
struct CopyHead {
  static void call(const Problem& p, const void* tensor, int64_t image, int64_t head, int64_t begin, int64_t end,
                   void* rows) {
    const Channels<A, D> channels{p.channels};
    const T* from = static_cast<const T*>(tensor) + (image * p.tokens * p.heads + head) * p.channels;
    const int64_t stride = int64_t(p.heads) * p.channels;
    for (int64_t n = begin; n < end; ++n)
      channels.unpack(static_cast<A*>(rows) + n * channels.padded(), from + n * stride);
  }
};

}  // namespace
}  // namespace deform_attn
