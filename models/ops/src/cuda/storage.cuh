// Numbers as they lie in memory, and their conversion to the type that sums are accumulated in.
//
// T      type in memory: float, double, Half or BFloat16
// COUNT  channels that lie together, aligned to their size in bytes
#pragma once

#include <cstdint>
#include <type_traits>

#include "device.cuh"

namespace deform_attn {
namespace {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float widen(Half x) {
#if defined(__CUDACC__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  return emulation::half_to_float(x.bits);
#endif
}

// To the nearest, ties to even.
template <class T>
__device__ __forceinline__ T narrow(double x) {
  return T(x);
}
template <class T>
__device__ __forceinline__ T narrow(float x) {
  return T(x);
}
template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  BFloat16 narrow;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
  return narrow;
#else
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}
template <>
__device__ __forceinline__ Half narrow<Half>(float x) {
#if defined(__CUDACC__)
  Half narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
  return narrow;
#else
  return {emulation::float_to_half(x)};
#endif
}

template <class T>
using Accumulated = decltype(widen(T{}));

template <int COUNT>
__device__ __forceinline__ void unpack(const uint32_t* words, float* x, const float*) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) x[i] = __uint_as_float(words[i]);
}
template <int COUNT>
__device__ __forceinline__ void unpack(const uint32_t* words, float* x, const BFloat16*) {
#pragma unroll
  for (int i = 0; i < COUNT / 2; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
template <int COUNT>
__device__ __forceinline__ void unpack(const uint32_t* words, float* x, const Half*) {
#pragma unroll
  for (int i = 0; i < COUNT / 2; ++i) {
    x[2 * i] = widen(Half{uint16_t(words[i])});
    x[2 * i + 1] = widen(Half{uint16_t(words[i] >> 16)});
  }
}

// One vector of 8 or 16 bytes, through the read-only path.
template <class T, int COUNT>
__device__ __forceinline__ void load_vector(const T* address, float (&x)[COUNT]) {
  static_assert(COUNT * sizeof(T) == 8 || COUNT * sizeof(T) == 16);
  if constexpr (COUNT * sizeof(T) == 16) {
    const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(address));
    const uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
    unpack<COUNT>(words, x, address);
  } else {
    const uint2 loaded = __ldg(reinterpret_cast<const uint2*>(address));
    const uint32_t words[2] = {loaded.x, loaded.y};
    unpack<COUNT>(words, x, address);
  }
}

template <class T, int COUNT>
__device__ __forceinline__ void store_vector(T* address, const float (&x)[COUNT]) {
  struct alignas(COUNT * sizeof(T)) {
    T item[COUNT];
  } packed;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) packed.item[i] = narrow<T>(x[i]);
  using Vector = std::conditional_t<sizeof(packed) == 16, uint4, uint2>;
  *reinterpret_cast<Vector*>(address) = reinterpret_cast<const Vector&>(packed);
}

}  // namespace
}  // namespace deform_attn
