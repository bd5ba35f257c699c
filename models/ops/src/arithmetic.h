// The arithmetic of deformable attention, written once for every processor.
//
// F is a number: float or double, on the CPU also a vector of them with one sampling point per lane. Everything lies in
// an unnamed namespace: the CPU files that include it are compiled for different instruction sets, and the linker must
// not merge their copies.
#pragma once

#include <math.h>

#if defined(__CUDACC__)
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace deform_attn {
namespace {

#if defined(__CUDA_ARCH__)
// Without the detours for numbers below 2^-126: they count as 0.
__device__ __forceinline__ float fast_exp2(float x) {
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
__device__ __forceinline__ float fast_log2(float x) {
  asm("lg2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
#endif

// What F must provide besides + - * and comparisons; vectors specialise it.
template <class F>
struct Number {
  static HOST_DEVICE F constant(double x) { return F(x); }
  static HOST_DEVICE F floor(F x) { return sizeof(F) == 4 ? F(::floorf(x)) : F(::floor(x)); }
  static HOST_DEVICE F max(F a, F b) { return a > b ? a : b; }
  static HOST_DEVICE F min(F a, F b) { return a < b ? a : b; }
#if defined(__CUDA_ARCH__)
  static HOST_DEVICE F exp2(F x) { return sizeof(F) == 4 ? F(fast_exp2(float(x))) : F(::exp2(x)); }
  static HOST_DEVICE F log2(F x) { return sizeof(F) == 4 ? F(fast_log2(float(x))) : F(::log2(x)); }
#else
  static HOST_DEVICE F exp2(F x) { return sizeof(F) == 4 ? F(::exp2f(x)) : F(::exp2(x)); }
  static HOST_DEVICE F log2(F x) { return sizeof(F) == 4 ? F(::log2f(x)) : F(::log2(x)); }
#endif
};

// A bilinear sample along one axis of a map.
template <class F>
struct Axis {
  F low, high;                // its two neighbours, clamped into the map, as whole numbers
  F weight_low, weight_high;  // their weights, 0 for a neighbour outside the map
  F slope_low, slope_high;    // derivatives of the weights with respect to the location, which spans [0, 1]
};

// `location` on an axis of `size` pixels; pixel i has its centre at (i + 0.5) / size (align_corners=False). Locations
// that are far outside, infinite or NaN have weights 0.
template <class F>
HOST_DEVICE Axis<F> locate(F location, F size) {
  using N = Number<F>;
  const F zero = N::constant(0), one = N::constant(1);
  F x = location * size - N::constant(0.5);
  const auto inside = (x > -one) & (x < size);  // before any conversion to an integer
  x = inside ? x : zero;
  const F low = N::floor(x), high = low + one, fraction = x - low, last = size - one;
  const auto has_low = inside & (low >= zero), has_high = inside & (high <= last);
  Axis<F> axis;
  axis.low = N::max(low, zero);
  axis.high = N::max(N::min(high, last), zero);
  axis.weight_low = has_low ? one - fraction : zero;
  axis.weight_high = has_high ? fraction : zero;
  axis.slope_low = has_low ? -size : zero;
  axis.slope_high = has_high ? size : zero;
  return axis;
}

// The weights of the corners (y low, x low), (y low, x high), (y high, x low), (y high, x high).
template <class F>
struct Corners {
  F weight[4];
};

template <class F>
HOST_DEVICE Corners<F> bilinear(const Axis<F>& y, const Axis<F>& x) {
  return {{y.weight_low * x.weight_low, y.weight_low * x.weight_high, y.weight_high * x.weight_low,
           y.weight_high * x.weight_high}};
}

// Derivatives of the corners' weights with respect to the x and the y of the location.
template <class F>
HOST_DEVICE Corners<F> slope_x(const Axis<F>& y, const Axis<F>& x) {
  return {{y.weight_low * x.slope_low, y.weight_low * x.slope_high, y.weight_high * x.slope_low,
           y.weight_high * x.slope_high}};
}

template <class F>
HOST_DEVICE Corners<F> slope_y(const Axis<F>& y, const Axis<F>& x) {
  return {{y.slope_low * x.weight_low, y.slope_low * x.weight_high, y.slope_high * x.weight_low,
           y.slope_high * x.weight_high}};
}

// Softmax in base 2 over scores that arrive in groups. A score is (query . key) * score_scale(D).
constexpr double kLog2E = 1.4426950408889634;

inline double logit_scale(int channels) { return 1 / ::sqrt(double(channels)); }
inline double score_scale(int channels) { return kLog2E * logit_scale(channels); }

template <class F>
struct OnlineSoftmax {
  F max, sum;

  // Takes the maximum of a further group; returns the factor for everything summed so far.
  HOST_DEVICE F raise(F group_max) {
    const F higher = Number<F>::max(group_max, max), factor = Number<F>::exp2(max - higher);
    max = higher;
    sum *= factor;
    return factor;
  }

  HOST_DEVICE F log_sum_exp() const { return max + Number<F>::log2(sum); }  // in base 2, as the scores
};

// Gradient with respect to a logit, from its probability, the gradient with respect to that, and
// delta = sum over points of probability times its gradient = grad_output . output.
template <class F>
HOST_DEVICE F logit_gradient(F probability, F grad_probability, F delta) {
  return probability * (grad_probability - delta);
}

}  // namespace
}  // namespace deform_attn
