// The forward pass: up to kBatch queries of one head together, step by step, because the steps of one query wait for
// each other and those of several run side by side.
//
// T, A, D, W, S, V as in pass.inl.
#pragma once

#include "pass.inl"

namespace deform_attn {
namespace {

template <class T, class A, int D>
struct Forward : Pass<T, A, D> {
  using Base = Pass<T, A, D>;
  using Base::query_row, Base::token_row, Base::row_of, Base::locations, Base::prefetch_operands;
  using Base::W, Base::p, Base::scratch, Base::channels, Base::levels, Base::width, Base::num_points;
  using typename Base::S, typename Base::V;
  static constexpr int kBatch = W < 4 ? W : 4;
  A* query = scratch.template take<A>(width);
  A* sums = scratch.template take<A>(kBatch * width);
  A* samples = scratch.template take<A>(kBatch * W * width);

  // All heads, with rows as they lie in memory.
  void run(int64_t image, int64_t begin, int64_t end) {
    levels.fill(p);
    const int64_t stride = int64_t(p.heads) * p.channels;
    for (int64_t q = begin; q < end; q += kBatch)
      for (int64_t head = 0; head < p.heads; ++head) {
        const int64_t first = token_row(image, 0, head);
        attend(image, q, end, head, Rows<T>{row_of(p.key, first), stride}, Rows<T>{row_of(p.value, first), stride});
      }
  }

  // One head, with dense rows.
  void run(int64_t image, int64_t head, int64_t begin, int64_t end, const void* keys, const void* values) {
    levels.fill(p);
    for (int64_t q = begin; q < end; q += kBatch)
      attend(image, q, end, head, Rows<A, D>{static_cast<const A*>(keys), width},
             Rows<A, D>{static_cast<const A*>(values), width});
  }

  // The queries from q on, at most kBatch and before `end`.
  template <class HeadRows>
  void attend(int64_t image, int64_t q, int64_t end, int64_t head, HeadRows keys, HeadRows values) {
    if (q + kBatch <= end) return attend<kBatch>(image, q, end, head, keys, values);
    for (; q < end; ++q) attend<1>(image, q, end, head, keys, values);
  }

  template <int batch, class HeadRows>
  void attend(int64_t image, int64_t q, int64_t end, int64_t head, HeadRows keys, HeadRows values) {
    const bool dense = keys.stride() == width;
    const int64_t first_row = query_row(image, q, head);
    OnlineSoftmax<V> softmax[batch];
    const V one = V{} + A(1);

    for (int first = 0; first < num_points; first += W) {
      const int count = this->group_count(first);
      Group<A> groups[batch];
      V weights[batch], factors[batch];
      for (int i = 0; i < batch; ++i)
        place(levels, locations(image, q + i, head), first, count, &groups[i], static_cast<Slopes<A>*>(nullptr));
      for (int i = 0; i < batch; ++i) {
        const int64_t row = first_row + int64_t(i) * p.heads;
        A* own_samples = samples + i * W * width;
        const int64_t later = q + i + 2 * kBatch;  // one at a time: many lines at once would have to queue up
        if (first == 0 && dense && later < end) prefetch_operands(image, later, head);
        if (p.key_aware) {
          channels.unpack(query, row_of(p.query, row));
          weights[i] = this->scores(channels.gather(groups[i], keys, own_samples, query), count);
        } else {
          channels.gather(groups[i], values, own_samples);
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
        A* own_samples = samples + i * W * width;
        if (p.distinct_key()) channels.gather(groups[i], values, own_samples);
        channels.accumulate(sums + i * width, first ? &factors[i] : nullptr, weights[i], own_samples, count);
      }
    }
    if (p.key_aware) normalise(softmax, first_row);
    for (int i = 0; i < batch; ++i) {
      T* output = row_of(p.output, first_row + int64_t(i) * p.heads);
      dense ? channels.pack_away(output, sums + i * width) : channels.pack(output, sums + i * width);
    }
  }

  // Query i's softmax goes into lane i: one logarithm and one division for all.
  template <int batch>
  INLINE void normalise(const OnlineSoftmax<V> (&softmax)[batch], int64_t first_row) {
    const V one = V{} + A(1);
    OnlineSoftmax<V> totals{V{}, one};
    for (int i = 0; i < batch; ++i) {
      totals.max[i] = softmax[i].max[0];
      totals.sum[i] = softmax[i].sum[0];
    }
    const V log_sum_exp = totals.log_sum_exp(), normalisers = one / totals.sum;
    for (int i = 0; i < batch; ++i) {
      if (p.log_sum_exp) static_cast<A*>(p.log_sum_exp)[first_row + int64_t(i) * p.heads] = log_sum_exp[i];
      A* sum = sums + i * width;
      for (int c = 0; c < width; c += W) S::store(sum + c, S::load(sum + c) * normalisers[i]);
    }
  }
};

}  // namespace
}  // namespace deform_attn
