// ReLU linear attention on CPUs: sums over fixed splits of the tokens, then one pass over all tokens.
//
// With r = relu, M = sum r(k) v^T, z = sum r(k), per token: den = r(q) . z + eps, o = r(q) M / den.
// Backward, with g the gradient of o: dn = g / den, u = M dn, dd = -(r(q) . u) / den; then
// dq = u + dd z, dM = sum r(q) dn^T, dz = sum dd r(q), dk = dM v + dz, dv = r(k) dM.
#include "evit/relu_linear_attention.h"

#include "dispatch.h"
#include "relu_linear_attention_tiles.h"

namespace {

using evit::AttentionSource;
using evit::HeadsView;
using evit::Status;
using Problem = evit::ReluLinearAttentionProblem;

constexpr int64_t kTaskHeads = 8;     // heads of one task, neighbours in memory
constexpr int64_t kSplitTokens = 256;  // of one partial sum, at least
constexpr int64_t kMaxSplits = 64;

// A task's heads: `count` from `first` on in their source, `global` among all heads.
struct Group {
  const AttentionSource* source;
  int64_t first;
  int64_t count;
  int64_t global;
};

struct Task {
  const Group* group;
  int64_t batch;
  int64_t split;
  int64_t begin;  // tokens
  int64_t end;
};

// Sizes and the division of the work. Splits are functions of the shape alone, never of the threads.
template <class A>
struct Work {
  const Problem& p;
  int64_t width;
  int64_t padded;
  int64_t matrix;  // elements of M and, after its rows, z
  int64_t block;   // tokens
  int64_t heads;
  int64_t splits;
  int64_t split_tokens;
  int64_t num_groups;
  Buffer<Group> groups;

  explicit Work(const Problem& problem) : p(problem), groups(count_groups(problem)) {
    constexpr int L = kLanes<A>;
    width = p.width;
    padded = ceil_div(width, L) * L;
    matrix = (width + 1) * padded;
    block = padded <= 32 ? 64 : 32;
    // A partial sum must stay small beside the tokens it sums.
    splits = smaller(kMaxSplits, ceil_div(p.tokens, larger(kSplitTokens, 4 * width)));
    split_tokens = ceil_div(ceil_div(p.tokens, splits), kRowMultiple) * kRowMultiple;
    splits = ceil_div(p.tokens, split_tokens);
    num_groups = count_groups(p);
    heads = 0;
    int64_t next = 0;
    for (int64_t s = 0; groups.ok() && s < p.num_sources; ++s) {
      const AttentionSource& source = p.sources[s];
      for (int64_t first = 0; first < source.heads; first += kTaskHeads)
        groups[next++] = {&source, first, smaller(kTaskHeads, source.heads - first), heads + first};
      heads += source.heads;
    }
  }

  static int64_t count_groups(const Problem& p) {
    int64_t count = 0;
    for (int64_t s = 0; s < p.num_sources; ++s) count += ceil_div(p.sources[s].heads, kTaskHeads);
    return count;
  }

  int64_t tasks() const { return p.batch * splits * num_groups; }
  int64_t matrices() const { return p.batch * heads; }
  int threads() const { return static_cast<int>(smaller(p.num_threads, tasks())); }

  Task task(int64_t index) const {
    const int64_t split = index / num_groups % splits;
    return {&groups[index % num_groups], index / num_groups / splits, split, split * split_tokens,
            smaller(p.tokens, (split + 1) * split_tokens)};
  }

  // The matrix of a task's head in a buffer of (splits, batch, heads) matrices, or of one split.
  int64_t offset(const Task& task, int64_t head, int64_t split) const {
    return ((split * p.batch + task.batch) * heads + task.group->global + head) * matrix;
  }
};

template <class S>
S* row(const HeadsView& view, const Task& task, int64_t head, int64_t token) {
  return static_cast<S*>(view.data) + task.batch * view.batch_stride +
         (task.group->first + head) * view.head_stride + token * view.token_stride;
}

// Calls body(head, token, rows) for every block of a task: all heads of a block, then the next block.
template <class A, class F>
EVIT_INLINE void for_each_block(const Work<A>& w, const Task& task, F&& body) {
  for (int64_t token = task.begin; token < task.end; token += w.block)
    for (int64_t head = 0; head < task.group->count; ++head)
      body(head, token, smaller(w.block, task.end - token));
}

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

// ---- the normaliser ----

// x / den is computed as x * inverse * scale: one division serves a row, and the scale, 1 but for
// tiny normalisers, keeps their inverse finite. A scale of 0 marks a normaliser of 0: everything
// divided by it is 0, whatever it is.
template <class A>
struct Normalisers {
  A value[64];
  A inverse[64];
  A scale[64];

  template <class V>
  EVIT_INLINE V divide(V x, int64_t t) const {
    return scale[t] == 0 ? V{} : x * inverse[t] * scale[t];
  }
};

template <class A>
EVIT_INLINE void normalise(const Work<A>& w, const A* query, const A* z, int64_t rows,
                           Normalisers<A>& n) {
  constexpr int L = kLanes<A>;
  using V = Vector<A, L>;
  const V zero = {}, one = broadcast<L>(A(1)), eps = broadcast<L>(static_cast<A>(w.p.eps));
  const V tiny = broadcast<L>(A(0x1p-60)), huge = broadcast<L>(A(0x1p60));
  rows = ceil_div(rows, kRowMultiple) * kRowMultiple;
  row_products<A>(query, z, 0, rows, w.padded, n.value);
  for (int64_t t = 0; t < rows; t += L) {
    const V den = load<L>(n.value + t) + eps;
    store<L>(n.value + t, den);
    const V magnitude = den < zero ? -den : den;
    const V scale = magnitude < tiny ? huge : one;
    store<L>(n.inverse + t, one / (den * scale));
    store<L>(n.scale + t, den == zero ? zero : scale);
  }
}

// ---- forward ----

template <class S>
void sum_keys(const Work<Acc<S>>& w, const Task& task, Acc<S>* scratch, Acc<S>* partials) {
  using A = Acc<S>;
  const AttentionSource& source = *task.group->source;
  A* keys = scratch;
  A* values = scratch + w.block * w.padded;
  clear(partials + w.offset(task, 0, task.split), task.group->count * w.matrix);
  for_each_block(w, task, [&](int64_t head, int64_t token, int64_t rows) {
    A* sums = partials + w.offset(task, head, task.split);
    const int64_t end = ceil_div(rows, kRowMultiple) * kRowMultiple;
    pack(row<const S>(source.k, task, head, token), source.k.token_stride, rows, w.width, w.padded,
         keys, [](auto x, int64_t) { return relu(x); });
    add_column_sums<A>(keys, nullptr, end, w.padded, sums + w.width * w.padded);
    const S* value = row<const S>(source.v, task, head, token);
    if constexpr (sizeof(S) == sizeof(A)) {
      if (w.width == w.padded) {
        add_outer<A>(keys, value, source.v.token_stride, rows, w.width, w.padded, sums);
        return;
      }
    }
    pack(value, source.v.token_stride, rows, w.width, w.padded, values,
         [](auto x, int64_t) { return x; });
    add_outer<A>(keys, values, w.padded, rows, w.width, w.padded, sums);
  });
}

template <class S>
void attend(const Work<Acc<S>>& w, const Task& task, Acc<S>* scratch, const Acc<S>* totals) {
  using A = Acc<S>;
  constexpr int L = kLanes<A>;
  const AttentionSource& source = *task.group->source;
  Normalisers<A> n;
  for_each_block(w, task, [&](int64_t head, int64_t token, int64_t rows) {
    const A* matrix = totals + w.offset(task, head, 0);
    pack(row<const S>(source.q, task, head, token), source.q.token_stride, rows, w.width, w.padded,
         scratch, [](auto x, int64_t) { return relu(x); });
    normalise<A>(w, scratch, matrix + w.width * w.padded, rows, n);
    S* output = row<S>(source.output, task, head, token);
    apply<A>(scratch, matrix, rows, w.width, w.padded, [&](int64_t t, int64_t j, Vector<A, L> sums) {
      store_lanes<S, L>(output + t * source.output.token_stride + j, n.divide(sums, t), w.width - j);
    });
  });
}

template <class S>
Status forward_as(const Problem& p, void* state) {
  using A = Acc<S>;
  const Work<A> w(p);
  const int64_t all = w.matrices() * w.matrix;
  const bool dense = w.width == w.padded;
  Buffer<A> partials(w.splits > 1 ? w.splits * all : 0);
  Buffer<A> total_buffer(dense ? 0 : all);
  if (!w.groups.ok() || !partials.ok() || !total_buffer.ok())
    return {"out of memory for the sums of attention"};
  A* totals = dense ? static_cast<A*>(state) : total_buffer.data();
  bool failed = false;

#pragma omp parallel num_threads(w.threads()) if (w.threads() > 1)
  {
    Buffer<A> scratch(2 * w.block * w.padded);
    if (!scratch.ok()) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < w.tasks(); ++task)
      if (scratch.ok())
        sum_keys<S>(w, w.task(task), scratch.data(), w.splits > 1 ? partials.data() : totals);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < w.matrices(); ++i) {
      A* total = totals + i * w.matrix;
      if (w.splits > 1) combine<A>(w, partials.data(), i, total);
      for (int64_t r = 0; !dense && r <= w.width; ++r)
        for (int64_t c = 0; c < w.width; ++c)
          static_cast<A*>(state)[(i * (w.width + 1) + r) * w.width + c] = total[r * w.padded + c];
    }
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < w.tasks(); ++task)
      if (scratch.ok()) attend<S>(w, w.task(task), scratch.data(), totals);
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
void differentiate_queries(const Work<Acc<S>>& w, const Task& task, Acc<S>* scratch, const Acc<S>* turned,
                           Acc<S>* partials) {
  using A = Acc<S>;
  constexpr int L = kLanes<A>;
  using V = Vector<A, L>;
  const AttentionSource& source = *task.group->source;
  const bool wants_q = source.grad_q.data != nullptr;
  const bool wants_u = wants_q || source.grad_k.data != nullptr;
  A* queries = scratch;
  A* grads = scratch + w.block * w.padded;
  A* products = scratch + 2 * w.block * w.padded;
  if (!wants_q && !wants_keys(source)) return;
  if (wants_keys(source))
    clear(partials + w.offset(task, 0, task.split), task.group->count * w.matrix);
  Normalisers<A> n;
  A slope[64];  // dd
  for_each_block(w, task, [&](int64_t head, int64_t token, int64_t rows) {
    const A* matrix = turned + w.offset(task, head, 0);
    const A* z = matrix + w.width * w.padded;
    const int64_t end = ceil_div(rows, kRowMultiple) * kRowMultiple;
    pack(row<const S>(source.q, task, head, token), source.q.token_stride, rows, w.width, w.padded,
         queries, [](auto x, int64_t) { return relu(x); });
    normalise<A>(w, queries, z, rows, n);
    pack(row<const S>(source.output, task, head, token), source.output.token_stride, rows, w.width,
         w.padded, grads, [&](auto x, int64_t t) { return n.divide(x, t); });
    if (wants_u) {
      apply<A>(grads, matrix, end, w.width, w.padded, [&](int64_t t, int64_t j, V sums) {
        store<L>(products + t * w.padded + j, sums);
      });
      for (int64_t t = 0; w.width < w.padded && t < rows; ++t)
        clear(products + t * w.padded + w.width, w.padded - w.width);
      row_products<A>(queries, products, w.padded, end, w.padded, slope);
      // Divided, not multiplied by the inverse: u carries the inverse's rounding error once, dd must
      // not carry it twice, for in dq the two cancel.
      for (int64_t t = 0; t < end; t += L) {
        const V den = load<L>(n.value + t), zero = {};
        store<L>(slope + t, den == zero ? zero : -load<L>(slope + t) / den);
      }
    }
    if (wants_q) {
      S* target = row<S>(source.grad_q, task, head, token);
      for (int64_t t = 0; t < rows; ++t)
        for (int64_t j = 0; j < w.padded; j += L) {
          const V gradient = load<L>(products + t * w.padded + j) + load<L>(z + j) * slope[t];
          store_lanes<S, L>(target + t * source.grad_q.token_stride + j,
                            where_positive(load<L>(queries + t * w.padded + j), gradient),
                            w.width - j);
        }
    }
    if (!wants_keys(source)) return;
    A* sums = partials + w.offset(task, head, task.split);
    add_outer<A>(queries, grads, w.padded, rows, w.width, w.padded, sums);
    if (wants_u) add_column_sums<A>(queries, slope, end, w.padded, sums + w.width * w.padded);
  });
}

// dk and dv from dM, dz and the transposes of dM.
template <class S>
void differentiate_keys(const Work<Acc<S>>& w, const Task& task, Acc<S>* scratch, const Acc<S>* totals,
                        const Acc<S>* turned) {
  using A = Acc<S>;
  constexpr int L = kLanes<A>;
  using V = Vector<A, L>;
  const AttentionSource& source = *task.group->source;
  if (!wants_keys(source)) return;
  A* keys = scratch;
  A* values = scratch + w.block * w.padded;
  for_each_block(w, task, [&](int64_t head, int64_t token, int64_t rows) {
    pack(row<const S>(source.k, task, head, token), source.k.token_stride, rows, w.width, w.padded,
         keys, [](auto x, int64_t) { return relu(x); });
    if (source.grad_k.data != nullptr) {
      const A* matrix = turned + w.offset(task, head, 0);
      const A* slope = matrix + w.width * w.padded;
      S* target = row<S>(source.grad_k, task, head, token);
      pack(row<const S>(source.v, task, head, token), source.v.token_stride, rows, w.width, w.padded,
           values, [](auto x, int64_t) { return x; });
      apply<A>(values, matrix, rows, w.width, w.padded, [&](int64_t t, int64_t j, V sums) {
        store_lanes<S, L>(
            target + t * source.grad_k.token_stride + j,
            where_positive(load<L>(keys + t * w.padded + j), sums + load<L>(slope + j)),
            w.width - j);
      });
    }
    if (source.grad_v.data != nullptr) {
      S* target = row<S>(source.grad_v, task, head, token);
      apply<A>(keys, totals + w.offset(task, head, 0), rows, w.width, w.padded,
               [&](int64_t t, int64_t j, V sums) {
                 store_lanes<S, L>(target + t * source.grad_v.token_stride + j, sums, w.width - j);
               });
    }
  });
}

template <class S>
Status backward_as(const Problem& p, const void* state) {
  using A = Acc<S>;
  const Work<A> w(p);
  const int64_t all = w.matrices() * w.matrix;
  const bool any_keys = any_wants_keys(p);
  Buffer<A> turned(all);
  Buffer<A> partials(any_keys ? w.splits * all : 0);
  Buffer<A> totals(any_keys ? all : 0);
  if (!w.groups.ok() || !turned.ok() || !partials.ok() || !totals.ok())
    return {"out of memory for the sums of attention"};
  bool failed = false;

#pragma omp parallel num_threads(w.threads()) if (w.threads() > 1)
  {
    Buffer<A> scratch(3 * w.block * w.padded);
    if (!scratch.ok()) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < w.matrices(); ++i)
      transpose<A>(w, static_cast<const A*>(state) + i * (w.width + 1) * w.width, w.width,
                   turned.data() + i * w.matrix);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < w.tasks(); ++task)
      if (scratch.ok())
        differentiate_queries<S>(w, w.task(task), scratch.data(), turned.data(), partials.data());
    if (any_keys) {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < w.matrices(); ++i) {
        // Of heads that want no gradient of keys this sums what nobody wrote; nobody reads it.
        combine<A>(w, partials.data(), i, totals.data() + i * w.matrix);
        transpose<A>(w, totals.data() + i * w.matrix, w.padded, turned.data() + i * w.matrix);
      }
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < w.tasks(); ++task)
        if (scratch.ok())
          differentiate_keys<S>(w, w.task(task), scratch.data(), totals.data(), turned.data());
    }
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
