// The two passes of linear attention forward over the tokens of a task.
#pragma once

#include "relu_linear_attention_ahead.h"
#include "relu_linear_attention_normaliser.h"
#include "relu_linear_attention_products.h"
#include "relu_linear_attention_work.h"

namespace {

using evit::AttentionSource;

// Calls f(Width<W>{}) with the width of heads where there are kernels of their own for it, of the
// widths that networks have, or with 0. There, all steps and all counts are constants: what fetches
// the next block ran as long as the products of this one before.
template <class S, class F>
EVIT_INLINE auto with_width(int64_t width, F&& f) {
  if constexpr (kSame<S, float>) {
    if (width == 16) return f(Width<16>{});
    if (width == 32) return f(Width<32>{});
  }
  return f(Width<0>{});
}

// Into the matrices of a task's heads, `first` on. With a width, keys and values are multiplied
// where they lie, and their sums come out transposed.
template <class S, int W, bool TwoSteps>
void sum_keys_in(const Work<Acc<S>>& w, const Task& task, Acc<S>* scratch, Acc<S>* first) {
  using A = Acc<S>;
  const AttentionSource& source = *task.group->source;
  A* keys = scratch;
  A* values = scratch + w.block;
  clear(first, task.group->count * w.matrix);
  const Rows<const S> key_rows(source.k, task), value_rows(source.v, task);
  const int64_t width = W > 0 ? W : w.width, padded = W > 0 ? W : w.padded;
  const int64_t matrix = (width + 1) * padded, step = w.step();
  Ahead<S, W, 2, 0, TwoSteps> next(w, task, step, source.k, source.v);
  for_each_block(task, step, [&](int64_t head, int64_t token, int64_t tokens) {
    next.begin(head, token);
    A* sums = first + head * matrix;
    A* z = sums + width * padded;
    const S* key = key_rows.at_token(head, token);
    const S* value = value_rows.at_token(head, token);
    if constexpr (W > 0) {
      next.during(w.streamed, [&](auto between) {
        add_outer_directly(key, key_rows.stride, value, value_rows.stride, tokens, width, sums, z,
                           between);
      });
    } else {
      pack(key, key_rows.stride, tokens, width, padded, keys,
           [](auto x, int64_t, int64_t) { return positive_part(x); });
      add_token_sums<A>(keys, nullptr, whole_tokens(tokens), padded, z);
      pack(value, value_rows.stride, tokens, width, padded, values,
           [](auto x, int64_t, int64_t) { return x; });
      next.during(w.streamed, [&](auto between) {
        add_outer<A>(keys, values, kBlockSteps<A>, tokens, width, padded, sums, between);
      });
    }
  });
}

template <class S, int W>
void sum_keys(const Work<Acc<S>>& w, const Task& task, Acc<S>* scratch, Acc<S>* first) {
  with_steps<W>([&](auto two) { sum_keys_in<S, W, two.value>(w, task, scratch, first); });
}

// Past: the output goes past the caches.
template <class S, int W, bool Past, bool TwoSteps>
void attend_in(const Work<Acc<S>>& w, const Task& task, Acc<S>* scratch, const Acc<S>* totals,
               const Acc<S>* lifts) {
  using A = Acc<S>;
  const AttentionSource& source = *task.group->source;
  A* queries = scratch;
  A* products = scratch + w.block;
  Normalisers<A> n;
  const A* const first = totals + w.offset(task, 0, 0);
  const A* const first_lift = lifts + w.index(task, 0);
  const Rows<const S> query_rows(source.q, task);
  const Rows<S> output_rows(source.output, task);
  const int64_t width = W > 0 ? W : w.width, padded = W > 0 ? W : w.padded;
  const int64_t matrix_size = (width + 1) * padded, step = w.step();
  Ahead<S, W, 1, Past ? 0 : 1, TwoSteps> next(w, task, step, source.q, source.output);
  for_each_block(task, step, [&](int64_t head, int64_t token, int64_t tokens) {
    next.begin(head, token);
    const A* matrix = first + head * matrix_size;
    const A* z = matrix + width * padded;
    const int64_t whole = whole_tokens(tokens);
    const S* query = query_rows.at_token(head, token);
    const A lift = first_lift[head];
    bool packed = false;
    if constexpr (W > 0) {
      packed = whole == tokens && lift == 1;
      if (packed)
        pack_with_products<A>(query, query_rows.stride, tokens, width, z, queries, n.value);
    }
    if (!packed) {
      pack(query, query_rows.stride, tokens, width, padded, queries,
           [=](auto x, int64_t, int64_t) { return positive_part(x) * lift; });
      inner_products<A>(queries, z, kRowSteps<A>, whole, padded, n.value);
    }
    normalise<A>(static_cast<A>(w.p.eps) * lift, whole, n);
    S* output = output_rows.at_token(head, token);
    if (width == padded && whole == tokens && !n.scaled) {
      next.during(w.streamed, [&](auto between) {
        multiply_into<Past>(
            queries, matrix, tokens, width, output, output_rows.stride,
            [&](auto x, int64_t t) { return x * n.inverse[t]; }, between);
      });
      return;
    }
    next.during(w.streamed, [&](auto between) {
      multiply<A>(queries, matrix, whole, width, padded, products, between);
    });
    unpack(products, tokens, width, output, output_rows.stride, false,
           [&](auto x, int64_t t, int64_t) { return n.divide(x, t); });
  });
}

template <class S, int W>
void attend(const Work<Acc<S>>& w, const Task& task, Acc<S>* scratch, const Acc<S>* totals,
            const Acc<S>* lifts) {
  with_steps<W>([&](auto two) {
    if constexpr (kStoresPast<S, kLanes<Acc<S>>>)
      if (stores_past<S>(w, task.group->source->output))
        return attend_in<S, W, true, two.value>(w, task, scratch, totals, lifts);
    attend_in<S, W, false, two.value>(w, task, scratch, totals, lifts);
  });
}

}  // namespace
