// Forward and backward of the operators on a CPU, for the vectors of simd.h. Float16 never arrives here.
//
// W lanes, points of a group: the L * P points of a query and head go in groups of W, one a lane, for geometry and
// softmax; their channels go W at a time. D is the number of channels where it is known to the compiler, else 0.

#include "kernels.h"
#include "simd.h"

namespace deform_attn {
namespace {

constexpr size_t kAlign = 64;

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Hands out aligned parts of a block of memory. Without a block it only adds up sizes.
struct Scratch {
  uintptr_t block;
  size_t size = 0;

  template <class T>
  T* take(int64_t count) {
    T* part = reinterpret_cast<T*>(block + size);
    size += round_up(count * sizeof(T), kAlign);
    return part;
  }
};

// The map that each point samples, with the points padded to whole groups.
template <class A>
struct Maps {
  using S = Simd<A>;
  using Int = typename S::Int;
  A *width, *height;
  Int *row, *start;

  Maps(const Problem& p, Scratch& scratch) {
    const int64_t size = round_up(p.num_levels * p.points, S::width);
    width = scratch.take<A>(size);
    height = scratch.take<A>(size);
    row = scratch.take<Int>(size);
    start = scratch.take<Int>(size);
  }
  void fill(const Problem& p) {
    const int count = p.num_levels * p.points, size = round_up(count, S::width);
    for (int k = 0; k < size; ++k) {
      const Level level = k < count ? p.levels[k / p.points] : Level{0, 0, 0};
      width[k] = A(level.width);
      height[k] = A(level.height);
      row[k] = level.width;
      start[k] = level.start;
    }
  }
};

// Where a group of points of one query and head samples: four tokens and their bilinear weights. Where fewer than W
// points are left, the lanes after them have weight 0.
template <class A>
struct Group {
  static constexpr int W = Simd<A>::width;
  alignas(kAlign) typename Simd<A>::Int token[4][W];
  alignas(kAlign) A weight[4][W];
};

// Derivatives of the weights with respect to the points' locations.
template <class A>
struct Slopes {
  alignas(kAlign) A x[4][Simd<A>::width], y[4][Simd<A>::width];
};

// The group of `count` points that starts at point `first`, and where slopes is not null, these too.
template <class A>
INLINE void place(const Maps<A>& maps, const A* locations, int first, int count, Group<A>* group, Slopes<A>* slopes) {
  using S = Simd<A>;
  using V = typename S::V;
  using I = typename S::I;
  constexpr int W = S::width;
  V location_x, location_y;
  if (count == W) {
    S::load_pairs(locations + 2 * first, location_x, location_y);
  } else {
    A padded[2 * W];
    for (int i = 0; i < 2 * W; ++i)
      padded[i] = i < 2 * count ? locations[2 * first + i] : std::numeric_limits<A>::quiet_NaN();
    S::load_pairs(padded, location_x, location_y);
  }
  const Axis<V> x = locate<V>(location_x, S::load(maps.width + first));
  const Axis<V> y = locate<V>(location_y, S::load(maps.height + first));
  const I row = S::load_int(maps.row + first), start = S::load_int(maps.start + first);
  const I left = __builtin_convertvector(x.low, I), right = __builtin_convertvector(x.high, I);
  const I top = __builtin_convertvector(y.low, I) * row + start;
  const I bottom = __builtin_convertvector(y.high, I) * row + start;
  const I tokens[4] = {top + left, top + right, bottom + left, bottom + right};
  const Corners<V> weights = bilinear(y, x);
  memcpy(group->token, tokens, sizeof tokens);
  memcpy(group->weight, weights.weight, sizeof weights);
  if (slopes) {
    const Corners<V> along_x = slope_x(y, x), along_y = slope_y(y, x);
    memcpy(slopes->x, along_x.weight, sizeof along_x);
    memcpy(slopes->y, along_y.weight, sizeof along_y);
  }
}

// -infinity in the lanes after `count`.
template <class V>
INLINE V mask_scores(V scores, int count) {
  for (int k = count; k < int(sizeof(V) / sizeof(scores[0])); ++k) scores[k] = -INFINITY;
  return scores;
}

// The rows of one head, as dense copies or in the tensor itself, and dense sums of their gradients.
template <class A>
struct GradRows {
  const A* rows;
  A* grads;
};

// The channels of one head, W at a time; T is their type in memory. Rows of samples, sums and copies have `padded`
// channels, the last ones 0.
template <class A, int D>
struct Channels {
  using S = Simd<A>;
  using V = typename S::V;
  static constexpr int W = S::width;
  const int runtime_channels;

  int channels() const { return D ? D : runtime_channels; }
  int padded() const { return D ? D : int(round_up(runtime_channels, W)); }

  template <class T>
  V load(const T* row, int c) const {
    if (D || c + W <= channels()) return S::load(row + c);
    return S::load_some(row + c, channels() - c);
  }
  template <class T>
  void store(T* row, int c, V v) const {
    if (D || c + W <= channels())
      S::store(row + c, v);
    else
      S::store_some(row + c, v, channels() - c);
  }
  template <class From>
  void unpack(A* to, const From* from) const {
    for (int c = 0; c < padded(); c += W) S::store(to + c, load(from, c));
  }
  template <class To>
  void pack(To* to, const A* from) const {
    for (int c = 0; c < channels(); c += W) store(to, c, S::load(from + c));
  }
  // pack for rows that are not read again soon: whole cache lines go past the caches, which need not fetch them first.
  // Other threads see them after S::finish_streams().
  template <class To>
  void pack_away(To* to, const A* from) const {
    if constexpr (std::is_same<To, A>::value && D * sizeof(A) % kAlign == 0 && D) {
      if (reinterpret_cast<uintptr_t>(to) % kAlign == 0) {
        for (int c = 0; c < D; c += W) S::stream(to + c, S::load(from + c));
        return;
      }
    }
    pack(to, from);
  }

  // samples[k] = the bilinear sample at point k of rows that lie `stride` apart.
  template <class T>
  void gather(const Group<A>& group, const T* rows, int64_t stride, A* samples) const {
    for (int k = 0; k < W; ++k) sample(group, k, rows, stride, samples, [](int, V) {});
  }

  // The same; lane k of the result is x . samples[k].
  template <class T>
  INLINE V gather(const Group<A>& group, const T* rows, int64_t stride, A* samples, const A* x) const {
    return S::row_sums([&](int k) INLINE_LAMBDA {
      V product{};
      sample(group, k, rows, stride, samples, [&](int c, V part) INLINE_LAMBDA { product += S::load(x + c) * part; });
      return product;
    });
  }

  // samples[k]; each part of it goes to use(channel, part).
  template <class T, class Use>
  INLINE void sample(const Group<A>& group, int k, const T* rows, int64_t stride, A* __restrict__ samples,
                     Use use) const {
    const T *r0 = rows + group.token[0][k] * stride, *r1 = rows + group.token[1][k] * stride;
    const T *r2 = rows + group.token[2][k] * stride, *r3 = rows + group.token[3][k] * stride;
    const A w0 = group.weight[0][k], w1 = group.weight[1][k], w2 = group.weight[2][k], w3 = group.weight[3][k];
    for (int c = 0; c < padded(); c += W) {
      V part = w0 * load(r0, c);
      part += w1 * load(r1, c);
      part += w2 * load(r2, c);
      part += w3 * load(r3, c);
      S::store(samples + int64_t(k) * padded() + c, part);
      use(c, part);
    }
  }

  // Lane k = x . samples[k].
  INLINE V dots(const A* samples, const A* x) const {
    return S::row_sums([&](int k) INLINE_LAMBDA {
      V product{};
      for (int c = 0; c < padded(); c += W) product += S::load(x + c) * S::load(samples + int64_t(k) * padded() + c);
      return product;
    });
  }

  // sum = sum * factor + weight . samples; without factor, sum = weight . samples
  INLINE void accumulate(A* sum, const V* factor, V weight, const A* samples, int count) const {
    alignas(kAlign) A weights[W];
    S::store(weights, weight);
    const auto accumulate_first = [&](int n) INLINE_LAMBDA {
      for (int c = 0; c < padded(); c += W) {
        V even = factor ? S::load(sum + c) * *factor : V{}, odd{};
        int k = 0;
        for (; k + 1 < n; k += 2) {
          even += weights[k] * S::load(samples + int64_t(k) * padded() + c);
          odd += weights[k + 1] * S::load(samples + int64_t(k + 1) * padded() + c);
        }
        if (k < n) even += weights[k] * S::load(samples + int64_t(k) * padded() + c);
        S::store(sum + c, even + odd);
      }
    };
    count == W ? accumulate_first(W) : accumulate_first(count);  // the compiler unrolls what it knows
  }

  // The gradient a[k] * x + b[k] * y of samples[k] goes to the rows that it was sampled from, which lie `stride` apart,
  // and to the location of the point: returns its x in lane k of grad_x, and so y. Without y, the gradient is a[k] * x.
  void scatter(const Group<A>& group, int count, const Slopes<A>& slopes, GradRows<A> to, int64_t stride, const A* a,
               const A* x, const A* b, const A* y, V& grad_x, V& grad_y) const {
    V partial_x[W] = {}, partial_y[W] = {};
    for (int k = 0; k < count; ++k) {
      V gradients[4] = {};  // of the corners' weights, lane by lane
      for (int c = 0; c < padded(); c += W) {
        V gradient = a[k] * S::load(x + c);
        if (y) gradient += b[k] * S::load(y + c);
        for (int i = 0; i < 4; ++i) {  // corners at a border may be the same row: one after the other
          gradients[i] += gradient * S::load(to.rows + group.token[i][k] * stride + c);
          A* grad = to.grads + int64_t(group.token[i][k]) * padded() + c;
          S::store(grad, S::load(grad) + group.weight[i][k] * gradient);
        }
      }
      for (int i = 0; i < 4; ++i) {
        partial_x[k] += slopes.x[i][k] * gradients[i];
        partial_y[k] += slopes.y[i][k] * gradients[i];
      }
    }
    grad_x = S::row_sums([&](int k) INLINE_LAMBDA { return partial_x[k]; });
    grad_y = S::row_sums([&](int k) INLINE_LAMBDA { return partial_y[k]; });
  }
};

// Rows of one head, one a token, that lie `stride` elements apart.
template <class T, int kStride = 0>
struct Rows {
  const T* first;
  int64_t any_stride;

  int64_t stride() const { return kStride ? kStride : any_stride; }
};

// One head's operands lie too far apart for the processor to foresee.
template <class Element>
INLINE void prefetch(const Element* x, int64_t count) {
  for (int64_t i = 0; i < count; i += kAlign / sizeof(Element)) __builtin_prefetch(x + i);
}

// Up to kBatch queries of one head together, step by step: the steps of one query wait for each other, those of
// several run side by side.
template <class T, class A, int D>
struct Forward {
  using S = Simd<A>;
  using V = typename S::V;
  static constexpr int W = S::width, kBatch = W < 4 ? W : 4;
  const Problem& p;
  Scratch scratch;
  Channels<A, D> channels{p.channels};
  Maps<A> maps{p, scratch};
  int width = channels.padded();
  A* query = scratch.take<A>(width);
  A* sums = scratch.take<A>(kBatch * width);
  A* samples = scratch.take<A>(kBatch * W * width);

  // All heads, with rows as they lie in memory.
  void run(int64_t image, int64_t begin, int64_t end) {
    maps.fill(p);
    const int64_t stride = int64_t(p.heads) * p.channels;
    for (int64_t q = begin; q < end; q += kBatch)
      for (int64_t head = 0; head < p.heads; ++head) {
        const int64_t first = image * p.tokens * stride + head * p.channels;
        attend(image, q, end, head, Rows<T>{static_cast<const T*>(p.key) + first, stride},
               Rows<T>{static_cast<const T*>(p.value) + first, stride});
      }
  }

  // One head, with dense rows.
  void run(int64_t image, int64_t head, int64_t begin, int64_t end, const void* keys, const void* values) {
    maps.fill(p);
    for (int64_t q = begin; q < end; q += kBatch)
      attend(image, q, end, head, Rows<A, D>{static_cast<const A*>(keys), width},
             Rows<A, D>{static_cast<const A*>(values), width});
  }

  int64_t index(int64_t image, int64_t q, int64_t head) const { return (image * p.queries + q) * p.heads + head; }
  const A* locations(int64_t image, int64_t q, int64_t head) const {
    const int64_t* strides = p.location_strides;
    return static_cast<const A*>(p.locations) + image * strides[0] + q * strides[1] + head * strides[2];
  }

  INLINE void prefetch_operands(int64_t image, int64_t q, int64_t head) const {
    const int64_t row = index(image, q, head);
    prefetch(locations(image, q, head), 2 * p.num_levels * p.points);
    if (p.key_aware) prefetch(static_cast<const T*>(p.query) + row * p.channels, p.channels);
  }

  // The queries from q on, at most kBatch and before `end`.
  template <class HeadRows>
  void attend(int64_t image, int64_t q, int64_t end, int64_t head, HeadRows key, HeadRows value) {
    if (q + kBatch <= end) return attend<kBatch>(image, q, end, head, key, value);
    for (; q < end; ++q) attend<1>(image, q, end, head, key, value);
  }

  template <int batch, class HeadRows>
  void attend(int64_t image, int64_t q, int64_t end, int64_t head, HeadRows key, HeadRows value) {
    const bool dense = key.stride() == width;
    const int num_points = p.num_levels * p.points;
    const int64_t index = this->index(image, q, head);
    OnlineSoftmax<V> softmax[batch];
    const V one = V{} + A(1);

    for (int first = 0; first < num_points; first += W) {
      const int count = first + W <= num_points ? W : num_points - first;
      Group<A> groups[batch];
      V weights[batch], factors[batch];
      for (int i = 0; i < batch; ++i)
        place(maps, locations(image, q + i, head), first, count, &groups[i], static_cast<Slopes<A>*>(nullptr));
      for (int i = 0; i < batch; ++i) {
        const int64_t row = index + int64_t(i) * p.heads;
        A* own_samples = samples + i * W * width;
        const int64_t later = q + i + 2 * kBatch;  // one at a time: many lines at once would have to queue up
        if (first == 0 && dense && later < end) prefetch_operands(image, later, head);
        if (p.key_aware) {
          channels.unpack(query, static_cast<const T*>(p.query) + row * p.channels);
          const V products = channels.gather(groups[i], key.first, key.stride(), own_samples, query);
          weights[i] = mask_scores(products * A(score_scale(p.channels)), count);
        } else {
          channels.gather(groups[i], value.first, value.stride(), own_samples);
          weights[i] = S::load_some(static_cast<const A*>(p.attention_weights) + row * num_points + first, count);
          factors[i] = one;
        }
      }
      for (int i = 0; i < batch && p.key_aware; ++i) {
        const V highest = S::max_of(weights[i]);
        if (first == 0)
          softmax[i] = {highest, V{}};
        else
          factors[i] = softmax[i].raise(highest);
        weights[i] = Number<V>::exp2(weights[i] - softmax[i].max);
        softmax[i].sum += S::sum_of(weights[i]);
      }
      for (int i = 0; i < batch; ++i) {
        if (p.key_aware && key.first != value.first)
          channels.gather(groups[i], value.first, value.stride(), samples + i * W * width);
        channels.accumulate(sums + i * width, first ? &factors[i] : nullptr, weights[i], samples + i * W * width,
                            count);
      }
    }
    OnlineSoftmax<V> totals{V{}, one};  // of query i in lane i: one logarithm and one division for all
    for (int i = 0; i < batch && p.key_aware; ++i) {
      totals.max[i] = softmax[i].max[0];
      totals.sum[i] = softmax[i].sum[0];
    }
    const V log_sum_exp = totals.log_sum_exp(), normalisers = one / totals.sum;
    for (int i = 0; i < batch; ++i) {
      const int64_t row = index + int64_t(i) * p.heads;
      if (p.key_aware) {
        static_cast<A*>(p.log_sum_exp)[row] = log_sum_exp[i];
        A* sum = sums + i * width;
        for (int c = 0; c < width; c += W) S::store(sum + c, S::load(sum + c) * normalisers[i]);
      }
      T* output = static_cast<T*>(p.output) + row * p.channels;
      dense ? channels.pack_away(output, sums + i * width) : channels.pack(output, sums + i * width);
    }
  }
};

// Dense rows of one head of one image, in the accumulation type. The heads of a token lie side by side in memory, so
// that one head's rows fall into few sets of a cache and on many pages; densely they stay in the cache.
template <class T, class A, int D>
struct CopyHead {
  static void call(const Problem& p, const void* tensor, int64_t image, int64_t head, int64_t begin, int64_t end,
                   void* rows) {
    const Channels<A, D> channels{p.channels};
    const T* from = static_cast<const T*>(tensor) + (image * p.tokens * p.heads + head) * p.channels;
    const int64_t stride = int64_t(p.heads) * p.channels;
    for (int64_t n = begin; n < end; ++n)
      channels.unpack(static_cast<A*>(rows) + n * channels.padded(), from + n * stride);
  }
};

// All queries of one head of one image, up to kBatch together as in Forward.
template <class T, class A, int D>
struct Backward {
  using S = Simd<A>;
  using V = typename S::V;
  static constexpr int W = S::width, kBatch = 4;
  const Problem& p;
  const Gradients& g;
  Scratch scratch;
  Channels<A, D> channels{p.channels};
  Maps<A> maps{p, scratch};
  int width = channels.padded();
  bool own_keys = p.key_aware && p.key != p.value;
  bool to_samples = g.grad_value || g.grad_key || g.grad_locations;
  // Few queries do not repay dense copies of the tokens. Gradients are always summed up densely: in the tensor itself
  // one head's rows fall into few sets of a cache.
  bool in_place = std::is_same<T, A>::value && width == p.channels && !repays_copy(p);
  int64_t stride = in_place ? int64_t(p.heads) * p.channels : width;
  A* query = scratch.take<A>(kBatch * width);
  A* grad_query = scratch.take<A>(kBatch * width);
  A* grad_output = scratch.take<A>(kBatch * width);
  A* output = scratch.take<A>(width);
  A* samples = scratch.take<A>(kBatch * W * width);
  A* dense_values = scratch.take<A>(in_place ? 0 : p.tokens * width);
  A* dense_grad_values = scratch.take<A>(to_samples ? p.tokens * width : 0);
  A* dense_keys = scratch.take<A>(in_place || !own_keys ? 0 : p.tokens * width);
  A* dense_grad_keys = scratch.take<A>(own_keys && to_samples ? p.tokens * width : 0);
  GradRows<A> values{}, keys{};

  void run(int64_t image, int64_t head) {
    maps.fill(p);
    values = open(p.value, image, head, dense_values, dense_grad_values);
    keys = own_keys ? open(p.key, image, head, dense_keys, dense_grad_keys) : values;
    int64_t q = 0;
    for (; q + kBatch <= p.queries; q += kBatch) differentiate<kBatch>(image, q, head);
    for (; q < p.queries; ++q) differentiate<1>(image, q, head);
    if (g.grad_value) copy_out(static_cast<T*>(g.grad_value), image, head, dense_grad_values);
    if (own_keys && g.grad_key) copy_out(static_cast<T*>(g.grad_key), image, head, dense_grad_keys);
  }

  // Rows to read and zeroed rows to add gradients to.
  GradRows<A> open(const void* tensor, int64_t image, int64_t head, A* dense, A* dense_grad) const {
    if (to_samples) memset(dense_grad, 0, p.tokens * width * sizeof(A));
    if (in_place) return {static_cast<const A*>(tensor) + row(image, 0, head), dense_grad};
    CopyHead<T, A, D>::call(p, tensor, image, head, 0, p.tokens, dense);
    return {dense, dense_grad};
  }

  int64_t index(int64_t image, int64_t q, int64_t head) const { return (image * p.queries + q) * p.heads + head; }
  const A* locations(int64_t image, int64_t q, int64_t head) const {
    const int64_t* strides = p.location_strides;
    return static_cast<const A*>(p.locations) + image * strides[0] + q * strides[1] + head * strides[2];
  }
  INLINE void prefetch_operands(int64_t image, int64_t q, int64_t head) const {
    const int64_t first = index(image, q, head) * p.channels;
    prefetch(locations(image, q, head), 2 * p.num_levels * p.points);
    prefetch(static_cast<const T*>(g.grad_output) + first, p.channels);
    if (!p.key_aware) return;
    prefetch(static_cast<const T*>(p.query) + first, p.channels);
    prefetch(static_cast<const T*>(p.output) + first, p.channels);
  }

  int64_t row(int64_t image, int64_t token, int64_t head) const {
    return ((image * p.tokens + token) * p.heads + head) * p.channels;
  }
  void copy_out(T* to, int64_t image, int64_t head, const A* grad_rows) {
    for (int64_t n = 0; n < p.tokens; ++n) channels.pack_away(to + row(image, n, head), grad_rows + n * width);
  }

  A dot(const A* x, const A* y) const {
    V sum{};
    for (int c = 0; c < width; c += W) sum += S::load(x + c) * S::load(y + c);
    return S::sum_of(sum)[0];
  }

  template <int batch>
  void differentiate(int64_t image, int64_t q, int64_t head) {
    const int num_points = p.num_levels * p.points;
    const int64_t index = this->index(image, q, head);
    A log_sum_exp[batch] = {}, delta[batch] = {};
    for (int i = 0; i < batch; ++i) {
      const int64_t row = index + int64_t(i) * p.heads;
      channels.unpack(grad_output + i * width, static_cast<const T*>(g.grad_output) + row * p.channels);
      if (!p.key_aware) continue;
      channels.unpack(query + i * width, static_cast<const T*>(p.query) + row * p.channels);
      channels.unpack(output, static_cast<const T*>(p.output) + row * p.channels);
      log_sum_exp[i] = static_cast<const A*>(p.log_sum_exp)[row];
      delta[i] = dot(grad_output + i * width, output);
    }
    for (int first = 0; first < num_points; first += W) {
      const int count = first + W <= num_points ? W : num_points - first;
      Group<A> groups[batch];
      Slopes<A> slopes[batch];
      V scores[batch];
      alignas(kAlign) A weights[batch][W], to_logits[batch][W];  // of the values; of the keys, with the logits' scale
      for (int i = 0; i < batch; ++i) place(maps, locations(image, q + i, head), first, count, &groups[i], &slopes[i]);
      for (int i = 0; i < batch; ++i) {
        A* own_samples = samples + i * W * width;
        if (first == 0 && q + i + batch < p.queries) prefetch_operands(image, q + i + batch, head);
        if (p.key_aware)
          scores[i] = channels.gather(groups[i], keys.rows, stride, own_samples, query + i * width);
        else if (g.grad_attention_weights)
          scores[i] = channels.gather(groups[i], values.rows, stride, own_samples, grad_output + i * width);
      }
      for (int i = 0; i < batch; ++i) {
        A* own_samples = samples + i * W * width;
        const int64_t point = (index + int64_t(i) * p.heads) * num_points + first;
        if (!p.key_aware) {
          memcpy(weights[i], static_cast<const A*>(p.attention_weights) + point, count * sizeof(A));
          if (g.grad_attention_weights)
            memcpy(static_cast<A*>(g.grad_attention_weights) + point, &scores[i], count * sizeof(A));
          continue;
        }
        const V probability =
            Number<V>::exp2(mask_scores(scores[i] * A(score_scale(p.channels)), count) - log_sum_exp[i]);
        S::store(weights[i], probability);
        if (own_keys) channels.gather(groups[i], values.rows, stride, own_samples);
        const V grad_probability = channels.dots(own_samples, grad_output + i * width);
        const V scale = V{} + A(logit_scale(p.channels));
        const V to_logit = scale * logit_gradient<V>(probability, grad_probability, V{} + delta[i]);
        S::store(to_logits[i], to_logit);
        if (!g.grad_query) continue;
        if (own_keys) channels.gather(groups[i], keys.rows, stride, own_samples);
        const V one = V{} + A(1);
        channels.accumulate(grad_query + i * width, first ? &one : nullptr, to_logit, own_samples, count);
      }
      for (int i = 0; i < batch && to_samples; ++i) {
        const int64_t point = (index + int64_t(i) * p.heads) * num_points + first;
        differentiate_samples(groups[i], slopes[i], count, weights[i], to_logits[i], grad_output + i * width,
                              query + i * width, point);
      }
    }
    for (int i = 0; i < batch && g.grad_query; ++i)
      channels.pack_away(static_cast<T*>(g.grad_query) + (index + int64_t(i) * p.heads) * p.channels,
                         grad_query + i * width);
  }

  INLINE void differentiate_samples(const Group<A>& group, const Slopes<A>& slopes, int count, const A* weights,
                                    const A* to_logits, const A* grad_output, const A* query, int64_t point) {
    V grad_x, grad_y;
    if (!p.key_aware) {
      channels.scatter(group, count, slopes, values, stride, weights, grad_output, nullptr, nullptr, grad_x, grad_y);
    } else if (!own_keys) {
      channels.scatter(group, count, slopes, values, stride, weights, grad_output, to_logits, query, grad_x, grad_y);
    } else {
      V key_x, key_y;
      channels.scatter(group, count, slopes, values, stride, weights, grad_output, nullptr, nullptr, grad_x, grad_y);
      channels.scatter(group, count, slopes, keys, stride, to_logits, query, nullptr, nullptr, key_x, key_y);
      grad_x += key_x;
      grad_y += key_y;
    }
    if (!g.grad_locations) return;
    A* to = static_cast<A*>(g.grad_locations) + 2 * point;
    if (count == W) {
      S::store_pairs(to, grad_x, grad_y);
    } else {
      A pairs[2 * W];
      S::store_pairs(pairs, grad_x, grad_y);
      memcpy(to, pairs, 2 * count * sizeof(A));
    }
  }
};

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
  static size_t call(const Problem& p) { return Forward<T, A, D>{p, {0}}.scratch.size; }
};
template <class T, class A, int D>
struct RunForward {
  template <class... Args>
  static void call(const Problem& p, void* scratch, Args... args) {
    Forward<T, A, D>{p, {reinterpret_cast<uintptr_t>(scratch)}}.run(args...);
    Simd<A>::finish_streams();
  }
};
template <class T, class A, int D>
struct BackwardScratch {
  static size_t call(const Problem& p, const Gradients& g) { return Backward<T, A, D>{p, g, {0}}.scratch.size; }
};
template <class T, class A, int D>
struct RunBackward {
  static void call(const Problem& p, const Gradients& g, void* scratch, int64_t image, int64_t head) {
    Backward<T, A, D>{p, g, {reinterpret_cast<uintptr_t>(scratch)}}.run(image, head);
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
