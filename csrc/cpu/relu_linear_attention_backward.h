// The two passes of linear attention backward over the tokens of a task.
#pragma once

#include "relu_linear_attention_ahead.h"
#include "relu_linear_attention_normaliser.h"
#include "relu_linear_attention_products.h"
#include "relu_linear_attention_work.h"

namespace {

using evit::AttentionSource;

bool wants_keys(const AttentionSource& source) {
  return source.grad_k.data != nullptr || source.grad_v.data != nullptr;
}

// dq, and the partial sums of dM and dz. `turned` holds the transposes of M, and z.
template <class S>
void differentiate_queries(const Work<Acc<S>>& w, const Task& task, Acc<S>* scratch,
                           const Acc<S>* turned, Acc<S>* partials) {
  using A = Acc<S>;
  constexpr int L = kLanes<A>;
  const AttentionSource& source = *task.group->source;
  const bool wants_q = source.grad_q.data != nullptr;
  const bool wants_u = wants_q || source.grad_k.data != nullptr;
  if (!wants_q && !wants_keys(source)) return;
  if (wants_keys(source))
    clear(partials + w.offset(task, 0, task.split), task.group->count * w.matrix);
  A* queries = scratch;
  A* grads = scratch + w.block;
  A* products = scratch + 2 * w.block;
  Normalisers<A> n;
  A slope[kBlockTokens];  // dd
  const bool past = stores_past<S>(w, source.grad_q);
  const int64_t step = w.step();
  Ahead<S, 0, 2, 1> next(w, task, step, source.q, source.output, source.grad_q);
  for_each_block(task, step, [&](int64_t head, int64_t token, int64_t tokens) {
    next.begin(head, token);
    const A* matrix = turned + w.offset(task, head, 0);
    const A* z = matrix + w.width * w.padded;
    const int64_t whole = whole_tokens(tokens);
    pack(at<const S>(source.q, task, head, token), source.q.token_stride, tokens, w.width, w.padded,
         queries, [](auto x, int64_t, int64_t) { return positive_part(x); });
    inner_products<A>(queries, z, kRowSteps<A>, whole, w.padded, n.value);
    normalise<A>(static_cast<A>(w.p.eps), whole, n);
    pack(at<const S>(source.output, task, head, token), source.output.token_stride, tokens, w.width,
         w.padded, grads, [&](auto x, int64_t t, int64_t) { return n.divide(x, t); });
    if (wants_u) {
      next.during(w.streamed, [&](auto between) {
        multiply<A>(grads, matrix, whole, w.width, w.padded, products, between);
      });
      for (int64_t c = w.width; c < w.padded; ++c)
        for (int64_t t = 0; t < tokens; ++t) products[position<A>(t, c)] = 0;
      inner_products<A>(queries, products, kBlockSteps<A>, whole, w.padded, slope);
      // Divided, not multiplied by the inverse: u carries the inverse's rounding error once, dd
      // must not carry it twice, for in dq the two cancel.
      for (int64_t t = 0; t < whole; t += L) {
        const Vector<A, L> den = load<L>(n.value + t), zero = {};
        store<L>(slope + t, den == zero ? zero : -load<L>(slope + t) / den);
      }
    }
    if (wants_q)
      unpack(products, tokens, w.width, at<S>(source.grad_q, task, head, token),
             source.grad_q.token_stride, past, [&](auto u, int64_t t, int64_t c) {
               constexpr int l = sizeof(u) / sizeof(A);
               return where_positive(load<l>(queries + position<A>(t, c)),
                                     u + load<l>(z + c) * slope[t]);
             });
    if (!wants_keys(source)) return;
    A* sums = partials + w.offset(task, head, task.split);
    next.during(w.streamed && !wants_u, [&](auto between) {
      add_outer<A>(queries, grads, kBlockSteps<A>, tokens, w.width, w.padded, sums, between);
    });
    if (wants_u) add_token_sums<A>(queries, slope, whole, w.padded, sums + w.width * w.padded);
  });
}

// dk and dv from dM, dz and the transposes of dM.
template <class S>
void differentiate_keys(const Work<Acc<S>>& w, const Task& task, Acc<S>* scratch,
                        const Acc<S>* totals, const Acc<S>* turned) {
  using A = Acc<S>;
  const AttentionSource& source = *task.group->source;
  if (!wants_keys(source)) return;
  A* keys = scratch;
  A* values = scratch + w.block;
  A* products = scratch + 2 * w.block;
  const bool past_k = stores_past<S>(w, source.grad_k);
  const bool past_v = stores_past<S>(w, source.grad_v);
  const int64_t step = w.step();
  Ahead<S, 0, 2, 2> next(w, task, step, source.k, source.v, source.grad_k, source.grad_v);
  for_each_block(task, step, [&](int64_t head, int64_t token, int64_t tokens) {
    next.begin(head, token);
    const int64_t whole = whole_tokens(tokens);
    pack(at<const S>(source.k, task, head, token), source.k.token_stride, tokens, w.width, w.padded,
         keys, [](auto x, int64_t, int64_t) { return positive_part(x); });
    if (source.grad_k.data != nullptr) {
      const A* matrix = turned + w.offset(task, head, 0);
      const A* slope = matrix + w.width * w.padded;
      pack(at<const S>(source.v, task, head, token), source.v.token_stride, tokens, w.width,
           w.padded, values, [](auto x, int64_t, int64_t) { return x; });
      next.during(w.streamed, [&](auto between) {
        multiply<A>(values, matrix, whole, w.width, w.padded, products, between);
      });
      unpack(products, tokens, w.width, at<S>(source.grad_k, task, head, token),
             source.grad_k.token_stride, past_k, [&](auto x, int64_t t, int64_t c) {
               constexpr int l = sizeof(x) / sizeof(A);
               return where_positive(load<l>(keys + position<A>(t, c)), x + load<l>(slope + c));
             });
    }
    if (source.grad_v.data != nullptr) {
      const A* matrix = totals + w.offset(task, head, 0);
      next.during(w.streamed && source.grad_k.data == nullptr, [&](auto between) {
        multiply<A>(keys, matrix, whole, w.width, w.padded, products, between);
      });
      unpack(products, tokens, w.width, at<S>(source.grad_v, task, head, token),
             source.grad_v.token_stride, past_v, [](auto x, int64_t, int64_t) { return x; });
    }
  });
}

}  // namespace
