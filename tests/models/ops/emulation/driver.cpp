// The kernels' interface for ctypes.
#include <algorithm>

#include "cuda/launch.h"

// sizes: batch, queries, tokens, heads, channels, levels, points. shapes: height and width of each level.
//
// inputs: query, key, value, locations, attention_weights, output, log_sum_exp, and for the backward pass grad_output.
//
// gradients: of query, key, value, locations and attention_weights; null for the forward pass.
extern "C" const char* run(int dtype, int key_aware, const int64_t* sizes, const int* shapes, void* const* inputs,
                           const int64_t* location_strides, void* const* gradients) {
  using namespace deform_attn;
  Problem problem{};
  problem.batch = sizes[0];
  problem.queries = sizes[1];
  problem.heads = int(sizes[3]);
  problem.channels = int(sizes[4]);
  problem.points = int(sizes[6]);
  for (int i = 0; i < sizes[5]; ++i) problem.add_level(shapes[2 * i], shapes[2 * i + 1]);
  problem.dtype = DType(dtype);
  problem.key_aware = key_aware;
  problem.key_is_value = inputs[1] == inputs[2];
  problem.query = inputs[0];
  problem.key = inputs[1];
  problem.value = inputs[2];
  problem.locations = inputs[3];
  problem.attention_weights = inputs[4];
  problem.output = inputs[5];
  problem.log_sum_exp = inputs[6];
  std::copy_n(location_strides, 3, problem.location_strides);
  if (!gradients) return forward_cuda(problem, nullptr);
  return backward_cuda(problem, {inputs[7], gradients[0], gradients[1], gradients[2], gradients[3], gradients[4]},
                       nullptr);
}
