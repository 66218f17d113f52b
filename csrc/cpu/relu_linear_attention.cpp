// ReLU linear attention on CPUs: sums over fixed splits of the tokens, or by heads where the tokens
// are few, then one pass over all tokens.
//
// With r = relu, M = sum r(k) v^T, z = sum r(k), per token: den = r(q) . z + eps, o = r(q) M / den.
// Backward, with g the gradient of o: dn = g / den, u = M dn, dd = -(r(q) . u) / den; then
// dq = u + dd z, dM = sum r(q) dn^T, dz = sum dd r(q), dk = dM v + dz, dv = r(k) dM.
#include "evit/relu_linear_attention.h"

#include <utility>

#include "dispatch.h"
#include "relu_linear_attention_normaliser.h"
#include "relu_linear_attention_products.h"
#include "relu_linear_attention_work.h"
#include "shares.h"

namespace {

using evit::AttentionSource;
using evit::Status;
using Problem = evit::ReluLinearAttentionProblem;

template <class A>
void clear(A* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = 0;
}

// Sums the splits of one matrix in their order: the same bits on any number of threads.
template <class A>
void combine(const Work<A>& w, const A* partials, int64_t index, A* total) {
  const int64_t stride = w.matrices() * w.matrix;
  const A* first = partials + index * w.matrix;
  for (int64_t i = 0; i < w.matrix; ++i) total[i] = first[i];
  for (int64_t split = 1; split < w.splits; ++split)
    for (int64_t i = 0; i < w.matrix; ++i) total[i] += first[split * stride + i];
}

// The transpose of a matrix of `width` rows; z, its last row, stays.
template <class A>
void transpose(const Work<A>& w, const A* matrix, int64_t stride, A* transposed) {
  for (int64_t i = 0; i < w.width; ++i) {
    for (int64_t j = 0; j < w.width; ++j) transposed[i * w.padded + j] = matrix[j * stride + i];
    clear(transposed + i * w.padded + w.width, w.padded - w.width);
  }
  A* last = transposed + w.width * w.padded;
  for (int64_t j = 0; j < w.width; ++j) last[j] = matrix[w.width * stride + j];
  clear(last + w.width, w.padded - w.width);
}

// ---- forward ----

// Calls f(Width<W>{}) with the width of heads where there are kernels of their own for it, of the
// widths that networks have, or with 0. There, all steps and all counts are constants: what fetches
// the next block ran as long as the products of this one before.
template <class S, class F>
EVIT_INLINE void with_width(int64_t width, F&& f) {
  if constexpr (kSame<S, float>) {
    if (width == 16) return f(Width<16>{});
    if (width == 32) return f(Width<32>{});
  }
  f(Width<0>{});
}

// Calls f(between) with what is done between products, or with nothing: a condition there would be
// one of every token. Measured, sums of heads of 32 take 0.9 of the time so.
template <class B, class F>
EVIT_INLINE void with_or_without(bool wanted, B&& between, F&& f) {
  if (wanted)
    f(between);
  else
    f([] {});
}

template <class A>
void transpose_in_place(A* matrix, int64_t width) {
  for (int64_t i = 0; i < width; ++i)
    for (int64_t j = 0; j < i; ++j) std::swap(matrix[i * width + j], matrix[j * width + i]);
}

// With a width, keys and values are multiplied where they lie, and their sums come out transposed.
template <class S, int W>
void sum_keys(const Work<Acc<S>>& w, const Task& task, Acc<S>* scratch, Acc<S>* partials) {
  using A = Acc<S>;
  const AttentionSource& source = *task.group->source;
  A* keys = scratch;
  A* values = scratch + w.block;
  A* const first = partials + w.offset(task, 0, task.split);
  clear(first, task.group->count * w.matrix);
  const Rows<const S> key_rows(source.k, task), value_rows(source.v, task);
  const int64_t width = W > 0 ? W : w.width, padded = W > 0 ? W : w.padded;
  const int64_t matrix = (width + 1) * padded, step = w.step();
  Ahead<S, W, 2, 0> next(w, task, step, source.k, source.v);
  const auto fetch = [&] { next.fetch(); };
  for_each_block(task, step, [&](int64_t head, int64_t token, int64_t tokens) {
    A* sums = first + head * matrix;
    A* z = sums + width * padded;
    const S* key = key_rows.at_token(head, token);
    const S* value = value_rows.at_token(head, token);
    if constexpr (W > 0) {
      with_or_without(w.streamed, fetch, [&](auto between) {
        add_outer_directly(key, key_rows.stride, value, value_rows.stride, tokens, width, sums, z,
                           between);
      });
    } else {
      pack(key, key_rows.stride, tokens, width, padded, keys,
           [](auto x, int64_t, int64_t) { return positive_part(x); });
      add_token_sums<A>(keys, nullptr, whole_tokens(tokens), padded, z);
      pack(value, value_rows.stride, tokens, width, padded, values,
           [](auto x, int64_t, int64_t) { return x; });
      with_or_without(w.streamed, fetch, [&](auto between) {
        add_outer<A>(keys, values, kBlockSteps<A>, tokens, width, padded, sums, between);
      });
    }
  });
}

// Past: the output goes past the caches.
template <class S, int W, bool Past>
void attend(const Work<Acc<S>>& w, const Task& task, Acc<S>* scratch, const Acc<S>* totals,
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
  Ahead<S, W, 1, Past ? 0 : 1> next(w, task, step, source.q, source.output);
  const auto fetch = [&] { next.fetch(); };
  for_each_block(task, step, [&](int64_t head, int64_t token, int64_t tokens) {
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
      with_or_without(w.streamed, fetch, [&](auto between) {
        multiply_into<Past>(
            queries, matrix, tokens, width, output, output_rows.stride,
            [&](auto x, int64_t t) { return x * n.inverse[t]; }, between);
      });
      return;
    }
    with_or_without(w.streamed, fetch, [&](auto between) {
      multiply<A>(queries, matrix, whole, width, padded, products, between);
    });
    unpack(products, tokens, width, output, output_rows.stride, false,
           [&](auto x, int64_t t, int64_t) { return n.divide(x, t); });
  });
}

template <class S, int W>
void attend_to(const Work<Acc<S>>& w, const Task& task, Acc<S>* scratch, const Acc<S>* totals,
               const Acc<S>* lifts) {
  if constexpr (kStoresPast<S, kLanes<Acc<S>>>)
    if (stores_past<S>(w, task.group->source->output))
      return attend<S, W, true>(w, task, scratch, totals, lifts);
  attend<S, W, false>(w, task, scratch, totals, lifts);
}

template <class S>
Status forward_as(const Problem& p, void* state) {
  using A = Acc<S>;
  Work<A> w(p, sizeof(S), uncached_output_bytes());
  // Keys and values that the second-level caches hold are summed by heads, if that is work for as
  // many threads: nobody adds up then what another core wrote.
  Work<A> heads(p, sizeof(S), kUncachedBytes, larger(1, kTaskFeatures / p.width));
  const int64_t parts = larger(w.splits, p.tokens < kPairTokens ? 1 : 2);
  const bool by_heads = !w.streamed && heads.num_groups >= parts * w.num_groups;
  if (by_heads) {
    heads.splits = 1;
    w.splits = parts;
  }
  const Work<A>& keys = by_heads ? heads : w;
  const int64_t all = w.matrices() * w.matrix;
  // Where the caller wants the sums, and they lie as computed, they are summed there.
  const bool dense = state != nullptr && w.width == w.padded;
  const bool copied = state != nullptr && !dense;
  const int64_t splits = keys.splits;  // whose sums are combined
  Buffer<A> partials(splits > 1 ? splits * all : 0);
  Buffer<A> total_buffer(dense ? 0 : all), lifts(w.matrices());
  Shares sums(keys.tasks(), w.threads()), outputs(w.tasks(), w.threads());
  if (!w.groups.ok() || !heads.groups.ok() || !partials.ok() || !total_buffer.ok() || !lifts.ok() ||
      !sums.ok() || !outputs.ok())
    return {"out of memory for the sums of attention"};
  A* totals = dense ? static_cast<A*>(state) : total_buffer.data();
  const auto finish = [&](int64_t i) {
    A* total = totals + i * w.matrix;
    if (splits > 1) combine<A>(keys, partials.data(), i, total);
    with_width<S>(w.width, [&](auto width) {
      if constexpr (width.value > 0) transpose_in_place(total, width.value);
    });
    lifts[i] = lift_of(total, w.width * w.padded);
    for (int64_t r = 0; copied && r <= w.width; ++r)
      for (int64_t c = 0; c < w.width; ++c)
        static_cast<A*>(state)[(i * (w.width + 1) + r) * w.width + c] = total[r * w.padded + c];
  };
  bool failed = false;

#pragma omp parallel num_threads(w.threads()) if (w.threads() > 1)
  {
    Buffer<A> scratch(2 * w.block);
    if (!scratch.ok()) {
#pragma omp atomic write
      failed = true;
    }
    for (int64_t index; scratch.ok() && (index = sums.take(false)) >= 0;) {
      const Task task = keys.task(index);
      with_width<S>(w.width, [&](auto width) {
        sum_keys<S, width.value>(keys, task, scratch.data(), splits > 1 ? partials.data() : totals);
      });
      for (int64_t head = 0; splits == 1 && head < task.group->count; ++head)
        finish(w.index(task, head));
    }
#pragma omp barrier
    if (splits > 1) {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < w.matrices(); ++i) finish(i);
    }
    for (int64_t task; scratch.ok() && (task = outputs.take(true)) >= 0;)
      with_width<S>(w.width, [&](auto width) {
        attend_to<S, width.value>(w, w.task(task), scratch.data(), totals, lifts.data());
      });
    fence();
  }
  return failed ? Status{"out of memory for blocks of attention"} : Status{};
}

// ---- backward ----

bool wants_keys(const AttentionSource& source) {
  return source.grad_k.data != nullptr || source.grad_v.data != nullptr;
}

bool any_wants_keys(const Problem& p) {
  for (int64_t s = 0; s < p.num_sources; ++s)
    if (wants_keys(p.sources[s])) return true;
  return false;
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
    const A* matrix = turned + w.offset(task, head, 0);
    const A* z = matrix + w.width * w.padded;
    const int64_t whole = whole_tokens(tokens);
    const auto fetch = [&] { next.fetch(); };
    pack(at<const S>(source.q, task, head, token), source.q.token_stride, tokens, w.width, w.padded,
         queries, [](auto x, int64_t, int64_t) { return positive_part(x); });
    inner_products<A>(queries, z, kRowSteps<A>, whole, w.padded, n.value);
    normalise<A>(static_cast<A>(w.p.eps), whole, n);
    pack(at<const S>(source.output, task, head, token), source.output.token_stride, tokens, w.width,
         w.padded, grads, [&](auto x, int64_t t, int64_t) { return n.divide(x, t); });
    if (wants_u) {
      with_or_without(w.streamed, fetch, [&](auto between) {
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
    with_or_without(w.streamed && !wants_u, fetch, [&](auto between) {
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
    const int64_t whole = whole_tokens(tokens);
    const auto fetch = [&] { next.fetch(); };
    pack(at<const S>(source.k, task, head, token), source.k.token_stride, tokens, w.width, w.padded,
         keys, [](auto x, int64_t, int64_t) { return positive_part(x); });
    if (source.grad_k.data != nullptr) {
      const A* matrix = turned + w.offset(task, head, 0);
      const A* slope = matrix + w.width * w.padded;
      pack(at<const S>(source.v, task, head, token), source.v.token_stride, tokens, w.width,
           w.padded, values, [](auto x, int64_t, int64_t) { return x; });
      with_or_without(w.streamed, fetch, [&](auto between) {
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
      with_or_without(w.streamed && source.grad_k.data == nullptr, fetch, [&](auto between) {
        multiply<A>(keys, matrix, whole, w.width, w.padded, products, between);
      });
      unpack(products, tokens, w.width, at<S>(source.grad_v, task, head, token),
             source.grad_v.token_stride, past_v, [](auto x, int64_t, int64_t) { return x; });
    }
  });
}

template <class S>
Status backward_as(const Problem& p, const void* state) {
  using A = Acc<S>;
  const Work<A> w(p, sizeof(S));
  const int64_t all = w.matrices() * w.matrix;
  const bool any_keys = any_wants_keys(p);
  Buffer<A> turned(all);
  Buffer<A> partials(any_keys ? w.splits * all : 0);
  Buffer<A> totals(any_keys ? all : 0);
  Shares queries(w.tasks(), w.threads()), keys(w.tasks(), w.threads());
  if (!w.groups.ok() || !turned.ok() || !partials.ok() || !totals.ok() || !queries.ok() ||
      !keys.ok())
    return {"out of memory for the sums of attention"};
  bool failed = false;

#pragma omp parallel num_threads(w.threads()) if (w.threads() > 1)
  {
    Buffer<A> scratch(3 * w.block);
    if (!scratch.ok()) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < w.matrices(); ++i)
      transpose<A>(w, static_cast<const A*>(state) + i * (w.width + 1) * w.width, w.width,
                   turned.data() + i * w.matrix);
    for (int64_t task; scratch.ok() && (task = queries.take(false)) >= 0;)
      differentiate_queries<S>(w, w.task(task), scratch.data(), turned.data(), partials.data());
    if (any_keys) {
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t i = 0; i < w.matrices(); ++i) {
        // Of heads that want no gradient of keys this sums what nobody wrote; nobody reads it.
        combine<A>(w, partials.data(), i, totals.data() + i * w.matrix);
        transpose<A>(w, totals.data() + i * w.matrix, w.padded, turned.data() + i * w.matrix);
      }
      for (int64_t task; scratch.ok() && (task = keys.take(true)) >= 0;)
        differentiate_keys<S>(w, w.task(task), scratch.data(), totals.data(), turned.data());
    }
    fence();
  }
  return failed ? Status{"out of memory for blocks of attention"} : Status{};
}

}  // namespace

namespace evit::cpu::EVIT_ISA {

Status relu_linear_attention_forward(const ReluLinearAttentionProblem& p, void* state) {
  return with_storage(p.dtype,
                      [&](auto s) { return forward_as<typename decltype(s)::type>(p, state); });
}

Status relu_linear_attention_backward(const ReluLinearAttentionProblem& p, const void* state) {
  return with_storage(p.dtype,
                      [&](auto s) { return backward_as<typename decltype(s)::type>(p, state); });
}

}  // namespace evit::cpu::EVIT_ISA

EVIT_ENTRY(Status, relu_linear_attention_forward,
           (const ReluLinearAttentionProblem& problem, void* state), (problem, state))

EVIT_ENTRY(Status, relu_linear_attention_backward,
           (const ReluLinearAttentionProblem& problem, const void* state), (problem, state))
