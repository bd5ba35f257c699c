// For the kernels that take any number of channels: a warp works on one (query, head), a lane on every 32nd channel.
//
// Sums over points are held for kChannels channels at a time; heads with more make the warp go through the points
// again. Simple, and correct for every size.
//
// T   type of query, key, value and output: float, double, Half or BFloat16
// F   type of locations and sums: double for double, otherwise float
#pragma once

#include "points.cuh"
#include "storage.cuh"

namespace deform_attn {
namespace {

constexpr int kHeld = 8, kChannels = kHeld * kWarp;  // channels held by a lane and by a warp

// A (query, head): its row in tensors [B, Q, M, ...] and where to find its inputs.
template <class T>
struct Row {
  using F = Accumulated<T>;
  bool valid;
  int64_t row;
  const T *query, *key, *value;
  const F *locations, *weights;

  __device__ __forceinline__ explicit Row(const Arguments& a) {
    const int64_t query_index = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
    valid = query_index < a.queries;
    const int64_t batch = a.first_batch + blockIdx.z, head = blockIdx.y;
    row = (batch * a.queries + query_index) * a.heads + head;
    query = static_cast<const T*>(a.query) + row * a.channels;
    key = static_cast<const T*>(a.key) + (batch * a.tokens * a.heads + head) * a.channels;
    value = static_cast<const T*>(a.value) + (batch * a.tokens * a.heads + head) * a.channels;
    locations = static_cast<const F*>(a.locations) + batch * a.location_strides[0] +
                query_index * a.location_strides[1] + head * a.location_strides[2];
    weights = static_cast<const F*>(a.attention_weights) + row * a.all_points;
  }

  // Its token counts in channels, from the head's first one on.
  __device__ __forceinline__ Point<F, int64_t> point(const Arguments& a, int k) const {
    Point<F, int64_t> point = locate_point<int64_t>(a.levels[k / a.points], locations[2 * k], locations[2 * k + 1]);
    for (int corner = 0; corner < 4; ++corner) point.token[corner] *= int64_t(a.heads) * a.channels;
    return point;
  }
};

template <class T, class F>
__device__ __forceinline__ F sample(const T* tokens, const int64_t (&token)[4], const F (&weight)[4], int channel) {
  F sum = 0;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) sum += weight[corner] * widen(tokens[token[corner] + channel]);
  return sum;
}

}  // namespace
}  // namespace deform_attn
