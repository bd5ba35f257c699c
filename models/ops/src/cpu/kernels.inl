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

// Where a group of points of one query and head samples: four tokens and their bilinear weights.
template <class A>
struct Group {
  static constexpr int W = Simd<A>::width;
  int count;  // of points, at most W; the lanes after them have weight 0
  alignas(kAlign) typename Simd<A>::Int token[4][W];
  alignas(kAlign) A weight[4][W];
};

// Derivatives of the weights with respect to the points' locations.
template <class A>
struct Slopes {
  alignas(kAlign) A x[4][Simd<A>::width], y[4][Simd<A>::width];
};

// The group that starts at point `first`, and where slopes is not null, these too.
template <class A>
INLINE void place(const Maps<A>& maps, const A* locations, int first, int num_points, Group<A>* group,
                  Slopes<A>* slopes) {
  using S = Simd<A>;
  using V = typename S::V;
  using I = typename S::I;
  constexpr int W = S::width;
  group->count = num_points - first < W ? num_points - first : W;
  V location_x, location_y;
  if (group->count == W) {
    S::load_pairs(locations + 2 * first, location_x, location_y);
  } else {
    A padded[2 * W];
    for (int i = 0; i < 2 * W; ++i)
      padded[i] = i < 2 * group->count ? locations[2 * first + i] : std::numeric_limits<A>::quiet_NaN();
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

  // samples[k] = the bilinear sample at point k of rows that lie `stride` apart.
  template <class T>
  void gather(const Group<A>& group, const T* rows, int64_t stride, A* samples) const {
    for (int k = 0; k < group.count; ++k) {
      const T *r0 = rows + group.token[0][k] * stride, *r1 = rows + group.token[1][k] * stride;
      const T *r2 = rows + group.token[2][k] * stride, *r3 = rows + group.token[3][k] * stride;
      const A w0 = group.weight[0][k], w1 = group.weight[1][k], w2 = group.weight[2][k], w3 = group.weight[3][k];
      for (int c = 0; c < padded(); c += W) {
        const V sample = w0 * load(r0, c) + w1 * load(r1, c) + (w2 * load(r2, c) + w3 * load(r3, c));
        S::store(samples + int64_t(k) * padded() + c, sample);
      }
    }
  }

  // Lane k = x . samples[k].
  INLINE V dots(const A* samples, const A* x) const {
    V partial[W];
    for (int k = 0; k < W; ++k) {
      partial[k] = V{};
      for (int c = 0; c < padded(); c += W) partial[k] += S::load(x + c) * S::load(samples + int64_t(k) * padded() + c);
    }
    return S::row_sums(partial);
  }

  // sum = sum * factor + weights . samples
  INLINE void accumulate(A* sum, V factor, V weight, const A* samples, int count) const {
    alignas(kAlign) A weights[W];
    S::store(weights, weight);
    for (int c = 0; c < padded(); c += W) {
      V even = S::load(sum + c) * factor, odd{};
      int k = 0;
      for (; k + 1 < count; k += 2) {
        even += weights[k] * S::load(samples + int64_t(k) * padded() + c);
        odd += weights[k + 1] * S::load(samples + int64_t(k + 1) * padded() + c);
      }
      if (k < count) even += weights[k] * S::load(samples + int64_t(k) * padded() + c);
      S::store(sum + c, even + odd);
    }
  }

  // The gradient a[k] * x + b[k] * y of samples[k] goes to the rows that it was sampled from, and to the location of
  // the point: returns its x in lane k of grad_x, and so y. Without y, the gradient is a[k] * x.
  void scatter(const Group<A>& group, const Slopes<A>& slopes, const A* rows, A* grad_rows, int64_t stride, const A* a,
               const A* x, const A* b, const A* y, V& grad_x, V& grad_y) const {
    V partial_x[W] = {}, partial_y[W] = {};
    for (int k = 0; k < group.count; ++k) {
      int64_t offset[4];
      for (int i = 0; i < 4; ++i) offset[i] = group.token[i][k] * stride;
      for (int c = 0; c < padded(); c += W) {
        V gradient = a[k] * S::load(x + c);
        if (y) gradient += b[k] * S::load(y + c);
        V along_x{}, along_y{};
        for (int i = 0; i < 4; ++i) {
          const V row = S::load(rows + offset[i] + c);
          along_x += slopes.x[i][k] * row;
          along_y += slopes.y[i][k] * row;
        }
        partial_x[k] += gradient * along_x;
        partial_y[k] += gradient * along_y;
        for (int i = 0; i < 4; ++i) {  // corners at a border may be the same row: one after the other
          A* grad = grad_rows + offset[i] + c;
          S::store(grad, S::load(grad) + group.weight[i][k] * gradient);
        }
      }
    }
    grad_x = S::row_sums(partial_x);
    grad_y = S::row_sums(partial_y);
  }
};

// Rows of one head, one a token, that lie `stride` elements apart.
template <class T>
struct Rows {
  const T* first;
  int64_t stride;
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
  static constexpr int W = S::width, kBatch = 4;
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
        attend(image, q, end - q, head, Rows<T>{static_cast<const T*>(p.key) + first, stride},
               Rows<T>{static_cast<const T*>(p.value) + first, stride});
      }
  }

  // One head, with dense rows.
  void run(int64_t image, int64_t head, int64_t begin, int64_t end, const void* keys, const void* values) {
    maps.fill(p);
    for (int64_t q = begin; q < end; q += kBatch) {
      for (int64_t ahead = q + 2 * kBatch; ahead < q + 3 * kBatch && ahead < end; ++ahead) {
        const int64_t row = index(image, ahead, head);
        prefetch(locations(image, ahead, head), 2 * p.num_levels * p.points);
        prefetch(static_cast<const T*>(p.output) + row * p.channels, p.channels);
        if (p.key_aware) prefetch(static_cast<const T*>(p.query) + row * p.channels, p.channels);
      }
      attend(image, q, end - q, head, Rows<A>{static_cast<const A*>(keys), width},
             Rows<A>{static_cast<const A*>(values), width});
    }
  }

  int64_t index(int64_t image, int64_t q, int64_t head) const { return (image * p.queries + q) * p.heads + head; }
  const A* locations(int64_t image, int64_t q, int64_t head) const {
    const int64_t* strides = p.location_strides;
    return static_cast<const A*>(p.locations) + image * strides[0] + q * strides[1] + head * strides[2];
  }

  template <class Row>
  INLINE void attend(int64_t image, int64_t q, int64_t left, int64_t head, Rows<Row> key, Rows<Row> value) {
    const int batch = left < kBatch ? left : kBatch, num_points = p.num_levels * p.points;
    const int64_t index = this->index(image, q, head);
    OnlineSoftmax<V> softmax[kBatch];
    for (int i = 0; i < batch; ++i) softmax[i] = {V{} - INFINITY, V{}};
    for (int c = 0; c < batch * width; c += W) S::store(sums + c, V{});

    for (int first = 0; first < num_points; first += W) {
      Group<A> groups[kBatch];
      V weights[kBatch], factors[kBatch];
      for (int i = 0; i < batch; ++i)
        place(maps, locations(image, q + i, head), first, num_points, &groups[i], static_cast<Slopes<A>*>(nullptr));
      for (int i = 0; i < batch; ++i)
        channels.gather(groups[i], key.first, key.stride, samples + i * W * width);
      for (int i = 0; i < batch; ++i) {
        const int64_t row = index + int64_t(i) * p.heads;
        if (p.key_aware) {
          channels.unpack(query, static_cast<const T*>(p.query) + row * p.channels);
          const V scores = channels.dots(samples + i * W * width, query) * A(score_scale(p.channels));
          weights[i] = mask_scores(scores, groups[i].count);
        } else {
          weights[i] = S::load_some(static_cast<const A*>(p.attention_weights) + row * num_points + first,
                                    groups[i].count);
        }
      }
      for (int i = 0; i < batch; ++i) {
        factors[i] = V{} + A(1);
        if (!p.key_aware) continue;
        factors[i] = softmax[i].raise(S::max_of(weights[i]));
        weights[i] = Number<V>::exp2(weights[i] - softmax[i].max);
        softmax[i].sum += S::sum_of(weights[i]);
      }
      for (int i = 0; i < batch; ++i) {
        if (p.key_aware && key.first != value.first)
          channels.gather(groups[i], value.first, value.stride, samples + i * W * width);
        channels.accumulate(sums + i * width, factors[i], weights[i], samples + i * W * width, groups[i].count);
      }
    }
    for (int i = 0; i < batch; ++i) {
      const int64_t row = index + int64_t(i) * p.heads;
      if (p.key_aware) {
        static_cast<A*>(p.log_sum_exp)[row] = softmax[i].log_sum_exp()[0];
        const V normaliser = A(1) / softmax[i].sum;
        for (int c = 0; c < width; c += W) S::store(sums + i * width + c, S::load(sums + i * width + c) * normaliser);
      }
      channels.pack(static_cast<T*>(p.output) + row * p.channels, sums + i * width);
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
    const int64_t stride = int64_t(p.heads) * p.channels, ahead = 16;
    for (int64_t n = begin; n < end; ++n) {
      if (n + ahead < end) prefetch(from + (n + ahead) * stride, p.channels);
      channels.unpack(static_cast<A*>(rows) + n * channels.padded(), from + n * stride);
    }
  }
};

// The rows of one head of one image with their gradients: dense copies, or the tensors themselves.
template <class A>
struct GradRows {
  const A* rows;
  A* grads;
};

template <class T, class A, int D>
struct Backward {
  using S = Simd<A>;
  using V = typename S::V;
  static constexpr int W = S::width, kAhead = 4;
  const Problem& p;
  const Gradients& g;
  Scratch scratch;
  Channels<A, D> channels{p.channels};
  Maps<A> maps{p, scratch};
  int width = channels.padded();
  bool own_keys = p.key_aware && p.key != p.value;
  bool to_samples = g.grad_value || g.grad_key || g.grad_locations;
  // Few queries do not repay dense copies of the tokens.
  bool in_place = std::is_same<T, A>::value && width == p.channels && !repays_copy(p) && g.grad_value &&
                  (!own_keys || g.grad_key);
  int64_t stride = in_place ? int64_t(p.heads) * p.channels : width;
  A* query = scratch.take<A>(width);
  A* grad_query = scratch.take<A>(width);
  A* grad_output = scratch.take<A>(width);
  A* output = scratch.take<A>(width);
  A* samples = scratch.take<A>(W * width);
  A* dense_values = scratch.take<A>(in_place ? 0 : p.tokens * width);
  A* dense_grad_values = scratch.take<A>(in_place || !to_samples ? 0 : p.tokens * width);
  A* dense_keys = scratch.take<A>(in_place || !own_keys ? 0 : p.tokens * width);
  A* dense_grad_keys = scratch.take<A>(in_place || !own_keys || !to_samples ? 0 : p.tokens * width);
  GradRows<A> values{}, keys{};

  void run(int64_t image, int64_t head) {
    maps.fill(p);
    values = open(p.value, g.grad_value, image, head, dense_values, dense_grad_values);
    keys = own_keys ? open(p.key, g.grad_key, image, head, dense_keys, dense_grad_keys) : values;
    for (int64_t q = 0; q < p.queries; ++q) {
      if (q + kAhead < p.queries) prefetch_operands(image, q + kAhead, head);
      differentiate(image, q, head);
    }
    if (in_place) return;
    if (g.grad_value) copy_out(static_cast<T*>(g.grad_value), image, head, dense_grad_values);
    if (own_keys && g.grad_key) copy_out(static_cast<T*>(g.grad_key), image, head, dense_grad_keys);
  }

  // Rows to read and zeroed rows to add gradients to; the caller has zeroed the tensors.
  GradRows<A> open(const void* tensor, void* grad, int64_t image, int64_t head, A* dense, A* dense_grad) const {
    if (in_place) {
      return {static_cast<const A*>(tensor) + row(image, 0, head), static_cast<A*>(grad) + row(image, 0, head)};
    }
    CopyHead<T, A, D>::call(p, tensor, image, head, 0, p.tokens, dense);
    if (to_samples) memset(dense_grad, 0, p.tokens * width * sizeof(A));
    return {dense, dense_grad};
  }

  const A* locations(int64_t image, int64_t q, int64_t head) const {
    const int64_t* strides = p.location_strides;
    return static_cast<const A*>(p.locations) + image * strides[0] + q * strides[1] + head * strides[2];
  }
  INLINE void prefetch_operands(int64_t image, int64_t q, int64_t head) const {
    const int64_t index = (image * p.queries + q) * p.heads + head, num_points = p.num_levels * p.points;
    prefetch(locations(image, q, head), 2 * num_points);
    prefetch(static_cast<const T*>(g.grad_output) + index * p.channels, p.channels);
    if (p.key_aware) {
      prefetch(static_cast<const T*>(p.query) + index * p.channels, p.channels);
      prefetch(static_cast<const T*>(p.output) + index * p.channels, p.channels);
    }
    if (g.grad_query) prefetch(static_cast<const T*>(g.grad_query) + index * p.channels, p.channels);
    if (g.grad_locations) prefetch(static_cast<const A*>(g.grad_locations) + 2 * index * num_points, 2 * num_points);
  }

  int64_t row(int64_t image, int64_t token, int64_t head) const {
    return ((image * p.tokens + token) * p.heads + head) * p.channels;
  }
  void copy_out(T* to, int64_t image, int64_t head, const A* grad_rows) {
    for (int64_t n = 0; n < p.tokens; ++n) channels.pack(to + row(image, n, head), grad_rows + n * channels.padded());
  }

  A delta() const {
    V sum{};
    for (int c = 0; c < width; c += W) sum += S::load(grad_output + c) * S::load(output + c);
    return S::sum_of(sum)[0];
  }

  void differentiate(int64_t image, int64_t q, int64_t head) {
    const int64_t index = (image * p.queries + q) * p.heads + head;
    const A* locations = this->locations(image, q, head);
    const int num_points = p.num_levels * p.points;
    channels.unpack(grad_output, static_cast<const T*>(g.grad_output) + index * p.channels);
    A log_sum_exp = 0, delta_output = 0;
    if (p.key_aware) {
      channels.unpack(query, static_cast<const T*>(p.query) + index * p.channels);
      channels.unpack(output, static_cast<const T*>(p.output) + index * p.channels);
      log_sum_exp = static_cast<const A*>(p.log_sum_exp)[index];
      delta_output = delta();
      memset(grad_query, 0, width * sizeof(A));
    }
    for (int first = 0; first < num_points; first += W) {
      Group<A> group;
      Slopes<A> slopes;
      place(maps, locations, first, num_points, &group, &slopes);
      const int64_t point = index * num_points + first;
      alignas(kAlign) A weights[W], to_logits[W];  // of the values; of the keys, times the scale of query . key
      if (p.key_aware) {
        channels.gather(group, keys.rows, stride, samples);
        const V scores = mask_scores(channels.dots(samples, query) * A(score_scale(p.channels)), group.count);
        const V probability = Number<V>::exp2(scores - log_sum_exp);
        S::store(weights, probability);
        if (own_keys) channels.gather(group, values.rows, stride, samples);
        const V grad_probability = channels.dots(samples, grad_output);
        const V to_logit = logit_gradient<V>(probability, grad_probability, V{} + delta_output);
        S::store(to_logits, to_logit * A(logit_scale(p.channels)));
        if (g.grad_query) {
          if (own_keys) channels.gather(group, keys.rows, stride, samples);
          channels.accumulate(grad_query, V{} + A(1), S::load(to_logits), samples, group.count);
        }
      } else {
        memcpy(weights, static_cast<const A*>(p.attention_weights) + point, group.count * sizeof(A));
        if (g.grad_attention_weights) {
          channels.gather(group, values.rows, stride, samples);
          const V grads = channels.dots(samples, grad_output);
          memcpy(static_cast<A*>(g.grad_attention_weights) + point, &grads, group.count * sizeof(A));
        }
      }
      if (to_samples) differentiate_samples(group, slopes, weights, to_logits, point);
    }
    if (g.grad_query) channels.pack(static_cast<T*>(g.grad_query) + index * p.channels, grad_query);
  }

  void differentiate_samples(const Group<A>& group, const Slopes<A>& slopes, const A* weights, const A* to_logits, int64_t point) {
    V grad_x, grad_y;
    if (!p.key_aware) {
      channels.scatter(group, slopes, values.rows, values.grads, stride, weights, grad_output, nullptr, nullptr, grad_x, grad_y);
    } else if (!own_keys) {
      channels.scatter(group, slopes, values.rows, values.grads, stride, weights, grad_output, to_logits, query, grad_x, grad_y);
    } else {
      V key_x, key_y;
      channels.scatter(group, slopes, values.rows, values.grads, stride, weights, grad_output, nullptr, nullptr, grad_x, grad_y);
      channels.scatter(group, slopes, keys.rows, keys.grads, stride, to_logits, query, nullptr, nullptr, key_x, key_y);
      grad_x += key_x;
      grad_y += key_y;
    }
    if (!g.grad_locations) return;
    A* to = static_cast<A*>(g.grad_locations) + 2 * point;
    if (group.count == W) {
      S::store_pairs(to, grad_x, grad_y);
    } else {
      A pairs[2 * W];
      S::store_pairs(pairs, grad_x, grad_y);
      memcpy(to, pairs, 2 * group.count * sizeof(A));
    }
  }
};

// Calls operation with the types of a problem: Operation<T, A, D>.
template <template <class, class, int> class Operation, class A, class T, class... Args>
auto with_channels(const Problem& p, Args&&... args) {
  constexpr int W = Simd<A>::width;
  if (W > 2 && p.channels == 32) return Operation<T, A, W <= 32 ? 32 : 0>::call(p, args...);
  if (W > 2 && p.channels == 16) return Operation<T, A, W <= 16 ? 16 : 0>::call(p, args...);
  return Operation<T, A, 0>::call(p, args...);
}

template <template <class, class, int> class Operation, class... Args>
auto with_types(const Problem& p, Args&&... args) {
  if (p.dtype == DType::Float64) return with_channels<Operation, double, double>(p, args...);
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
