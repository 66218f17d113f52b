// Register tiles of the two matrix products of a pointwise convolution.
#pragma once

#include "activation.h"
#include "buffer.h"
#include "simd.h"
#include "transpose.h"

namespace {

constexpr int kPanel = 2;  // vectors of output channels of one tile
// Of one tile: kPanel accumulators for each, and registers are left for weights and a broadcast.
constexpr int kTokens = kVectorRegisters == 32 ? 14 : 6;

// Calls f(Width<M>{}, first) over [0, count) with tiles of at most kTokens tokens. A tile of one or
// two waits for its own sums, so where only few fit in registers, tiles are of about one size.
template <class F>
EVIT_INLINE void for_each_tile(int64_t count, F&& f) {
  int64_t first = 0;
  if constexpr (kTokens == 6) {
    for (int64_t tiles = ceil_div(count, kTokens); tiles > 0; --tiles) {
      const int64_t tokens = ceil_div(count - first, tiles);
      if (tokens == 6) f(Width<6>{}, first);
      if (tokens == 5) f(Width<5>{}, first);
      if (tokens == 4) f(Width<4>{}, first);
      if (tokens == 3) f(Width<3>{}, first);
      if (tokens == 2) f(Width<2>{}, first);
      if (tokens == 1) f(Width<1>{}, first);
      first += tokens;
    }
  } else {
    const auto run = [&](auto tokens) {
      for (; first + tokens.value <= count; first += tokens.value) f(tokens, first);
    };
    run(Width<kTokens>{});
    run(Width<kTokens / 2>{});
    run(Width<4>{});
    run(Width<1>{});
  }
}

// One long chain of additions loses digits: longer sums are sums of sums of this many terms.
constexpr int64_t kDepth = 256;
constexpr int64_t kTerms = 64;  // of the weight gradient

// Columns of a matrix as (depth, kPanel vectors), zeros beyond the `columns` that exist. `row` and
// `column` are the strides along depth and along columns.
template <class S>
void pack_panel(const S* from, int64_t column, int64_t row, int64_t depth, int64_t columns,
                Acc<S>* packed) {
  constexpr int L = kLanes<S>;
  constexpr int64_t W = kPanel * L;
  for (int64_t first = 0; first < W; first += L) {
    const S* source = from + first * column;
    Acc<S>* to = packed + first;
    const int64_t lanes = smaller(L, larger(0, columns - first));
    int64_t k = 0;
    if (lanes == L && row == 1) {
      for (; k + L <= depth; k += L) {
        Vector<Acc<S>, L> block[L];
        EVIT_UNROLL
        for (int i = 0; i < L; ++i) block[i] = load<L>(source + i * column + k);
        transpose<Acc<S>, L>(block);
        EVIT_UNROLL
        for (int i = 0; i < L; ++i) store<L>(to + (k + i) * W, block[i]);
      }
    } else if (lanes == L && column == 1) {
      for (; k < depth; ++k) store<L>(to + k * W, load<L>(source + k * row));
    }
    for (; k < depth; ++k)
      for (int64_t i = 0; i < L; ++i)
        to[k * W + i] = i < lanes ? load<1>(source + i * column + k * row)[0] : 0;
  }
}

// sums[m][n] = sum over k of a[m * stride + k] * panel[k][n]: M tokens, the first N vectors of a
// panel.
template <class A, int M, int N>
EVIT_INLINE void short_product_tile(const A* a, int64_t stride, const A* panel, int64_t depth,
                                    Vector<A, kVectorBytes / int(sizeof(A))> (&sums)[M][N]) {
  constexpr int L = kVectorBytes / int(sizeof(A));
  using V = Vector<A, L>;
  EVIT_UNROLL
  for (int m = 0; m < M; ++m) {
    EVIT_UNROLL
    for (int n = 0; n < N; ++n) sums[m][n] = V{};
  }
  // A pointer for every third token: the two after it are reached by scaled indices, so that all
  // addresses fit the general registers.
  constexpr int P = (M + 2) / 3;
  const A* rows[P];
  EVIT_UNROLL
  for (int i = 0; i < P; ++i) rows[i] = a + 3 * i * stride;
  for (int64_t k = 0; k < depth; ++k, panel += kPanel * L) {
    V weights[N];
    EVIT_UNROLL
    for (int n = 0; n < N; ++n) weights[n] = load<L>(panel + n * L);
    EVIT_UNROLL
    for (int m = 0; m < M; ++m) {
      const V x = broadcast<L>(rows[m / 3][m % 3 * stride]);
      EVIT_UNROLL
      for (int n = 0; n < N; ++n) sums[m][n] += x * weights[n];
    }
    EVIT_UNROLL
    for (int i = 0; i < P; ++i) ++rows[i];
  }
}

template <class A, int M, int N>
__attribute__((noinline)) void long_product_tile(
    const A* a, int64_t stride, const A* panel, int64_t depth,
    Vector<A, kVectorBytes / int(sizeof(A))> (&sums)[M][N]) {
  constexpr int L = kVectorBytes / int(sizeof(A));
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = Vector<A, L>{};
  for (int64_t k = 0; k < depth; k += kDepth) {
    Vector<A, L> more[M][N];
    short_product_tile<A, M, N>(a + k, stride, panel + k * kPanel * L, smaller(kDepth, depth - k),
                                more);
    EVIT_UNROLL
    for (int m = 0; m < M; ++m) {
      EVIT_UNROLL
      for (int n = 0; n < N; ++n) sums[m][n] += more[m][n];
    }
  }
}

template <class A, int M, int N>
EVIT_INLINE void product_tile(const A* a, int64_t stride, const A* panel, int64_t depth,
                              Vector<A, kVectorBytes / int(sizeof(A))> (&sums)[M][N]) {
  if (depth <= kDepth) return short_product_tile<A, M, N>(a, stride, panel, depth, sums);
  // A copy: the accumulators stay in registers because the function never sees their address.
  Vector<A, kVectorBytes / int(sizeof(A))> totals[M][N];
  long_product_tile<A, M, N>(a, stride, panel, depth, totals);
  EVIT_UNROLL
  for (int m = 0; m < M; ++m) {
    EVIT_UNROLL
    for (int n = 0; n < N; ++n) sums[m][n] = totals[m][n];
  }
}

// to[m][n] += sum over tokens t of a[t * a_stride + m] * b[t * b_stride + n L]: M x N vectors.
template <class A, int M, int N>
EVIT_INLINE void outer_tile(const A* a, int64_t a_stride, const A* b, int64_t b_stride,
                            int64_t tokens, A* to, int64_t to_stride) {
  constexpr int L = kVectorBytes / int(sizeof(A));
  using V = Vector<A, L>;
  while (tokens > 0) {
    const int64_t terms = smaller(kTerms, tokens);
    tokens -= terms;
    V sums[M][N];
    EVIT_UNROLL
    for (int m = 0; m < M; ++m) {
      EVIT_UNROLL
      for (int n = 0; n < N; ++n) sums[m][n] = V{};
    }
    for (int64_t t = 0; t < terms; ++t, a += a_stride, b += b_stride) {
      V inputs[N];
      EVIT_UNROLL
      for (int n = 0; n < N; ++n) inputs[n] = load<L>(b + n * L);
      EVIT_UNROLL
      for (int m = 0; m < M; ++m) {
        const V x = broadcast<L>(a[m]);
        EVIT_UNROLL
        for (int n = 0; n < N; ++n) sums[m][n] += x * inputs[n];
      }
    }
    EVIT_UNROLL
    for (int m = 0; m < M; ++m) {
      EVIT_UNROLL
      for (int n = 0; n < N; ++n) {
        A* p = to + m * to_stride + n * L;
        store<L>(p, load<L>(p) + sums[m][n]);
      }
    }
  }
}

// to[i] += sum over tokens t of a[t * stride + i], for i < width. Eight partial sums: fast, and
// more exact than one long one.
template <class A>
void add_rows(const A* a, int64_t stride, int64_t tokens, int64_t width, A* to) {
  for_each_slab<A>(width, [&](auto lanes, int64_t i) {
    constexpr int L = lanes.value;
    Vector<A, L> sums[8];
    EVIT_UNROLL
    for (int j = 0; j < 8; ++j) sums[j] = Vector<A, L>{};
    int64_t t = 0;
    for (; t + 8 <= tokens; t += 8) {
      EVIT_UNROLL
      for (int j = 0; j < 8; ++j) sums[j] += load<L>(a + (t + j) * stride + i);
    }
    for (; t < tokens; ++t) sums[0] += load<L>(a + t * stride + i);
    EVIT_UNROLL
    for (int half = 4; half > 0; half /= 2) {
      EVIT_UNROLL
      for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    }
    store<L>(to + i, load<L>(to + i) + sums[0]);
  });
}

}  // namespace
