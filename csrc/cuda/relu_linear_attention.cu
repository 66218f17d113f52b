// Linear attention with ReLU feature maps on CUDA devices, for every width and storage type: sums
// over fixed splits of the tokens, added up in their order, then one thread per result. What
// networks are made of has a faster way, in blocks.
//
// With r = relu, M = sum r(k) v^T, z = sum r(k), per token: den = r(q) . z + eps, o = r(q) M / den.
// Backward, with g the gradient of o: dn = g / den, u = M dn, dd = -(r(q) . u) / den; then
// dq = u + dd z, dM = sum r(q) dn^T, dz = sum dd r(q), dk = dM v + dz, dv = r(k) dM.
#include "evit/relu_linear_attention.h"
#include "relu_linear_attention_backward_blocks.h"
#include "relu_linear_attention_forward_blocks.h"
#include "scalar.h"

namespace evit::cuda {
namespace {

template <class S>
EVIT_HD S* features(const HeadsView& view, const Row& row) {
  return static_cast<S*>(view.data) + row.batch * view.batch_stride + row.head * view.head_stride +
         row.token * view.token_stride;
}

// The normaliser of a token.
template <class S>
EVIT_HD Sum<S> normaliser(const Heads& p, const S* q, const Sum<S>* z) {
  Sum<S> sum = 0;
  for (int64_t c = 0; c < p.width; ++c) sum += relu(Sum<S>(read(q + c))) * z[c];
  return sum + Sum<S>(p.eps);
}

// An entry of M, or of z in the row behind it, over one split.
template <class S>
struct SumKeys {
  Heads p;
  HeadsView k;
  HeadsView v;
  Sum<S>* partials;

  EVIT_HD void operator()(int64_t i) const {
    const Entry e = entry_at(p, i);
    Sum<S> sum = 0;
    for (Row row = e.row; row.token < e.end; ++row.token) {
      const S* key = features<const S>(k, row);
      if (e.i == p.width)
        sum += relu(Sum<S>(read(key + e.j)));
      else
        sum += relu(Sum<S>(read(key + e.i))) * read(features<const S>(v, row) + e.j);
    }
    partials[i] = sum;
  }
};

// Adds up the splits of an entry. The source's heads are some of all that `total` has.
template <class A>
struct Combine {
  Heads p;
  const A* partials;
  A* total;

  EVIT_HD void operator()(int64_t i) const {
    A sum = 0;
    for (int64_t split = 0; split < p.splits; ++split) sum += partials[split * entries_of(p) + i];
    total[of_all_heads(p, i)] = sum;
  }
};

template <class S>
struct Attend {
  Heads p;
  HeadsView q;
  HeadsView output;
  const Sum<S>* state;

  EVIT_HD void operator()(int64_t i) const {
    const Feature f = feature_at(p, i);
    const S* query = features<const S>(q, f.row);
    const Sum<S>* matrix = state + matrix_of(p, f.row);
    Sum<S> sum = 0;
    for (int64_t c = 0; c < p.width; ++c)
      sum += relu(Sum<S>(read(query + c))) * matrix[c * p.width + f.j];
    const Sum<S> den = normaliser(p, query, matrix + p.width * p.width);
    write(features<S>(output, f.row) + f.j, divided(sum, den));
  }
};

// Per token its normaliser, and dd.
template <class S>
struct Slopes {
  Heads p;
  HeadsView q;
  HeadsView grad;
  const Sum<S>* state;
  Sum<S>* tokens;

  EVIT_HD void operator()(int64_t i) const {
    const Row row = row_at(p, i);
    const S* query = features<const S>(q, row);
    const S* g = features<const S>(grad, row);
    const Sum<S>* matrix = state + matrix_of(p, row);
    const Sum<S> den = normaliser(p, query, matrix + p.width * p.width);
    Sum<S> sum = 0;
    for (int64_t c = 0; c < p.width; ++c) {
      Sum<S> u = 0;
      for (int64_t j = 0; j < p.width; ++j)
        u += matrix[c * p.width + j] * divided(Sum<S>(read(g + j)), den);
      sum += relu(Sum<S>(read(query + c))) * u;
    }
    tokens[2 * i] = den;
    tokens[2 * i + 1] = divided(-sum, den);
  }
};

template <class S>
struct QueryGradient {
  Heads p;
  HeadsView q;
  HeadsView grad;
  HeadsView grad_q;
  const Sum<S>* state;
  const Sum<S>* tokens;

  EVIT_HD void operator()(int64_t i) const {
    const Feature f = feature_at(p, i);
    const Sum<S>* matrix = state + matrix_of(p, f.row);
    const S* g = features<const S>(grad, f.row);
    const Sum<S>* token = tokens + 2 * (i / p.width);
    Sum<S> sum = 0;
    for (int64_t j = 0; j < p.width; ++j)
      sum += matrix[f.j * p.width + j] * divided(Sum<S>(read(g + j)), token[0]);
    sum += token[1] * matrix[p.width * p.width + f.j];
    const Sum<S> x = read(features<const S>(q, f.row) + f.j);
    write(features<S>(grad_q, f.row) + f.j, x <= Sum<S>(0) ? Sum<S>(0) : sum);
  }
};

// An entry of dM, or of dz in the row behind it, over one split.
template <class S>
struct SumQueries {
  Heads p;
  HeadsView q;
  HeadsView grad;
  const Sum<S>* tokens;
  Sum<S>* partials;

  EVIT_HD void operator()(int64_t i) const {
    const Entry e = entry_at(p, i);
    Sum<S> sum = 0;
    for (Row row = e.row; row.token < e.end; ++row.token) {
      const S* query = features<const S>(q, row);
      const Sum<S>* token = tokens + 2 * index_of(p, row);
      if (e.i == p.width)
        sum += relu(Sum<S>(read(query + e.j))) * token[1];
      else
        sum += relu(Sum<S>(read(query + e.i))) *
               divided(Sum<S>(read(features<const S>(grad, row) + e.j)), token[0]);
    }
    partials[i] = sum;
  }
};

template <class S>
struct KeyGradient {
  Heads p;
  HeadsView k;
  HeadsView v;
  HeadsView grad_k;
  const Sum<S>* totals;  // dM and dz of all heads

  EVIT_HD void operator()(int64_t i) const {
    const Feature f = feature_at(p, i);
    const Sum<S>* matrix = totals + matrix_of(p, f.row);
    const S* value = features<const S>(v, f.row);
    Sum<S> sum = matrix[p.width * p.width + f.j];
    for (int64_t j = 0; j < p.width; ++j) sum += matrix[f.j * p.width + j] * read(value + j);
    const Sum<S> x = read(features<const S>(k, f.row) + f.j);
    write(features<S>(grad_k, f.row) + f.j, x <= Sum<S>(0) ? Sum<S>(0) : sum);
  }
};

template <class S>
struct ValueGradient {
  Heads p;
  HeadsView k;
  HeadsView grad_v;
  const Sum<S>* totals;

  EVIT_HD void operator()(int64_t i) const {
    const Feature f = feature_at(p, i);
    const Sum<S>* matrix = totals + matrix_of(p, f.row);
    const S* key = features<const S>(k, f.row);
    Sum<S> sum = 0;
    for (int64_t c = 0; c < p.width; ++c)
      sum += relu(Sum<S>(read(key + c))) * matrix[c * p.width + f.j];
    write(features<S>(grad_v, f.row) + f.j, sum);
  }
};

// Calls f(heads, source) for every source until one fails.
template <class F>
Status for_each_source(const ReluLinearAttentionProblem& problem, F&& f) {
  int64_t before = 0;
  for (int64_t s = 0; s < problem.num_sources; ++s) {
    const AttentionSource& source = problem.sources[s];
    const Status status = f(Heads(problem, source.heads, before), source);
    if (!status.ok()) return status;
    before += source.heads;
  }
  return {};
}

template <class S>
Status forward_as(const ReluLinearAttentionProblem& problem, Sum<S>* state, Sum<S>* partials,
                  Stream stream) {
  return for_each_source(problem, [&](const Heads& p, const AttentionSource& source) -> Status {
    const SumKeys<S> sum = {p, source.k, source.v, partials};
    Status status = for_each(p.splits * entries_of(p), sum, stream);
    if (!status.ok()) return status;
    status = for_each(entries_of(p), Combine<Sum<S>>{p, partials, state}, stream);
    if (!status.ok()) return status;
    return for_each(features_of(p), Attend<S>{p, source.q, source.output, state}, stream);
  });
}

template <class S>
Status backward_as(const ReluLinearAttentionProblem& problem, const Sum<S>* state,
                   Sum<S>* workspace, Stream stream) {
  return for_each_source(problem, [&](const Heads& p, const AttentionSource& source) -> Status {
    Sum<S>* tokens = workspace;
    Sum<S>* totals = tokens + 2 * rows_of(p);
    Sum<S>* partials = totals + p.batch * p.all_heads * matrix_elements(p);
    const Slopes<S> slopes = {p, source.q, source.output, state, tokens};
    Status status = for_each(rows_of(p), slopes, stream);
    if (status.ok() && source.grad_q.data != nullptr) {
      const QueryGradient<S> body = {p, source.q, source.output, source.grad_q, state, tokens};
      status = for_each(features_of(p), body, stream);
    }
    if (source.grad_k.data == nullptr && source.grad_v.data == nullptr) return status;
    if (status.ok()) {
      const SumQueries<S> body = {p, source.q, source.output, tokens, partials};
      status = for_each(p.splits * entries_of(p), body, stream);
    }
    if (status.ok()) status = for_each(entries_of(p), Combine<Sum<S>>{p, partials, totals}, stream);
    if (status.ok() && source.grad_k.data != nullptr) {
      const KeyGradient<S> body = {p, source.k, source.v, source.grad_k, totals};
      status = for_each(features_of(p), body, stream);
    }
    if (status.ok() && source.grad_v.data != nullptr) {
      const ValueGradient<S> body = {p, source.k, source.grad_v, totals};
      status = for_each(features_of(p), body, stream);
    }
    return status;
  });
}

}  // namespace

int64_t relu_linear_attention_forward_workspace(const ReluLinearAttentionProblem& problem) {
  if (blocks_serve(problem)) return blocks_workspace(problem, false);
  int64_t most = 0;
  (void)for_each_source(problem, [&](const Heads& p, const AttentionSource&) -> Status {
    const int64_t elements = p.splits * entries_of(p);
    most = elements > most ? elements : most;
    return {};
  });
  return most;
}

Status relu_linear_attention_forward(const ReluLinearAttentionProblem& problem, void* state,
                                     void* workspace, Stream stream) {
  const OnDevice current(stream.device);
  if (!current.status().ok()) return current.status();
  return with_storage(problem.dtype, [&](auto storage) {
    using S = decltype(storage);
    auto* sums = static_cast<Sum<S>*>(state);
    auto* partials = static_cast<Sum<S>*>(workspace);
    if constexpr (sizeof(S) <= sizeof(float))
      if (blocks_serve(problem)) return forward_in_blocks<S>(problem, sums, partials, stream);
    return forward_as<S>(problem, sums, partials, stream);
  });
}

int64_t relu_linear_attention_backward_workspace(const ReluLinearAttentionProblem& problem) {
  if (blocks_serve(problem)) return blocks_workspace(problem, true);
  int64_t most = 0;
  (void)for_each_source(problem, [&](const Heads& p, const AttentionSource&) -> Status {
    const int64_t elements =
        2 * rows_of(p) + p.batch * p.all_heads * matrix_elements(p) + p.splits * entries_of(p);
    most = elements > most ? elements : most;
    return {};
  });
  return most;
}

Status relu_linear_attention_backward(const ReluLinearAttentionProblem& problem, const void* state,
                                      void* workspace, Stream stream) {
  const OnDevice current(stream.device);
  if (!current.status().ok()) return current.status();
  return with_storage(problem.dtype, [&](auto storage) {
    using S = decltype(storage);
    const auto* sums = static_cast<const Sum<S>*>(state);
    auto* partials = static_cast<Sum<S>*>(workspace);
    if constexpr (sizeof(S) <= sizeof(float))
      if (blocks_serve(problem)) return backward_in_blocks<S>(problem, sums, partials, stream);
    return backward_as<S>(problem, sums, partials, stream);
  });
}

}  // namespace evit::cuda
