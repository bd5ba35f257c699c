// The backward pass: all queries of one head of one image, up to kBatch together as in the forward pass. It goes over
// the points once: probabilities come from the saved log-sum-exp.
//
// T, A, D, W, S, V as in pass.inl.
#pragma once

#include "pass.inl"

namespace deform_attn {
namespace {

template <class T, class A, int D>
struct Backward : Pass<T, A, D> {
  using Base = Pass<T, A, D>;
  using Base::query_row, Base::token_row, Base::row_of, Base::locations;
  using Base::W, Base::p, Base::scratch, Base::channels, Base::levels, Base::width, Base::num_points;
  using typename Base::S, typename Base::V;
  static constexpr int kBatch = 4;
  const Gradients& g;
  bool distinct_key = p.distinct_key();
  bool to_samples = g.grad_value || g.grad_key || g.grad_locations;
  // Few queries do not repay dense copies of the tokens. Gradients are always summed up densely: in the tensor itself
  // one head's rows fall into few sets of a cache.
  bool in_place = std::is_same<T, A>::value && width == p.channels && !repays_copy(p);
  A* query = scratch.template take<A>(kBatch * width);
  A* grad_query = scratch.template take<A>(kBatch * width);
  A* grad_output = scratch.template take<A>(kBatch * width);
  A* output = scratch.template take<A>(width);
  A* samples = scratch.template take<A>(kBatch * W * width);
  A* dense_values = scratch.template take<A>(in_place ? 0 : p.tokens * width);
  A* dense_grad_values = scratch.template take<A>(to_samples ? p.tokens * width : 0);
  A* dense_keys = scratch.template take<A>(in_place || !distinct_key ? 0 : p.tokens * width);
  A* dense_grad_keys = scratch.template take<A>(distinct_key && to_samples ? p.tokens * width : 0);
  GradRows<A> values{}, keys{};

  void run(int64_t image, int64_t head) {
    levels.fill(p);
    values = open(p.value, image, head, dense_values, dense_grad_values);
    keys = distinct_key ? open(p.key, image, head, dense_keys, dense_grad_keys) : values;
    int64_t q = 0;
    for (; q + kBatch <= p.queries; q += kBatch) differentiate<kBatch>(image, q, head);
    for (; q < p.queries; ++q) differentiate<1>(image, q, head);
    if (g.grad_value) copy_out(g.grad_value, image, head, dense_grad_values);
    if (distinct_key && g.grad_key) copy_out(g.grad_key, image, head, dense_grad_keys);
  }

  // Rows to read and zeroed rows to add gradients to.
  GradRows<A> open(const void* tensor, int64_t image, int64_t head, A* dense, A* dense_grad) const {
    if (to_samples) memset(dense_grad, 0, p.tokens * width * sizeof(A));
    if (in_place) {
      const A* first = static_cast<const A*>(tensor) + token_row(image, 0, head) * p.channels;
      return {{first, int64_t(p.heads) * p.channels}, dense_grad};
    }
    CopyHead<T, A, D>::call(p, tensor, image, head, 0, p.tokens, dense);
    return {{dense, width}, dense_grad};
  }
  void copy_out(void* to, int64_t image, int64_t head, const A* grad_rows) const {
    for (int64_t n = 0; n < p.tokens; ++n)
      channels.pack_away(row_of(to, token_row(image, n, head)), grad_rows + n * width);
  }

  INLINE void prefetch_operands(int64_t image, int64_t q, int64_t head) const {
    Base::prefetch_operands(image, q, head);
    const int64_t row = query_row(image, q, head);
    prefetch(row_of(g.grad_output, row), p.channels);
    if (p.key_aware) prefetch(row_of(p.output, row), p.channels);
  }

  template <int batch>
  void differentiate(int64_t image, int64_t q, int64_t head) {
    const int64_t first_row = query_row(image, q, head);
    A log_sum_exp[batch] = {}, delta[batch] = {};
    for (int i = 0; i < batch; ++i) {
      const int64_t row = first_row + int64_t(i) * p.heads;
      channels.unpack(grad_output + i * width, row_of(g.grad_output, row));
      if (!p.key_aware) continue;
      channels.unpack(query + i * width, row_of(p.query, row));
      channels.unpack(output, row_of(p.output, row));
      log_sum_exp[i] = static_cast<const A*>(p.log_sum_exp)[row];
      delta[i] = channels.dot(grad_output + i * width, output);
    }
    for (int first = 0; first < num_points; first += W) {
      const int count = this->group_count(first);
      Group<A> groups[batch];
      Slopes<A> slopes[batch];
      V products[batch];  // of the samples: the query with the keys, or the output's gradient with the values
      alignas(kAlign) A weights[batch][W], to_logits[batch][W];  // of the values; of the keys, with the logits' scale
      for (int i = 0; i < batch; ++i)
        place(levels, locations(image, q + i, head), first, count, &groups[i], &slopes[i]);
      for (int i = 0; i < batch; ++i) {
        A* own_samples = samples + i * W * width;
        if (first == 0 && q + i + batch < p.queries) prefetch_operands(image, q + i + batch, head);
        if (p.key_aware)
          products[i] = channels.gather(groups[i], keys.rows, own_samples, query + i * width);
        else if (g.grad_attention_weights)
          products[i] = channels.gather(groups[i], values.rows, own_samples, grad_output + i * width);
      }
      for (int i = 0; i < batch; ++i) {
        A* own_samples = samples + i * W * width;
        const int64_t point = (first_row + int64_t(i) * p.heads) * num_points + first;
        if (!p.key_aware) {
          memcpy(weights[i], static_cast<const A*>(p.attention_weights) + point, count * sizeof(A));
          if (g.grad_attention_weights)
            memcpy(static_cast<A*>(g.grad_attention_weights) + point, &products[i], count * sizeof(A));
          continue;
        }
        const V probability = Number<V>::exp2(this->scores(products[i], count) - log_sum_exp[i]);
        S::store(weights[i], probability);
        if (distinct_key) channels.gather(groups[i], values.rows, own_samples);
        const V grad_probability = channels.dots(own_samples, grad_output + i * width);
        const V scale = V{} + A(logit_scale(p.channels));
        const V to_logit = scale * logit_gradient<V>(probability, grad_probability, V{} + delta[i]);
        S::store(to_logits[i], to_logit);
        if (!g.grad_query) continue;
        if (distinct_key) channels.gather(groups[i], keys.rows, own_samples);
        const V one = V{} + A(1);
        channels.accumulate(grad_query + i * width, first ? &one : nullptr, to_logit, own_samples, count);
      }
      for (int i = 0; i < batch && to_samples; ++i) {
        const int64_t point = (first_row + int64_t(i) * p.heads) * num_points + first;
        differentiate_samples(groups[i], slopes[i], count, weights[i], to_logits[i], grad_output + i * width,
                              query + i * width, point);
      }
    }
    for (int i = 0; i < batch && g.grad_query; ++i)
      channels.pack_away(row_of(g.grad_query, first_row + int64_t(i) * p.heads), grad_query + i * width);
  }

  INLINE void differentiate_samples(const Group<A>& group, const Slopes<A>& slopes, int count, const A* weights,
                                    const A* to_logits, const A* grad_output, const A* query, int64_t point) {
    V grad_x, grad_y;
    if (!p.key_aware) {
      channels.scatter(group, count, slopes, values, weights, grad_output, nullptr, nullptr, grad_x, grad_y);
    } else if (!distinct_key) {
      channels.scatter(group, count, slopes, values, weights, grad_output, to_logits, query, grad_x, grad_y);
    } else {
      V key_x, key_y;
      channels.scatter(group, count, slopes, values, weights, grad_output, nullptr, nullptr, grad_x, grad_y);
      channels.scatter(group, count, slopes, keys, to_logits, query, nullptr, nullptr, key_x, key_y);
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

}  // namespace
}  // namespace deform_attn
