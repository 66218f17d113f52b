// Products of linear attention, tile by tile in registers: of blocks
// (relu_linear_attention_tiles.h), or of rows of tensors where they lie, with each other and with
// matrices.
#pragma once

#include "relu_linear_attention_tiles.h"

namespace {

// Which steps of a loop are interrupted: from `first` on one in `every`. Where several passes go
// over the same tokens, each takes turns of its own, so that every token has one.
struct Turns {
  int64_t first;
  int64_t every;

  EVIT_INLINE bool now(int64_t step) {
    if (step != first) return false;
    first += every;
    return true;
  }
};

// sums[i][j] += sum over tokens of a[t][i] b[t][j], for R rows and C vectors of columns. Starts
// from zero and adds once at the end: sums over blocks are shorter, and their rounding errors
// smaller.
template <class A, int R, int C, class F>
EVIT_INLINE void outer_tile(const A* a, const A* b, Steps b_steps, int64_t tokens, A* sums,
                            int64_t padded, Turns turns, F&& between) {
  constexpr int L = kLanes<A>;
  using V = Vector<A, L>;
  V tile[R][C] = {};
  for (int64_t t = 0; t < tokens; ++t) {
    if (turns.now(t)) between();
    V right[C];
    EVIT_UNROLL
    for (int c = 0; c < C; ++c) right[c] = load<L>(b + t * b_steps.token + c * b_steps.vector);
    EVIT_UNROLL
    for (int r = 0; r < R; ++r) {
      EVIT_UNROLL
      for (int c = 0; c < C; ++c) tile[r][c] += right[c] * a[t * L + r];
    }
  }
  EVIT_UNROLL
  for (int r = 0; r < R; ++r) {
    EVIT_UNROLL
    for (int c = 0; c < C; ++c) {
      A* target = sums + r * padded + c * L;
      store<L>(target, load<L>(target) + tile[r][c]);
    }
  }
}

// Calls f(Width<C>{}, vector, pass, passes) over [0, vectors) with the widest tiles that fit.
template <class A, class F>
EVIT_INLINE void for_each_columns(int64_t vectors, F&& f) {
  constexpr int64_t most = kTileColumns<A>;
  const int64_t passes = vectors / most + vectors % most / 2 + vectors % 2;
  int64_t v = 0, pass = 0;
  if constexpr (most == 4)
    for (; v + 4 <= vectors; v += 4) f(Width<4>{}, v, pass++, passes);
  for (; v + 2 <= vectors; v += 2) f(Width<2>{}, v, pass++, passes);
  if (v < vectors) f(Width<1>{}, v, pass, passes);
}

// sums (width x padded) += a^T b; calls between() once a token.
template <class A, class F>
EVIT_INLINE void add_outer(const A* a, const A* b, Steps b_steps, int64_t tokens, int64_t width,
                           int64_t padded, A* sums, F&& between) {
  for_each_columns<A>(
      padded / kLanes<A>, [&](auto columns, int64_t v, int64_t pass, int64_t passes) {
        constexpr int L = kLanes<A>, C = columns.value;
        constexpr int R = kTileSums / C < L ? kTileSums / C : L;  // divides a panel
        const A* right = b + v * b_steps.vector;
        A* target = sums + v * L;
        const int64_t tiles = width / R;
        int64_t i = 0;
        for (; i + R <= width; i += R)
          outer_tile<A, R, C>(a + position<A>(0, i), right, b_steps, tokens, target + i * padded,
                              padded, {pass * tiles + i / R, passes * tiles}, between);
        for (; i < width; ++i)
          outer_tile<A, 1, C>(a + position<A>(0, i), right, b_steps, tokens, target + i * padded,
                              padded, {tiles == 0 ? i : tokens, width}, between);
      });
}

// The transpose of such sums straight from rows of a tensor, without a block: R features of values,
// read one by one, times the positive part of C vectors of features of keys. Those are added up,
// too, where Sum.
template <class S, int R, int C, bool Sum, class F>
EVIT_INLINE void direct_tile(const S* keys, int64_t key_stride, const S* values,
                             int64_t value_stride, int64_t tokens, int64_t width, S* sums, S* z,
                             Turns turns, F&& between) {
  constexpr int L = kLanes<S>;
  using V = Vector<S, L>;
  V tile[R][C] = {}, total[C] = {};
  for (int64_t t = 0; t < tokens; ++t) {
    if (turns.now(t)) between();
    V right[C];
    EVIT_UNROLL
    for (int c = 0; c < C; ++c) {
      right[c] = positive_part(load<L>(keys + t * key_stride + c * L));
      if constexpr (Sum) total[c] += right[c];
    }
    EVIT_UNROLL
    for (int r = 0; r < R; ++r) {
      EVIT_UNROLL
      for (int c = 0; c < C; ++c) tile[r][c] += right[c] * values[t * value_stride + r];
    }
  }
  EVIT_UNROLL
  for (int c = 0; c < C; ++c) {
    EVIT_UNROLL
    for (int r = 0; r < R; ++r) {
      S* target = sums + r * width + c * L;
      store<L>(target, load<L>(target) + tile[r][c]);
    }
    if constexpr (Sum) store<L>(z + c * L, load<L>(z + c * L) + total[c]);
  }
}

// sums (width x width) += values^T relu(keys), z += sum of relu(keys), for whole vectors of
// features; calls between() once a token.
template <class S, class F>
EVIT_INLINE void add_outer_directly(const S* keys, int64_t key_stride, const S* values,
                                    int64_t value_stride, int64_t tokens, int64_t width, S* sums,
                                    S* z, F&& between) {
  constexpr int L = kLanes<S>;
  for_each_columns<S>(width / L, [&](auto columns, int64_t v, int64_t pass, int64_t passes) {
    constexpr int C = columns.value;
    constexpr int R = kTileSums / C < L ? kTileSums / C : L;
    const S* key = keys + v * L;
    S* target = sums + v * L;
    const int64_t tiles = width / R, first = pass * tiles, every = passes * tiles;
    direct_tile<S, R, C, true>(key, key_stride, values, value_stride, tokens, width, target,
                               z + v * L, {first, every}, between);
    for (int64_t i = R; i < width; i += R)
      direct_tile<S, R, C, false>(key, key_stride, values + i, value_stride, tokens, width,
                                  target + i * width, z, {first + i / R, every}, between);
  });
}

// The turns of a tile of T tokens in one of the passes over columns.
template <int T>
EVIT_INLINE Turns product_turns(int64_t width, int64_t pass, int64_t passes) {
  const int64_t each = larger(1, width / T);
  return {pass * each, passes * each};
}

// T tokens and C vectors of columns of the product of a block and a matrix; put(vector, r, c) takes
// the result of the r-th token, c-th vector of columns.
template <class A, int T, int C, class F, class G>
EVIT_INLINE void product_tile(const A* a, const A* matrix, int64_t width, int64_t padded,
                              Turns turns, F&& put, G&& between) {
  constexpr int L = kLanes<A>;
  using V = Vector<A, L>;
  V tile[T][C] = {};
  for (int64_t i0 = 0; i0 < width; i0 += L) {
    const A* left = a + position<A>(0, i0);
    const int64_t end = smaller(L, width - i0);
    for (int64_t i = 0; i < end; ++i) {
      if (turns.now(i0 + i)) between();
      V right[C];
      EVIT_UNROLL
      for (int c = 0; c < C; ++c) right[c] = load<L>(matrix + (i0 + i) * padded + c * L);
      EVIT_UNROLL
      for (int r = 0; r < T; ++r) {
        EVIT_UNROLL
        for (int c = 0; c < C; ++c) tile[r][c] += right[c] * left[r * L + i];
      }
    }
  }
  EVIT_UNROLL
  for (int r = 0; r < T; ++r) {
    EVIT_UNROLL
    for (int c = 0; c < C; ++c) put(tile[r][c], r, c);
  }
}

// out = a matrix, for blocks `a` and `out` and a matrix of `width` rows; whole multiples of tokens.
template <class A, class G>
EVIT_INLINE void multiply(const A* a, const A* matrix, int64_t tokens, int64_t width,
                          int64_t padded, A* out, G&& between) {
  constexpr int L = kLanes<A>;
  for_each_columns<A>(padded / L, [&](auto columns, int64_t v, int64_t pass, int64_t passes) {
    constexpr int C = columns.value;
    constexpr int T = kTileSums / C;
    const Turns turns = product_turns<T>(width, pass, passes);
    for (int64_t t = 0; t < tokens; t += T) {
      A* target = out + v * kPanel<A> + t * L;
      product_tile<A, T, C>(
          a + t * L, matrix + v * L, width, padded, turns,
          [&](auto x, int r, int c) { store<L>(target + c * kPanel<A> + r * L, x); }, between);
    }
  });
}

// The same into rows of a tensor, of `tokens` tokens in whole tiles, of whole vectors; op(vector,
// token) transforms on the way. Past: stores go past the caches.
template <bool Past, class S, class F, class G>
EVIT_INLINE void multiply_into(const Acc<S>* a, const Acc<S>* matrix, int64_t tokens, int64_t width,
                               S* destination, int64_t stride, F&& op, G&& between) {
  using A = Acc<S>;
  constexpr int L = kLanes<A>;
  for_each_columns<A>(width / L, [&](auto columns, int64_t v, int64_t pass, int64_t passes) {
    constexpr int C = columns.value;
    constexpr int T = kTileSums / C;
    const Turns turns = product_turns<T>(width, pass, passes);
    for (int64_t t = 0; t < tokens; t += T) {
      S* target = destination + t * stride + v * L;
      product_tile<A, T, C>(
          a + t * L, matrix + v * L, width, width, turns,
          [&](auto x, int r, int c) {
            S* place = target + r * stride + c * L;
            if constexpr (Past)
              store_past<S, L>(place, op(x, t + r));
            else
              store<L>(place, op(x, t + r));
          },
          between);
    }
  });
}

}  // namespace
