// Runs CUDA kernels on a CPU, compiled by any C++ compiler: slow, for tests.
//
// The lanes of a warp are fibers. Each runs until it takes part in a shuffle; when all lanes have arrived, values
// change hands and they go on. A shuffle that some lane of its mask does not reach, or reaches differently, fails the
// launch. Blocks and warps run one after another; there is no shared memory and no __syncthreads.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define LAUNCH(kernel, grid, block, stream, ...) \
  ((void)(stream), emulation::launch(grid, block, [&] { kernel(__VA_ARGS__); }))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline thread_local dim3 blockIdx, threadIdx;

namespace emulation {

constexpr int kLanes = 32, kStackBytes = 1 << 17;

struct Exchange {
  unsigned mask;
  int kind, width, bytes;
  bool operator==(const Exchange& other) const {
    return mask == other.mask && kind == other.kind && width == other.width && bytes == other.bytes;
  }
};

struct Lane {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  ucontext_t context;
  jmp_buf saved;
  bool started, finished;
  Exchange exchange;
  uint64_t offered, published;
};

struct Warp {
  Lane lanes[kLanes];
  int running;
  unsigned first_thread;
  jmp_buf scheduler;
  const std::function<void()>* body;
  std::string error;
};

inline Warp& warp() {
  static thread_local Warp instance;
  return instance;
}

inline void fail(const std::string& text) {
  if (warp().error.empty()) warp().error = text;
}

inline void run_lane() {
  (*warp().body)();
  warp().lanes[warp().running].finished = true;
  _longjmp(warp().scheduler, 1);
}

// Runs a lane up to its next shuffle or its end.
inline void resume(int index) {
  Warp& w = warp();
  Lane& lane = w.lanes[index];
  w.running = index;
  threadIdx = dim3(w.first_thread + index);
  if (_setjmp(w.scheduler)) return;
  if (lane.started) _longjmp(lane.saved, 1);
  lane.started = true;
  setcontext(&lane.context);
}

inline uint64_t exchange(const Exchange& what, uint64_t offered, int source) {
  Warp& w = warp();
  const int self = w.running;
  Lane& lane = w.lanes[self];
  lane.exchange = what;
  lane.offered = offered;
  if (!_setjmp(lane.saved)) _longjmp(w.scheduler, 1);
  return w.lanes[source].published;
}

inline void run_warp(unsigned first_thread, int threads, const std::function<void()>& body) {
  Warp& w = warp();
  w.body = &body;
  w.first_thread = first_thread;
  for (int i = 0; i < threads; ++i) {
    Lane& lane = w.lanes[i];
    lane.started = lane.finished = false;
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.get();
    lane.context.uc_stack.ss_size = kStackBytes;
    lane.context.uc_link = nullptr;
    makecontext(&lane.context, run_lane, 0);
  }
  while (w.error.empty()) {
    const Lane* waiting = nullptr;
    unsigned arrived = 0;
    for (int i = 0; i < threads; ++i) {
      if (w.lanes[i].finished) continue;
      resume(i);
      if (w.lanes[i].finished) continue;
      waiting = &w.lanes[i];
      arrived |= 1u << i;
    }
    if (!waiting) return;
    if (arrived != waiting->exchange.mask) return fail("a lane of the mask did not reach the shuffle");
    for (int i = 0; i < threads; ++i) {
      if (arrived >> i & 1 && !(w.lanes[i].exchange == waiting->exchange)) return fail("lanes diverged at a shuffle");
      w.lanes[i].published = w.lanes[i].offered;
    }
  }
}

inline void launch(dim3 grid, dim3 block, const std::function<void()>& body) {
  warp().error.clear();
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 0xffff || grid.z > 0xffff) {
    fail("invalid grid");
  }
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        for (unsigned first = 0; first < block.x && warp().error.empty(); first += kLanes) {
          run_warp(first, int(block.x - first < kLanes ? block.x - first : kLanes), body);
        }
      }
    }
  }
}

template <class X>
X shuffle(unsigned mask, X x, int source, int kind, int width) {
  static_assert(sizeof(X) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof(X));
  bits = exchange({mask, kind, width, int(sizeof(X))}, bits, source);
  std::memcpy(&x, &bits, sizeof(X));
  return x;
}

inline void check_aligned(const void* address, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(address) % alignment) fail("misaligned access");
}

inline float half_to_float(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  float x;
  if (exponent == 31) {
    x = mantissa ? __builtin_nanf("") : __builtin_inff();
  } else {
    x = exponent ? __builtin_ldexpf(1024 + mantissa, exponent - 25) : __builtin_ldexpf(mantissa, -24);
  }
  return half >> 15 ? -x : x;
}

inline uint16_t float_to_half(float x) {
  const uint16_t sign = __builtin_signbit(x) ? 0x8000 : 0;
  const float size = __builtin_fabsf(x);
  if (!(size == size)) return sign | 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  int exponent;
  __builtin_frexpf(size, &exponent);
  const int step = (exponent < -13 ? -13 : exponent) - 11;  // the spacing of halves here is 2^step
  const int steps = int(__builtin_nearbyintf(__builtin_ldexpf(size, -step)));
  return sign | uint16_t(steps + ((step + 24) << 10));  // a carry into the exponent is just right
}

}  // namespace emulation

template <class X>
X __shfl_sync(unsigned mask, X x, int source, int width = emulation::kLanes) {
  const int lane = emulation::warp().running;
  return emulation::shuffle(mask, x, (lane & -width) | (source & (width - 1)), 0, width);
}
template <class X>
X __shfl_xor_sync(unsigned mask, X x, int bits, int width = emulation::kLanes) {
  return emulation::shuffle(mask, x, emulation::warp().running ^ bits, bits, width);
}

template <class X>
X __ldg(const X* address) {
  emulation::check_aligned(address, sizeof(X));
  X x;
  std::memcpy(&x, address, sizeof(X));
  return x;
}

inline void atomicAdd(float* address, float x) { *address += x; }
inline void atomicAdd(double* address, double x) { *address += x; }
inline void atomicAdd(float4* address, float4 x) {
  emulation::check_aligned(address, sizeof(float4));
  address->x += x.x;
  address->y += x.y;
  address->z += x.z;
  address->w += x.w;
}

inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline int min(int a, int b) { return a < b ? a : b; }

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return emulation::warp().error.empty() ? cudaSuccess : 1; }
inline const char* cudaGetErrorString(cudaError_t) { return emulation::warp().error.c_str(); }
