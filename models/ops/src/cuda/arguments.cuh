// What a kernel is given: the problem, and which queries a block works on.
#pragma once

#include <algorithm>

#include "device.cuh"
#include "launch.h"

namespace deform_attn {
namespace {

// How the weights of the points come about, a parameter WEIGHTS of the kernels: by the softmax of query . key where key
// is value, so that one gather serves both; where the key is distinct; or they are given.
enum class Weights { KeyIsValue, DistinctKey, Given };

constexpr int kThreads = 128;

// Blocks per multiprocessor, at least: as many as leave each thread the registers that it needs.
template <Weights WEIGHTS>
constexpr int kBlocks = WEIGHTS == Weights::Given ? 5 : 4;

constexpr int kTileHeight = 4, kTileWidth = 8;

// Queries that are the tokens of a map, or a row of queries.
struct QueryMap {
  int height, width, first_query;
  int tiles_across, end_tile;  // its tiles end before `end_tile`, counting those of the maps before it
};

// Neighbouring queries sample the same neighbourhood: a block takes a tile of a map, so what it reads fits the L1
// cache.
struct QueryOrder {
  int num_maps, tile_height, tile_width;
  QueryMap maps[kMaxLevels];

  int tiles() const { return maps[num_maps - 1].end_tile; }

  void append(int height, int width) {
    QueryMap& map = maps[num_maps];
    const QueryMap* before = num_maps ? &maps[num_maps - 1] : nullptr;
    map.height = height;
    map.width = width;
    map.first_query = before ? before->first_query + before->height * before->width : 0;
    map.tiles_across = (width + tile_width - 1) / tile_width;
    map.end_tile = (before ? before->end_tile : 0) + map.tiles_across * ((height + tile_height - 1) / tile_height);
    ++num_maps;
  }
};

// The queries in a block's tile, without what its map does not cover.
struct Tile {
  int first_query, row_stride, width, count;
  unsigned width_inverse;  // i / width = i * width_inverse / 2^16 for all i in a tile

  __device__ __forceinline__ Tile(const QueryOrder& order, int tile) {
    int i = 0;
    while (tile >= order.maps[i].end_tile) ++i;
    const QueryMap& map = order.maps[i];
    if (i > 0) tile -= order.maps[i - 1].end_tile;
    const int y = tile / map.tiles_across * order.tile_height, x = tile % map.tiles_across * order.tile_width;
    row_stride = map.width;
    first_query = map.first_query + y * row_stride + x;
    width = ::min(order.tile_width, map.width - x);
    width_inverse = (65535u + width) / width;
    count = width * ::min(order.tile_height, map.height - y);
  }

  __device__ __forceinline__ int query(int i) const {
    const int y = i * width_inverse >> 16;
    return first_query + y * row_stride + (i - y * width);
  }
};

struct Arguments {
  int64_t batch, first_batch, queries, tokens;
  int heads, channels, points, all_points;  // points: per level
  unsigned points_inverse;                  // 2^31 / points, rounded up
  Level levels[kMaxLevels];
  QueryOrder order;
  double score_scale, logit_scale;

  const void *query, *key, *value, *locations, *attention_weights;
  void *output, *log_sum_exp;
  int64_t location_strides[3];
  Gradients gradients;
};

inline Arguments make_arguments(const Problem& problem, const Gradients& gradients = {}) {
  Arguments arguments{};
  arguments.batch = problem.batch;
  arguments.queries = problem.queries;
  arguments.tokens = problem.tokens;
  arguments.heads = problem.heads;
  arguments.channels = problem.channels;
  arguments.points = problem.points;
  arguments.all_points = problem.num_levels * problem.points;
  arguments.points_inverse = unsigned(((int64_t(1) << 31) + problem.points - 1) / problem.points);
  std::copy_n(problem.levels, problem.num_levels, arguments.levels);
  arguments.score_scale = score_scale(problem.channels);
  arguments.logit_scale = logit_scale(problem.channels);
  arguments.query = problem.query;
  arguments.key = problem.key;
  arguments.value = problem.value;
  arguments.locations = problem.locations;
  arguments.attention_weights = problem.attention_weights;
  arguments.output = problem.output;
  arguments.log_sum_exp = problem.log_sum_exp;
  std::copy_n(problem.location_strides, 3, arguments.location_strides);
  arguments.gradients = gradients;
  return arguments;
}

inline Weights weights_of(const Problem& problem) {
  if (!problem.key_aware) return Weights::Given;
  return problem.key_is_value ? Weights::KeyIsValue : Weights::DistinctKey;
}

// The level from which on the queries are all tokens, or -1.
inline int first_level_of_queries(const Problem& problem) {
  int64_t queries = 0;
  for (int i = problem.num_levels - 1; i >= 0; --i) {
    queries += int64_t(problem.levels[i].height) * problem.levels[i].width;
    if (queries == problem.queries) return i;
  }
  return -1;
}

#if !defined(FEW_QUERIES)  // tests lower it
#define FEW_QUERIES 32768
#endif

// So few queries that a warp works on one, with its points side by side; else the GPU has too few warps.
inline bool few_queries(const Problem& problem) {
  return problem.batch * problem.queries * problem.heads < FEW_QUERIES;
}

// For blocks that work on `block_queries` at a time.
inline QueryOrder make_order(const Problem& problem, int block_queries) {
  QueryOrder order{};
  const int first_level = few_queries(problem) ? -1 : first_level_of_queries(problem);
  if (first_level < 0) {
    order.tile_height = 1;
    order.tile_width = few_queries(problem) ? block_queries : kTileHeight * kTileWidth;
    order.append(1, int(problem.queries));
    return order;
  }
  order.tile_height = kTileHeight;
  order.tile_width = kTileWidth;
  for (int i = first_level; i < problem.num_levels; ++i) {
    const Level& level = problem.levels[i];
    if (level.height > 0) order.append(level.height, level.width);
  }
  return order;
}

// Launches for all heads and batches, the slowest last: blocks that run together then work on the same head.
inline const char* launch(void (*kernel)(Arguments), Arguments& arguments, int64_t blocks, int threads,
                          CUstream_st* stream) {
  constexpr int64_t kMaxBlocks = 0x7fffffff, kMaxOther = 0xffff;
  if (blocks > kMaxBlocks || arguments.heads > kMaxOther) return "more queries or heads than a CUDA grid can have";
  for (int64_t first = 0; first < arguments.batch; first += kMaxOther) {
    arguments.first_batch = first;
    const dim3 grid(unsigned(blocks), unsigned(arguments.heads),
                    unsigned(std::min(kMaxOther, arguments.batch - first)));
    LAUNCH(kernel, grid, dim3(threads), stream, arguments);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  return nullptr;
}

}  // namespace
}  // namespace deform_attn
