// The CPU kernels of one instruction set, behind plain function pointers.
#pragma once

#include <cstddef>

#include "../problem.h"

namespace deform_attn {

constexpr size_t kAlign = 64;  // bytes: of scratch memory and rows

// Whether there are so many queries that dense copies of each head's tokens cost less than they save.
inline bool repays_copy(const Problem& problem) { return problem.queries >= problem.tokens / 8; }

// Queries and tokens come as ranges [begin, end). Scratch memory and rows are aligned to kAlign.
struct CpuKernels {
  int width;  // floats in a vector: the kernels are fastest where it divides the channels

  // Dense rows of one head, one per token, copied from a tensor [B, N, M, D].
  size_t (*row_bytes)(const Problem&);
  void (*copy_head)(const Problem&, const void* tensor, int64_t image, int64_t head, int64_t begin, int64_t end,
                    void* rows);

  // Queries of one image: all heads, from the tensors themselves; or one head, from dense rows.
  size_t (*forward_scratch)(const Problem&);
  void (*forward)(const Problem&, int64_t image, int64_t begin, int64_t end, void* scratch);
  void (*forward_head)(const Problem&, int64_t image, int64_t head, int64_t begin, int64_t end, const void* keys,
                       const void* values, void* scratch);

  // All queries of one head of one image: tasks share no gradient, so the result does not depend on the threads.
  size_t (*backward_scratch)(const Problem&, const Gradients&);
  void (*backward)(const Problem&, const Gradients&, int64_t image, int64_t head, void* scratch);
};

extern const CpuKernels& kPortable;
#if defined(__x86_64__)
extern const CpuKernels &kAvx2, &kAvx512;
#endif

}  // namespace deform_attn
