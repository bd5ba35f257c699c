// The channels of a group's samples: gathered from the rows of one head, weighted, and their gradients scattered back.
//
// A   float or double: the type of samples and sums
// D   channels per head where the compiler knows them, else 0
// T   type in memory: A or BFloat16
// W   lanes of a vector of A: points of a group, and channels of one step
// S   Simd<A>, with V, its vector of A
#pragma once

#include "geometry.inl"

namespace deform_attn {
namespace {

// The rows of one head, one per token, `stride` elements apart: dense copies, or as they lie in the tensor. kStride is
// the stride where the compiler knows it, else 0.
template <class T, int kStride = 0>
struct Rows {
  const T* first;
  int64_t any_stride;

  int64_t stride() const { return kStride ? kStride : any_stride; }
};

// Rows, and dense sums of their gradients.
template <class A>
struct GradRows {
  Rows<A> rows;
  A* grads;
};

// The channels of one head, W at a time. Rows of samples, sums and copies have `padded` channels, the last ones 0.
template <class A, int D>
struct Channels {
  using S = Simd<A>;
  using V = typename S::V;
  static constexpr int W = S::width;
  const int runtime_channels;

  int channels() const { return D ? D : runtime_channels; }
  int padded() const { return D ? D : int(round_up(runtime_channels, W)); }

  template <class T>
  V load(const T* row, int c) const {
    if (D || c + W <= channels()) return S::load(row + c);
    return S::load_some(row + c, channels() - c);
  }
  template <class T>
  void store(T* row, int c, V v) const {
    if (D || c + W <= channels())
      S::store(row + c, v);
    else
      S::store_some(row + c, v, channels() - c);
  }
  template <class T>
  void unpack(A* to, const T* from) const {
    for (int c = 0; c < padded(); c += W) S::store(to + c, load(from, c));
  }
  template <class T>
  void pack(T* to, const A* from) const {
    for (int c = 0; c < channels(); c += W) store(to, c, S::load(from + c));
  }
  // pack for rows that are not read again soon: whole cache lines go past the caches, which need not fetch them first.
  // Other threads see them after S::finish_streams().
  template <class T>
  void pack_away(T* to, const A* from) const {
    if constexpr (std::is_same<T, A>::value && D * sizeof(A) % kAlign == 0 && D) {
      if (reinterpret_cast<uintptr_t>(to) % kAlign == 0) {
        for (int c = 0; c < D; c += W) S::stream(to + c, S::load(from + c));
        return;
      }
    }
    pack(to, from);
  }

  // samples[k] = the bilinear sample at point k.
  template <class AnyRows>
  void gather(const Group<A>& group, AnyRows rows, A* samples) const {
    for (int k = 0; k < W; ++k) sample(group, k, rows, samples, [](int, V) {});
  }

  // The same; lane k of the result is x . samples[k].
  template <class AnyRows>
  INLINE V gather(const Group<A>& group, AnyRows rows, A* samples, const A* x) const {
    return S::row_sums([&](int k) INLINE_LAMBDA {
      V product{};
      sample(group, k, rows, samples, [&](int c, V part) INLINE_LAMBDA { product += S::load(x + c) * part; });
      return product;
    });
  }

  // samples[k]; each part of it goes to use(channel, part).
  template <class T, int kStride, class Use>
  INLINE void sample(const Group<A>& group, int k, Rows<T, kStride> rows, A* __restrict__ samples, Use use) const {
    const int64_t stride = rows.stride();
    const T *r0 = rows.first + group.token[0][k] * stride, *r1 = rows.first + group.token[1][k] * stride;
    const T *r2 = rows.first + group.token[2][k] * stride, *r3 = rows.first + group.token[3][k] * stride;
    const A w0 = group.weight[0][k], w1 = group.weight[1][k], w2 = group.weight[2][k], w3 = group.weight[3][k];
    for (int c = 0; c < padded(); c += W) {
      V part = w0 * load(r0, c);
      part += w1 * load(r1, c);
      part += w2 * load(r2, c);
      part += w3 * load(r3, c);
      S::store(samples + int64_t(k) * padded() + c, part);
      use(c, part);
    }
  }

  // Lane k = x . samples[k].
  INLINE V dots(const A* samples, const A* x) const {
    return S::row_sums([&](int k) INLINE_LAMBDA {
      V product{};
      for (int c = 0; c < padded(); c += W) product += S::load(x + c) * S::load(samples + int64_t(k) * padded() + c);
      return product;
    });
  }

  A dot(const A* x, const A* y) const {
    V sum{};
    for (int c = 0; c < padded(); c += W) sum += S::load(x + c) * S::load(y + c);
    return S::sum_of(sum)[0];
  }

  // sum = sum * factor + weight . samples; without factor, sum = weight . samples
  INLINE void accumulate(A* sum, const V* factor, V weight, const A* samples, int count) const {
    alignas(kAlign) A weights[W];
    S::store(weights, weight);
    const auto accumulate_first = [&](int n) INLINE_LAMBDA {
      for (int c = 0; c < padded(); c += W) {
        V even = factor ? S::load(sum + c) * *factor : V{}, odd{};
        int k = 0;
        for (; k + 1 < n; k += 2) {
          even += weights[k] * S::load(samples + int64_t(k) * padded() + c);
          odd += weights[k + 1] * S::load(samples + int64_t(k + 1) * padded() + c);
        }
        if (k < n) even += weights[k] * S::load(samples + int64_t(k) * padded() + c);
        S::store(sum + c, even + odd);
      }
    };
    count == W ? accumulate_first(W) : accumulate_first(count);  // the compiler unrolls what it knows
  }

  // The gradient a[k] * x + b[k] * y of samples[k] goes to the rows that it was sampled from, and to the location of
  // the point: returns its x in lane k of grad_x, and so y. Without y, the gradient is a[k] * x.
  void scatter(const Group<A>& group, int count, const Slopes<A>& slopes, GradRows<A> to, const A* a, const A* x,
               const A* b, const A* y, V& grad_x, V& grad_y) const {
    V partial_x[W] = {}, partial_y[W] = {};
    for (int k = 0; k < count; ++k) {
      V gradients[4] = {};  // of the corners' weights, lane by lane
      for (int c = 0; c < padded(); c += W) {
        V gradient = a[k] * S::load(x + c);
        if (y) gradient += b[k] * S::load(y + c);
        for (int i = 0; i < 4; ++i) {  // corners at a border may be the same row: one after the other
          gradients[i] += gradient * S::load(to.rows.first + group.token[i][k] * to.rows.stride() + c);
          A* grad = to.grads + int64_t(group.token[i][k]) * padded() + c;
          S::store(grad, S::load(grad) + group.weight[i][k] * gradient);
        }
      }
      for (int i = 0; i < 4; ++i) {
        partial_x[k] += slopes.x[i][k] * gradients[i];
        partial_y[k] += slopes.y[i][k] * gradients[i];
      }
    }
    grad_x = S::row_sums([&](int k) INLINE_LAMBDA { return partial_x[k]; });
    grad_y = S::row_sums([&](int k) INLINE_LAMBDA { return partial_y[k]; });
  }
};

}  // namespace
}  // namespace deform_attn
