// Linear attention by blocks of threads, for the widths and layouts of networks: a block has some
// tokens of one head, read once as whole vectors, and passes them through shared memory in tiles.
// What its passes have in common.
#pragma once

#include <type_traits>

#include "relu_linear_attention_index.h"
#include "relu_linear_attention_tiles.h"

namespace evit::cuda {

// Both products, of tokens stored as S. Heads of 8 are narrower than what tensor cores multiply.
template <class S, int D>
using Products =
    std::conditional_t<sizeof(S) == 2 && (D >= 16), TensorProducts<D>, FloatProducts<D>>;

// The first tokens of a tile that exist.
template <int D>
EVIT_HD int64_t tile_count(int64_t token, int64_t end) {
  return end - token < kTileTokens<D> ? end - token : kTileTokens<D>;
}

// x / den, and 0 where den is 0, whatever x is: the query of such a token has no positive entry.
template <class A>
EVIT_HD A divided(A x, A den) {
  return den == A(0) ? A(0) : x / den;
}

// The product of two rows.
template <int D>
EVIT_HD float dot(const SharedFloat* a, const SharedFloat* b) {
  float sum = 0.0f;
  EVIT_UNROLLED
  for (int c = 0; c < D; c += 4) {
    const auto x = four(a + c), y = four(b + c);
    EVIT_UNROLLED
    for (int i = 0; i < 4; ++i) sum += x.values[i] * y.values[i];
  }
  return sum;
}

// Sums over tokens that every thread keeps for its features.
template <class S, int D>
struct FeatureSums {
  SharedFloat values[kBlockThreads][kPackWidth<S>];

  // The sum of a feature over all threads that have it.
  EVIT_HD float total(int feature) const {
    constexpr int V = kPackWidth<S>;
    float sum = 0.0f;
    for (int t = feature / V; t < kBlockThreads; t += D / V) sum += values[t][feature % V];
    return sum;
  }
};

// The matrix and the vector behind it of a head, to shared memory.
template <int D, bool kTransposed>
EVIT_HD void read_state(int thread, const float* state, Square<D>& matrix,
                        SharedFloat (&vector)[D]) {
  for (int i = thread; i < D * D; i += kBlockThreads) {
    const int row = i / D, column = i % D;
    matrix.rows[kTransposed ? column : row][kTransposed ? row : column] = state[i];
  }
  for (int i = thread; i < D; i += kBlockThreads) vector[i] = state[D * D + i];
}

template <class S, int D>
EVIT_HD void write_sums(int thread, const Square<D>& matrix, const FeatureSums<S, D>& vector,
                        float* to) {
  for (int i = thread; i < D * D; i += kBlockThreads) to[i] = matrix.rows[i / D][i % D];
  for (int i = thread; i < D; i += kBlockThreads) to[D * D + i] = vector.total(i);
}

// Adds up what the chunks of a head have, in their order. One thread per entry.
struct AddChunks {
  Chunks p;
  int64_t elements;  // of a head
  const float* partials;
  float* totals;

  EVIT_HD void operator()(int64_t i) const {
    const int64_t entry = i % elements, head = i / elements % p.heads;
    const int64_t batch = i / elements / p.heads;
    float sum = 0.0f;
    for (int64_t chunk = 0; chunk < p.chunks; ++chunk)
      sum += partials[block_of(p, batch, chunk, head) * elements + entry];
    totals[i] = sum;
  }
};

inline Role role_of(const ReluLinearAttentionProblem& problem, HeadsView AttentionSource::* view) {
  Role role = {};
  for (int64_t s = 0; s < problem.num_sources; ++s) role.views[s] = problem.sources[s].*view;
  return role;
}

// Whether blocks serve a problem: what they need of widths, strides and addresses.
inline bool blocks_serve(const ReluLinearAttentionProblem& problem) {
  const int64_t width = problem.width;
  if (width != 8 && width != 16 && width != 32 && width != 64) return false;
  if (problem.dtype == DType::kFloat64 || problem.num_sources > kMaxSources) return false;
  const int64_t vector = kPackBytes / size_of(problem.dtype);
  for (int64_t s = 0; s < problem.num_sources; ++s) {
    const AttentionSource& source = problem.sources[s];
    for (const HeadsView& view : {source.q, source.k, source.v, source.output, source.grad_q,
                                  source.grad_k, source.grad_v}) {
      const bool whole = view.batch_stride % vector == 0 && view.head_stride % vector == 0 &&
                         view.token_stride % vector == 0;
      if (!whole || !is_aligned(view.data)) return false;
    }
  }
  return true;
}

// Floats that blocks need: partial sums, and before them, backward, dM and dz.
inline int64_t blocks_workspace(const ReluLinearAttentionProblem& problem, bool backward) {
  const Chunks p(problem);
  return (p.blocks() + (backward ? p.batch * p.heads : 0)) * elements_of(problem.width);
}

// Calls f(std::integral_constant<int, width>).
template <class F>
Status with_width(int64_t width, F&& f) {
  switch (width) {
    case 8:
      return f(std::integral_constant<int, 8>{});
    case 16:
      return f(std::integral_constant<int, 16>{});
    case 32:
      return f(std::integral_constant<int, 32>{});
    case 64:
      return f(std::integral_constant<int, 64>{});
  }
  return {"there are no blocks of this width"};
}

}  // namespace evit::cuda
