// ReLU linear attention on CPUs: sums over fixed splits of the tokens, or by heads where the tokens
// are few, then one pass over all tokens.
//
// With r = relu, M = sum r(k) v^T, z = sum r(k), per token: den = r(q) . z + eps, o = r(q) M / den.
// Backward, with g the gradient of o: dn = g / den, u = M dn, dd = -(r(q) . u) / den; then
// dq = u + dd z, dM = sum r(q) dn^T, dz = sum dd r(q), dk = dM v + dz, dv = r(k) dM.
#include "evit/relu_linear_attention.h"

#include <utility>

#include "dispatch.h"
#include "relu_linear_attention_backward.h"
#include "relu_linear_attention_forward.h"
#include "shares.h"

namespace {

using evit::Status;
using Problem = evit::ReluLinearAttentionProblem;

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

template <class A>
void transpose_in_place(A* matrix, int64_t width) {
  for (int64_t i = 0; i < width; ++i)
    for (int64_t j = 0; j < i; ++j) std::swap(matrix[i * width + j], matrix[j * width + i]);
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

bool any_wants_keys(const Problem& p) {
  for (int64_t s = 0; s < p.num_sources; ++s)
    if (wants_keys(p.sources[s])) return true;
  return false;
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
