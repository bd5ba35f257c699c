// What the kernels take from the program that they run in: threads, and its error for a bad value. That is torch, or with
// DEFORM_ATTN_OPENVINO an OpenVINO model.
#pragma once

#include <cstdint>

#if defined(DEFORM_ATTN_OPENVINO)
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <openvino/core/except.hpp>

#include <algorithm>

#define CHECK_VALUE(condition, ...) OPENVINO_ASSERT(condition, __VA_ARGS__)

namespace deform_attn {

// Those of the model that calls: it runs in an arena of as many threads as it was compiled for.
inline int num_threads() { return tbb::this_task_arena::max_concurrency(); }

// f(begin, end) for equal parts of a range, one per thread, of at least `grain`.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  const int64_t count = end - begin, parts = std::min<int64_t>(num_threads(), (count + grain - 1) / grain);
  if (parts <= 1) return count ? f(begin, end) : void();
  const auto run_part = [&](int64_t i) { f(begin + count * i / parts, begin + count * (i + 1) / parts); };
  tbb::parallel_for(int64_t(0), parts, run_part, tbb::static_partitioner());
}

}  // namespace deform_attn
#else
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#define CHECK_VALUE(condition, ...) TORCH_CHECK_VALUE(condition, __VA_ARGS__)

namespace deform_attn {

using at::parallel_for;
inline int num_threads() { return at::get_num_threads(); }

}  // namespace deform_attn
#endif
