#include "run.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "host.h"
#include "kernels.h"

namespace deform_attn {
namespace {

constexpr int64_t kGrain = 32;  // queries per thread, at least

struct Free {
  void operator()(void* block) const { std::free(block); }
};
using Block = std::unique_ptr<void, Free>;

Block allocate(size_t bytes) {
  Block block(std::aligned_alloc(kAlign, (bytes / kAlign + 1) * kAlign));
  if (!block) throw std::bad_alloc();
  return block;
}

enum Path { kPathPortable, kPathAvx2, kPathAvx512 };
constexpr const char* kPathNames[] = {"portable", "avx2", "avx512"};

Path widest_path() {
  int path = kPathPortable;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    path = kPathAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
      path = kPathAvx512;
  }
#endif
  const char* limit = std::getenv("DEFORM_ATTN_CPU");
  if (!limit || !*limit) return Path(path);
  for (int i = kPathPortable; i <= kPathAvx512; ++i)
    if (std::strcmp(limit, kPathNames[i]) == 0) return Path(std::min(i, path));
  CHECK_VALUE(false, "DEFORM_ATTN_CPU='", limit, "' must be one of avx512, avx2, portable");
}

// The fastest kernels for a problem.
const CpuKernels& kernels_for(const Problem& problem) {
  const Path path = widest_path();
#if defined(__x86_64__)
  if (problem.dtype != DType::Float64) {  // float64 is there to check the others
    if (path >= kPathAvx512 && problem.channels % kAvx512.width == 0) return kAvx512;
    if (path >= kPathAvx2 && problem.channels % kAvx2.width == 0) return kAvx2;
  }
#endif
  return kPortable;
}

// Dense copies of the tokens of one head of one image, which several threads may use.
struct HeadCopies {
  const Problem& p;
  const CpuKernels& kernels;
  const size_t bytes = p.tokens * kernels.row_bytes(p);
  const Block values = allocate(bytes), distinct_keys = allocate(p.distinct_key() ? bytes : 0);

  void fill(int64_t image, int64_t head, int64_t begin, int64_t end) const {
    kernels.copy_head(p, p.value, image, head, begin, end, values.get());
    if (p.distinct_key()) kernels.copy_head(p, p.key, image, head, begin, end, distinct_keys.get());
  }
  void forward(int64_t image, int64_t head, int64_t begin, int64_t end) const {
    const Block scratch = allocate(kernels.forward_scratch(p));
    const void* keys = p.distinct_key() ? distinct_keys.get() : values.get();
    kernels.forward_head(p, image, head, begin, end, keys, values.get(), scratch.get());
  }
};

// Each thread takes whole heads where they come out even. Its copies then stay in its own cache.
void forward_by_head(const Problem& p, const CpuKernels& kernels) {
  const int64_t count = p.batch * p.heads;
  if (count % num_threads() == 0) {
    parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      const HeadCopies copies{p, kernels};
      for (int64_t i = begin; i < end; ++i) {
        copies.fill(i / p.heads, i % p.heads, 0, p.tokens);
        copies.forward(i / p.heads, i % p.heads, 0, p.queries);
      }
    });
    return;
  }
  const HeadCopies copies{p, kernels};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t image = i / p.heads, head = i % p.heads;
    parallel_for(0, p.tokens, kGrain, [&](int64_t begin, int64_t end) { copies.fill(image, head, begin, end); });
    parallel_for(0, p.queries, kGrain,
                     [&](int64_t begin, int64_t end) { copies.forward(image, head, begin, end); });
  }
}

}  // namespace

const char* cpu_kernels() { return kPathNames[widest_path()]; }

void forward_cpu(const Problem& problem) {
  const CpuKernels& kernels = kernels_for(problem);
  if (repays_copy(problem)) return forward_by_head(problem, kernels);
  parallel_for(0, problem.batch * problem.queries, kGrain, [&](int64_t begin, int64_t end) {
    const Block scratch = allocate(kernels.forward_scratch(problem));
    while (begin < end) {
      const int64_t image = begin / problem.queries, first = begin % problem.queries;
      const int64_t count = std::min(problem.queries - first, end - begin);
      kernels.forward(problem, image, first, first + count, scratch.get());
      begin += count;
    }
  });
}

void backward_cpu(const Problem& problem, const Gradients& gradients) {
  const CpuKernels& kernels = kernels_for(problem);
  parallel_for(0, problem.batch * problem.heads, 1, [&](int64_t begin, int64_t end) {
    const Block scratch = allocate(kernels.backward_scratch(problem, gradients));
    for (int64_t i = begin; i < end; ++i)
      kernels.backward(problem, gradients, i / problem.heads, i % problem.heads, scratch.get());
  });
}

}  // namespace deform_attn
