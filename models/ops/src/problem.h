// One call of an operator, as plain numbers and pointers: what the bindings hand to a processor's kernels.
#pragma once

#include <cstdint>

namespace deform_attn {

constexpr int kMaxLevels = 16;

enum class DType { Float32, Float64, Float16, BFloat16 };

// One level's map.
struct Level {
  int height, width;
  int64_t start;  // index of its first token
};

// B batch, Q queries, N tokens of all levels, M heads, D channels per head, L levels, P points per level.
// Nothing is empty: the bindings answer calls without batch, queries, tokens, heads, channels or points themselves.
struct Problem {
  int64_t batch, queries, tokens;
  int heads, channels, num_levels, points;
  Level levels[kMaxLevels];

  DType dtype;        // of query, key, value, output and grad_output
  bool key_aware;     // weights are the softmax of query . key; otherwise attention_weights
  bool key_is_value;  // with key_aware: one gather serves both, and their gradients are one, grad_value
  const void* query;  // [B, Q, M, D]
  const void* key;    // [B, N, M, D]
  const void* value;  // [B, N, M, D]

  // In the accumulation type: float64 for float64, otherwise float32.
  const void* locations;          // [B, Q, M, L, P, 2] as (x, y); L, P and 2 are contiguous
  int64_t location_strides[3];    // of B, Q and M, in elements; 0 where heads share their locations
  const void* attention_weights;  // [B, Q, M, L, P], without key_aware

  void* output;       // [B, Q, M, D]; the backward pass reads it
  void* log_sum_exp;  // [B, Q, M] in base 2, accumulation type, with key_aware; the backward pass reads it;
                      // on the CPU null where nobody does

  bool distinct_key() const { return key_aware && !key_is_value; }

  // The next level, whose tokens follow. An empty one is 0 by 0 and starts at token 0, whatever its other side: its
  // clamped corners must be a token that can be read.
  void add_level(int64_t height, int64_t width) {
    const bool empty = height * width == 0;
    levels[num_levels++] = empty ? Level{0, 0, 0} : Level{int(height), int(width), tokens};
    tokens += height * width;
  }
};

// A null pointer is a gradient that nobody asked for.
struct Gradients {
  const void* grad_output;       // [B, Q, M, D]
  void* grad_query;              // like query
  void* grad_key;                // like key; on CUDA in the accumulation type and zeroed by the caller
  void* grad_value;              // like value; on CUDA in the accumulation type and zeroed by the caller
  void* grad_locations;          // [B, Q, M, L, P, 2], contiguous, accumulation type
  void* grad_attention_weights;  // [B, Q, M, L, P], accumulation type
};

}  // namespace deform_attn
