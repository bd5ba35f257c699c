// What the kernels need of CUDA. Without nvcc, `cuda_emulation.h` of the tests stands in for it.
//
// T            type in memory
// F            float or double
// FIRST, LAST  powers of two: the bits of a lane's number from FIRST up to, but without, LAST
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#else
#include "cuda_emulation.h"
#endif

#include <cstdint>

#include "../arithmetic.h"

namespace deform_attn {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// The item `index` of those that lie `stride` bytes apart. The form makes ptxas do it in one instruction.
template <class T>
__device__ __forceinline__ T* address(T* base, unsigned index, unsigned stride) {
  uint64_t offset = uint64_t(index) * stride;
#if defined(__CUDACC__)
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(offset) : "r"(index), "r"(stride));
#endif
  return const_cast<T*>(reinterpret_cast<const T*>(reinterpret_cast<const char*>(base) + offset));
}

// Keeps the compiler from computing x again at every use to save a register.
__device__ __forceinline__ void keep(float& x) {
#if defined(__CUDACC__)
  asm volatile("" : "+f"(x));
#endif
}

// Sum over the lanes whose numbers differ in the bits from FIRST to LAST; every one of them gets it.
template <int FIRST, int LAST, class F>
__device__ __forceinline__ F sum_over_lanes(F x) {
#pragma unroll
  for (int offset = FIRST; offset < LAST; offset *= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

template <int FIRST, int LAST, class F>
__device__ __forceinline__ F max_over_lanes(F x) {
#pragma unroll
  for (int offset = FIRST; offset < LAST; offset *= 2) {
    x = Number<F>::max(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

// Float vectors are added whole from Hopper on; before, neighbouring lanes had better add neighbouring numbers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900 || defined(SCALAR_ATOMICS)
constexpr int kAtomicWidth = 1;
__device__ __forceinline__ void atomic_add(float* address, const float (&x)[1]) { atomicAdd(address, x[0]); }
#else
constexpr int kAtomicWidth = 4;
__device__ __forceinline__ void atomic_add(float* address, const float (&x)[4]) {
  atomicAdd(reinterpret_cast<float4*>(address), make_float4(x[0], x[1], x[2], x[3]));
}
#endif

}  // namespace
}  // namespace deform_attn
