// The kernels of one instruction set as kKernels, a table of function pointers. The file that includes this sets
// VECTOR_BYTES and the instruction set first. Float16 never arrives here.
//
// Operation<T, A, D>   has a function call(problem, ...)
// T, A, D              as in pass.inl
#pragma once

#include "backward.inl"
#include "forward.inl"

namespace deform_attn {
namespace {

// Calls operation with the types of a problem: Operation<T, A, D>.
template <template <class, class, int> class Operation, class A, class T, class... Args>
auto with_channels(const Problem& p, Args&&... args) {
  if constexpr (std::is_same<A, float>::value) {
    if (p.channels == 32) return Operation<T, A, 32>::call(p, args...);
    if (p.channels == 16) return Operation<T, A, 16>::call(p, args...);
  }
  return Operation<T, A, 0>::call(p, args...);
}

template <template <class, class, int> class Operation, class... Args>
auto with_types(const Problem& p, Args&&... args) {
#if VECTOR_BYTES <= 16  // float64 is there to check the others: the portable kernels do
  if (p.dtype == DType::Float64) return with_channels<Operation, double, double>(p, args...);
#endif
  if (p.dtype == DType::BFloat16) return with_channels<Operation, float, BFloat16>(p, args...);
  return with_channels<Operation, float, float>(p, args...);
}

template <class T, class A, int D>
struct RowBytes {
  static size_t call(const Problem& p) { return Channels<A, D>{p.channels}.padded() * sizeof(A); }
};
template <class T, class A, int D>
struct ForwardScratch {
  static size_t call(const Problem& p) { return Forward<T, A, D>{{p, {0}}}.scratch.size; }
};
template <class T, class A, int D>
struct RunForward {
  template <class... Args>
  static void call(const Problem& p, void* scratch, Args... args) {
    Forward<T, A, D>{{p, {reinterpret_cast<uintptr_t>(scratch)}}}.run(args...);
    Simd<A>::finish_streams();
  }
};
template <class T, class A, int D>
struct BackwardScratch {
  static size_t call(const Problem& p, const Gradients& g) { return Backward<T, A, D>{{p, {0}}, g}.scratch.size; }
};
template <class T, class A, int D>
struct RunBackward {
  static void call(const Problem& p, const Gradients& g, void* scratch, int64_t image, int64_t head) {
    Backward<T, A, D>{{p, {reinterpret_cast<uintptr_t>(scratch)}}, g}.run(image, head);
    Simd<A>::finish_streams();
  }
};

const CpuKernels kKernels{
    Simd<float>::width,
    [](const Problem& p) { return with_types<RowBytes>(p); },
    [](const Problem& p, const void* tensor, int64_t image, int64_t head, int64_t begin, int64_t end, void* rows) {
      with_types<CopyHead>(p, tensor, image, head, begin, end, rows);
    },
    [](const Problem& p) { return with_types<ForwardScratch>(p); },
    [](const Problem& p, int64_t image, int64_t begin, int64_t end, void* scratch) {
      with_types<RunForward>(p, scratch, image, begin, end);
    },
    [](const Problem& p, int64_t image, int64_t head, int64_t begin, int64_t end, const void* keys, const void* values,
       void* scratch) { with_types<RunForward>(p, scratch, image, head, begin, end, keys, values); },
    [](const Problem& p, const Gradients& g) { return with_types<BackwardScratch>(p, g); },
    [](const Problem& p, const Gradients& g, int64_t image, int64_t head, void* scratch) {
      with_types<RunBackward>(p, g, scratch, image, head);
    },
};

}  // namespace
}  // namespace deform_attn
