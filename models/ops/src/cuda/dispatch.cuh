// Chooses and launches the kernel for a problem.
//
// T        type of query, key, value and output: float, double, Half or BFloat16
// WEIGHTS  how the weights of the points come about
// BYTES    of a head's channels
// LANES    that share a head's channels
// KERNELS  ForwardKernels or BackwardKernels. Their fast<T, Team, WEIGHTS>() is the kernel for heads of 32, 64, 128 or
//          256 bytes: 16, 32 or 64 channels in half precision and in float32, also 128 in half precision and 8 in
//          float32, with kLaneChannels<T> per lane. any<T, WEIGHTS>() takes any number of channels, with one warp per
//          (query, head).
#pragma once

#include <type_traits>

#include "points.cuh"
#include "storage.cuh"

namespace deform_attn {
namespace {

using Kernel = void (*)(Arguments);

// What the fast kernels compute in 32 bits must fit; up to kMaxPoints a point's level is exact (see PointReader).
inline bool fits_fast_kernels(const Problem& problem) {
  constexpr int64_t kMax = 0x7fffffff, kMaxPoints = 1 << 13;
  const int64_t location_stride = problem.location_strides[1];
  return problem.tokens <= kMax && problem.queries <= kMax && problem.points <= kMaxPoints &&
         4 * int64_t(problem.heads) * problem.channels <= kMax &&
         4 * int64_t(problem.heads) * problem.num_levels * problem.points <= kMax && location_stride >= 0 &&
         4 * location_stride <= kMax;
}

template <class KERNELS, class T, Weights WEIGHTS, int BYTES>
const char* launch_fast(const Problem& problem, Arguments& arguments, CUstream_st* stream) {
  constexpr int LANES = BYTES / int(sizeof(T)) / KERNELS::template kLaneChannels<T>;
  using WholeWarp = Team<LANES, kWarp / LANES>;
  using OneSlot = Team<LANES, 1>;
  arguments.order = make_order(problem, WholeWarp::PER_BLOCK);
  const Kernel kernel = few_queries(problem) ? Kernel(KERNELS::template fast<T, WholeWarp, WEIGHTS>())
                                             : Kernel(KERNELS::template fast<T, OneSlot, WEIGHTS>());
  return launch(kernel, arguments, arguments.order.tiles(), kThreads, stream);
}

template <class KERNELS, class T, Weights WEIGHTS>
const char* launch_weights(const Problem& problem, Arguments& arguments, CUstream_st* stream) {
  if constexpr (!std::is_same_v<T, double>) {
    const int64_t bytes = problem.channels * int64_t(sizeof(T));
    if (fits_fast_kernels(problem)) {
      if (bytes == 32) return launch_fast<KERNELS, T, WEIGHTS, 32>(problem, arguments, stream);
      if (bytes == 64) return launch_fast<KERNELS, T, WEIGHTS, 64>(problem, arguments, stream);
      if (bytes == 128) return launch_fast<KERNELS, T, WEIGHTS, 128>(problem, arguments, stream);
      if (bytes == 256) return launch_fast<KERNELS, T, WEIGHTS, 256>(problem, arguments, stream);
    }
  }
  constexpr int64_t kWarps = kThreads / kWarp;
  const Kernel kernel = KERNELS::template any<T, WEIGHTS>();
  return launch(kernel, arguments, (problem.queries + kWarps - 1) / kWarps, kThreads, stream);
}

template <class KERNELS, class T>
const char* launch_type(const Problem& problem, Arguments& arguments, CUstream_st* stream) {
  switch (weights_of(problem)) {
    case Weights::KeyIsValue: return launch_weights<KERNELS, T, Weights::KeyIsValue>(problem, arguments, stream);
    case Weights::DistinctKey: return launch_weights<KERNELS, T, Weights::DistinctKey>(problem, arguments, stream);
    default: return launch_weights<KERNELS, T, Weights::Given>(problem, arguments, stream);
  }
}

template <class KERNELS>
const char* launch_problem(const Problem& problem, const Gradients& gradients, CUstream_st* stream) {
  Arguments arguments = make_arguments(problem, gradients);
  switch (problem.dtype) {
    case DType::Float32: return launch_type<KERNELS, float>(problem, arguments, stream);
    case DType::Float64: return launch_type<KERNELS, double>(problem, arguments, stream);
    case DType::Float16: return launch_type<KERNELS, Half>(problem, arguments, stream);
    default: return launch_type<KERNELS, BFloat16>(problem, arguments, stream);
  }
}

}  // namespace
}  // namespace deform_attn
