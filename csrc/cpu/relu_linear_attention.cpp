// ReLU linear attention on CPUs: sums over fixed splits of the tokens, then one pass over all
// tokens; or, where the tokens are few, both for head after head.
//
// With r = relu, M = sum r(k) v^T, z = sum r(k), per token: den = r(q) . z + eps, o = r(q) M / den.
// Backward, with g the gradient of o: dn = g / den, u = M dn, dd = -(r(q) . u) / den; then
// dq = u + dd z, dM = sum r(q) dn^T, dz = sum dd r(q), dk = dM v + dz, dv = r(k) dM.
#include "evit/relu_linear_attention.h"

#include "dispatch.h"
#include "relu_linear_attention_backward.h"
#include "relu_linear_attention_forward.h"
#include "shares.h"
#include "transpose.h"

namespace {

using evit::Status;
using Problem = evit::ReluLinearAttentionProblem;

constexpr char kNoSums[] = "out of memory for the sums of attention";
constexpr char kNoBlocks[] = "out of memory for blocks of attention";

template <class A>
void add(A* x, const A* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += y[i];
}

// Sums the splits of one matrix in their order: the same bits on any number of threads.
template <class A>
void combine(const Work<A>& w, const A* partials, int64_t index, A* total) {
  const int64_t stride = w.matrices() * w.matrix;
  const A* first = partials + index * w.matrix;
  for (int64_t i = 0; i < w.matrix; ++i) total[i] = first[i];
  for (int64_t split = 1; split < w.splits; ++split) add(total, first + split * stride, w.matrix);
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

// Of whole vectors, block by block. Element by element it took 2 % of the time of 392 tokens.
template <int W, class A>
void transpose_in_place(A* matrix) {
  constexpr int L = kLanes<A>;
  A lower[L * L];
  for (int i = 0; i < W; i += L) {
    for (int j = 0; j < i; j += L) {
      A* const left = matrix + i * W + j;
      A* const right = matrix + j * W + i;
      transpose_block<A, L>(left, W, lower, L);
      transpose_block<A, L>(right, W, left, W);
      for (int r = 0; r < L; ++r) store<L>(right + r * W, load<L>(lower + r * L));
    }
    A* const middle = matrix + i * W + i;
    transpose_block<A, L>(middle, W, middle, W);
  }
}

// Sums of keys and values of all heads, and what becomes of them once they are complete. Where the
// caller wants them, and they lie as computed, they are summed there.
template <class S>
class Totals {
  using A = Acc<S>;

 public:
  Totals(const Work<A>& w, void* state)
      : w_(w),
        state_(static_cast<A*>(state)),
        dense_(state != nullptr && w.width == w.padded),
        buffer_(dense_ ? 0 : w.matrices() * w.matrix),
        lifts_(w.matrices()),
        data_(dense_ ? state_ : buffer_.data()) {}

  bool ok() const { return buffer_.ok() && lifts_.ok(); }
  A* data() const { return data_; }
  const A* lifts() const { return lifts_.data(); }

  // For a head among all of the batch.
  template <int W>
  void finish(int64_t index) {
    A* total = data_ + index * w_.matrix;
    if constexpr (W > 0) transpose_in_place<W>(total);
    lifts_[index] = lift_of(total, w_.width * w_.padded);
    if (state_ == nullptr || dense_) return;
    for (int64_t r = 0; r <= w_.width; ++r)
      for (int64_t c = 0; c < w_.width; ++c)
        state_[(index * (w_.width + 1) + r) * w_.width + c] = total[r * w_.padded + c];
  }

 private:
  const Work<A>& w_;
  A* state_;
  bool dense_;
  Buffer<A> buffer_;
  Buffer<A> lifts_;
  A* data_;
};

// Head after head, what the second-level caches hold: nobody waits for sums, or reads those that
// another core wrote. Measured beside the other way, two threads: 784 tokens take 1.0 (heads of
// 16) and 0.9 (32) of the time, 392 tokens 0.84, 196 tokens 0.76, 98 tokens 0.68.
template <class S, int W>
Status attend_by_heads(const Work<Acc<S>>& w, int threads, void* state) {
  using A = Acc<S>;
  Totals<S> totals(w, state);
  if (!totals.ok()) return {kNoSums};
  bool failed = false;

#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Buffer<A> scratch(2 * w.block), part(w.splits > 1 ? w.task_heads * w.matrix : 0);
    const bool ok = scratch.ok() && part.ok();
    if (!ok) {
#pragma omp atomic write
      failed = true;
    }
    // The same heads for a thread in every call; nobody helps, for what is helped with would have
    // to be read into another cache first.
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < w.p.batch * w.num_groups; ++i) {
      if (!ok) continue;
      const Task task = w.whole(i);
      A* const sums = totals.data() + w.offset(task, 0, 0);
      sum_keys<S, W>(w, w.part(task, 0), scratch.data(), sums);
      for (int64_t split = 1; split < w.splits; ++split) {
        sum_keys<S, W>(w, w.part(task, split), scratch.data(), part.data());
        add(sums, part.data(), task.group->count * w.matrix);
      }
      for (int64_t head = 0; head < task.group->count; ++head)
        totals.template finish<W>(w.index(task, head));
      attend<S, W>(w, task, scratch.data(), totals.data(), totals.lifts());
    }
    fence();
  }
  return failed ? Status{kNoBlocks} : Status{};
}

// Sums over splits of the tokens, added up in their order, then all tokens.
template <class S, int W>
Status attend_by_tokens(const Work<Acc<S>>& w, void* state) {
  using A = Acc<S>;
  Totals<S> totals(w, state);
  Buffer<A> partials(w.splits > 1 ? w.splits * w.matrices() * w.matrix : 0);
  Shares sums(w.tasks(), w.threads()), outputs(w.tasks(), w.threads());
  if (!totals.ok() || !partials.ok() || !sums.ok() || !outputs.ok()) return {kNoSums};
  bool failed = false;

#pragma omp parallel num_threads(w.threads()) if (w.threads() > 1)
  {
    Buffer<A> scratch(2 * w.block);
    if (!scratch.ok()) {
#pragma omp atomic write
      failed = true;
    }
    A* const to = w.splits > 1 ? partials.data() : totals.data();
    for (int64_t index; scratch.ok() && (index = sums.take(false)) >= 0;) {
      const Task task = w.task(index);
      sum_keys<S, W>(w, task, scratch.data(), to + w.offset(task, 0, task.split));
    }
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t i = 0; i < w.matrices(); ++i) {
      if (w.splits > 1) combine<A>(w, partials.data(), i, totals.data() + i * w.matrix);
      totals.template finish<W>(i);
    }
    for (int64_t task; scratch.ok() && (task = outputs.take(true)) >= 0;)
      attend<S, W>(w, w.task(task), scratch.data(), totals.data(), totals.lifts());
    fence();
  }
  return failed ? Status{kNoBlocks} : Status{};
}

// Whether heads are divided among threads, not tokens: where half of those threads' caches holds
// all, and none of them has more to do so. The sums are the same, bit for bit. Where all of the
// caches are needed, 1,568 tokens took 0.95 of the time in a loop of nothing else, but 1.04 (heads
// of 16) and 1.1 (32) of it between other calls.
template <class A>
bool by_heads(const Work<A>& tokens, const Work<A>& heads) {
  const int64_t threads = heads.p.num_threads, tasks = heads.p.batch * heads.num_groups;
  const int64_t caches = smaller(threads, tasks) * evit::cpu::second_level_cache_bytes();
  return heads.bytes <= caches / 2 &&
         ceil_div(tasks, threads) * tokens.tasks() <= ceil_div(tokens.tasks(), threads) * tasks;
}

template <class S>
Status forward_as(const Problem& p, void* state) {
  using A = Acc<S>;
  const Work<A> tokens(p, sizeof(S), uncached_output_bytes());
  const Work<A> heads(p, sizeof(S), uncached_output_bytes(), larger(1, kTaskFeatures / p.width));
  if (!tokens.groups.ok() || !heads.groups.ok()) return {kNoSums};
  const int64_t tasks = p.batch * (p.tokens < kPairTokens ? tokens : heads).num_groups;
  const int threads = static_cast<int>(smaller(p.num_threads, tasks));
  const bool heads_first = by_heads(tokens, heads);
  return with_width<S>(p.width, [&](auto width) {
    return heads_first ? attend_by_heads<S, width.value>(heads, threads, state)
                       : attend_by_tokens<S, width.value>(tokens, state);
  });
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
    return {kNoSums};
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
  return failed ? Status{kNoBlocks} : Status{};
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
