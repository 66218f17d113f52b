// The pieces of linear attention on one block of tokens of one head, all in the accumulation type.
//
// A block is stored in panels of one vector of features: panel p holds, token after token, features
// [p L, (p + 1) L). So all addresses within a tile are constants. Lanes beyond the width are zero
// in what is packed; so are the tokens up to the next multiple of kTokenMultiple. Matrices are
// row-major with rows of `padded` features, the width rounded up to whole vectors. In products,
// lanes beyond the width may hold anything (0 * infinity is NaN): they are never used.
#pragma once

#include "buffer.h"
#include "simd.h"

namespace {

constexpr int64_t kBlockTokens = 64;
constexpr int64_t kTokenMultiple = 16;

// Sums held in registers by a tile; what is left of the register file feeds them.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileSums = 16;
#else
constexpr int kTileSums = 8;
#endif
// Vectors of columns in a tile: the more, the fewer loads per product.
template <class A>
constexpr int kTileColumns = kTileSums / kLanes<A> >= 4 ? 4 : 2;

template <class A>
constexpr int64_t kPanel = kBlockTokens * kLanes<A>;

// Where in a block a feature of a token is.
template <class A>
EVIT_INLINE int64_t position(int64_t token, int64_t feature) {
  constexpr int L = kLanes<A>;
  return feature / L * kPanel<A> + token * L + feature % L;
}

inline int64_t whole_tokens(int64_t tokens) {
  return ceil_div(tokens, kTokenMultiple) * kTokenMultiple;
}

// A maximum would hide NaN; this keeps it, as PyTorch does.
template <class V>
EVIT_INLINE V relu(V x) {
  const V zero = {};
  return x < zero ? zero : x;
}

// PyTorch's derivative: 0 at 0, and a NaN lets the gradient pass.
template <class V>
EVIT_INLINE V where_positive(V x, V gradient) {
  const V zero = {};
  return x <= zero ? zero : gradient;
}

// ---- between tensors and blocks ----

// Copies tokens of a tensor into a block; op(vector, token, feature) transforms on the way.
template <class S, class F>
EVIT_INLINE void pack(const S* source, int64_t stride, int64_t tokens, int64_t width,
                      int64_t padded, Acc<S>* block, F&& op) {
  using A = Acc<S>;
  for_each_slab<S>(width, [&](auto lanes, int64_t c) {
    constexpr int L = lanes.value;
    A* target = block + position<A>(0, c);
    for (int64_t t = 0; t < tokens; ++t) {
      store<L>(target + t * kLanes<A>, op(load<L>(source + t * stride + c), t, c));
    }
  });
  for (int64_t c = width; c < padded; ++c)
    for (int64_t t = 0; t < tokens; ++t) block[position<A>(t, c)] = 0;
  for (int64_t c = 0; c < padded; c += kLanes<A>)
    for (int64_t t = tokens; t < whole_tokens(tokens); ++t)
      store<kLanes<A>>(block + position<A>(t, c), Vector<A, kLanes<A>>{});
}

// Copies a block to tokens of a tensor; op(vector, token, feature) transforms on the way.
template <class S, class F>
EVIT_INLINE void unpack(const Acc<S>* block, int64_t tokens, int64_t width, S* destination,
                        int64_t stride, F&& op) {
  using A = Acc<S>;
  for_each_slab<S>(width, [&](auto lanes, int64_t c) {
    constexpr int L = lanes.value;
    const A* source = block + position<A>(0, c);
    for (int64_t t = 0; t < tokens; ++t)
      store<L>(destination + t * stride + c, op(load<L>(source + t * kLanes<A>), t, c));
  });
}

// ---- sums along tokens and features ----

// How two vectors of sums, of rows a and b, are folded into one: the lanes of `low` and of `high`
// are added. Within 128 bits first, by interleaving, then whole groups of 128 bits: each is one
// cheap instruction, and after log2(L) folds lane t holds the sum of row t.
struct FoldSingles {
  static constexpr int lane(int i, int length, int high) {
    return i / 4 * 4 + (i % 4 >> 1) + 2 * high + (i & 1) * length;
  }
};
struct FoldPairs {
  static constexpr int lane(int i, int length, int high) {
    return i / 4 * 4 + (i & 1) + 2 * high + (i % 4 >> 1) * length;
  }
};
struct FoldGroups {
  static constexpr int lane(int i, int length, int high) {
    const int half = length / 2;
    return i % half / 4 * 8 + 4 * high + i % 4 + (i / half) * length;
  }
};

template <class Fold, int High, class V, int... I>
EVIT_INLINE V select_lanes(V a, V b, Lanes<I...>) {
  constexpr int length = sizeof...(I);
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, Fold::lane(I, length, High)...);
#else
  return __builtin_shuffle(a, b, Vector<int32_t, length>{Fold::lane(I, length, High)...});
#endif
}

template <class Fold, int L>
EVIT_INLINE void fold(Vector<float, L>* rows, int count) {
  using All = typename LanesUpTo<L>::type;
  EVIT_UNROLL
  for (int i = 0; i < count / 2; ++i)
    rows[i] = select_lanes<Fold, 0>(rows[2 * i], rows[2 * i + 1], All{}) +
              select_lanes<Fold, 1>(rows[2 * i], rows[2 * i + 1], All{});
}

// Lane t of the result is the sum of the lanes of rows[t].
template <int L>
EVIT_INLINE Vector<float, L> sums_of_rows(Vector<float, L> (&rows)[L]) {
  fold<FoldSingles, L>(rows, L);
  fold<FoldPairs, L>(rows, L / 2);
  if constexpr (L >= 8) fold<FoldGroups, L>(rows, L / 4);
  if constexpr (L >= 16) fold<FoldGroups, L>(rows, L / 8);
  return rows[0];
}
template <int L>
EVIT_INLINE Vector<double, L> sums_of_rows(Vector<double, L> (&rows)[L]) {
  Vector<double, L> sums = {};
  for (int t = 0; t < L; ++t)
    for (int i = 0; i < L; ++i) sums[t] += rows[t][i];
  return sums;
}

// Where the second factor of a product lies: strides of a token and of a vector of features.
struct Steps {
  int64_t token;
  int64_t vector;
};
template <class A>
constexpr Steps kBlockSteps = {kLanes<A>, kPanel<A>};
template <class A>
constexpr Steps kRowSteps = {0, kLanes<A>};  // one row, the same for all tokens

// out[t] = sum over features of a[t] b[t], for whole multiples of kTokenMultiple tokens.
template <class A>
EVIT_INLINE void inner_products(const A* a, const A* b, Steps b_steps, int64_t tokens,
                                int64_t padded, A* out) {
  constexpr int L = kLanes<A>;
  for (int64_t t = 0; t < tokens; t += L) {
    Vector<A, L> sums[L] = {};
    for (int64_t p = 0; p < padded / L; ++p) {
      EVIT_UNROLL
      for (int i = 0; i < L; ++i)
        sums[i] += load<L>(a + p * kPanel<A> + (t + i) * L) *
                   load<L>(b + p * b_steps.vector + (t + i) * b_steps.token);
    }
    store<L>(out + t, sums_of_rows<L>(sums));
  }
}

// sums[c] += sum over tokens of block[t][c], times factor[t] where given; whole multiples of
// tokens.
template <class A>
EVIT_INLINE void add_token_sums(const A* block, const A* factor, int64_t tokens, int64_t padded,
                                A* sums) {
  constexpr int L = kLanes<A>;
  for (int64_t c = 0; c < padded; c += L) {
    const A* panel = block + position<A>(0, c);
    Vector<A, L> part[4] = {};
    for (int64_t t = 0; t < tokens; t += 4) {
      EVIT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const Vector<A, L> x = load<L>(panel + (t + i) * L);
        part[i] += factor != nullptr ? x * factor[t + i] : x;
      }
    }
    store<L>(sums + c, load<L>(sums + c) + ((part[0] + part[1]) + (part[2] + part[3])));
  }
}

// ---- products of blocks and matrices ----

// Which steps of a loop are interrupted: from `first` on one in `every`.
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

template <class A, int C, class F>
EVIT_INLINE void outer_columns(const A* a, const A* b, Steps b_steps, int64_t tokens, int64_t width,
                               A* sums, int64_t padded, F&& between) {
  constexpr int L = kLanes<A>;
  constexpr int R = kTileSums / C < L ? kTileSums / C : L;  // divides a panel
  const int64_t tiles = width / R;
  int64_t i = 0;
  for (; i + R <= width; i += R)
    outer_tile<A, R, C>(a + position<A>(0, i), b, b_steps, tokens, sums + i * padded, padded,
                        {i / R, tiles}, between);
  for (; i < width; ++i)
    outer_tile<A, 1, C>(a + position<A>(0, i), b, b_steps, tokens, sums + i * padded, padded,
                        {tiles == 0 ? i : tokens, width}, between);
}

// Calls f(Width<C>{}, vector) over [0, vectors) with the widest tiles that fit.
template <class A, class F>
EVIT_INLINE void for_each_columns(int64_t vectors, F&& f) {
  int64_t v = 0;
  if constexpr (kTileColumns<A> == 4)
    for (; v + 4 <= vectors; v += 4) f(Width<4>{}, v);
  for (; v + 2 <= vectors; v += 2) f(Width<2>{}, v);
  if (v < vectors) f(Width<1>{}, v);
}

// sums (width x padded) += a^T b; calls between() about once a token.
template <class A, class F>
EVIT_INLINE void add_outer(const A* a, const A* b, Steps b_steps, int64_t tokens, int64_t width,
                           int64_t padded, A* sums, F&& between) {
  for_each_columns<A>(padded / kLanes<A>, [&](auto columns, int64_t v) {
    outer_columns<A, columns.value>(a, b + v * b_steps.vector, b_steps, tokens, width,
                                    sums + v * kLanes<A>, padded, between);
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
      right[c] = relu(load<L>(keys + t * key_stride + c * L));
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
// features; calls between() about once a token.
template <class S, class F>
EVIT_INLINE void add_outer_directly(const S* keys, int64_t key_stride, const S* values,
                                    int64_t value_stride, int64_t tokens, int64_t width, S* sums,
                                    S* z, F&& between) {
  constexpr int L = kLanes<S>;
  for_each_columns<S>(width / L, [&](auto columns, int64_t v) {
    constexpr int C = columns.value;
    constexpr int R = kTileSums / C < L ? kTileSums / C : L;
    const S* key = keys + v * L;
    S* target = sums + v * L;
    direct_tile<S, R, C, true>(key, key_stride, values, value_stride, tokens, width, target,
                               z + v * L, {0, width / R}, between);
    for (int64_t i = R; i < width; i += R)
      direct_tile<S, R, C, false>(key, key_stride, values + i, value_stride, tokens, width,
                                  target + i * width, z, {i / R, width / R}, between);
  });
}

// T tokens and C vectors of columns of the product of a block and a matrix; put(vector, r, c) takes
// the result of the r-th token, c-th vector of columns.
template <class A, int T, int C, class F, class G>
EVIT_INLINE void product_tile(const A* a, const A* matrix, int64_t width, int64_t padded, F&& put,
                              G&& between) {
  constexpr int L = kLanes<A>;
  using V = Vector<A, L>;
  V tile[T][C] = {};
  Turns turns = {0, larger(1, width / T)};
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
  for_each_columns<A>(padded / L, [&](auto columns, int64_t v) {
    constexpr int C = columns.value;
    constexpr int T = kTileSums / C;
    for (int64_t t = 0; t < tokens; t += T) {
      A* target = out + v * kPanel<A> + t * L;
      product_tile<A, T, C>(
          a + t * L, matrix + v * L, width, padded,
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
  for_each_columns<A>(width / L, [&](auto columns, int64_t v) {
    constexpr int C = columns.value;
    constexpr int T = kTileSums / C;
    for (int64_t t = 0; t < tokens; t += T) {
      S* target = destination + t * stride + v * L;
      product_tile<A, T, C>(
          a + t * L, matrix + v * L, width, width,
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
