// The pieces of linear attention on one block of tokens of one head, all in the accumulation type.
//
// A block is dense: rows of `padded` features, the width rounded up to whole vectors; padding lanes
// are zero, and so are the rows up to the next multiple of kRowMultiple. Matrices have padded rows too.
// Lanes beyond the width may hold anything in results (0 * infinity is NaN): they are never read back.
#pragma once

#include "buffer.h"
#include "simd.h"

namespace {

// Sums held in registers by a tile; what is left of the register file feeds them.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileSums = 16;
#else
constexpr int kTileSums = 8;
#endif
constexpr int64_t kRowMultiple = 16;

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

// Copies rows of a tensor into a block; op(vector, row) transforms them on the way.
template <class S, class F>
EVIT_INLINE void pack(const S* source, int64_t stride, int64_t rows, int64_t width, int64_t padded,
                      Acc<S>* block, F&& op) {
  for_each_slab<S>(width, [&](auto lanes, int64_t c) {
    constexpr int L = lanes.value;
    for (int64_t t = 0; t < rows; ++t)
      store<L>(block + t * padded + c, op(load<L>(source + t * stride + c), t));
  });
  for (int64_t t = 0; width < padded && t < rows; ++t)
    for (int64_t c = width; c < padded; ++c) block[t * padded + c] = 0;
  const int64_t end = ceil_div(rows, kRowMultiple) * kRowMultiple * padded;
  for (int64_t i = rows * padded; i < end; ++i) block[i] = 0;
}

// Stores a vector to a tensor, or its first `count` lanes where the width ends inside it.
template <class S, int L>
EVIT_INLINE void store_lanes(S* destination, Vector<Acc<S>, L> v, int64_t count) {
  if (count >= L) {
    store<L>(destination, v);
    return;
  }
  Acc<S> lanes[L];
  store<L>(lanes, v);
  for_each_slab<S>(count, [&](auto width, int64_t c) {
    store<width.value>(destination + c, load<width.value>(lanes + c));
  });
}

// ---- sums along rows and columns ----

template <int... I>
struct Lanes {};
template <int N, int... I>
struct LanesUpTo : LanesUpTo<N - 1, N - 1, I...> {};
template <int... I>
struct LanesUpTo<0, I...> {
  using type = Lanes<I...>;
};

// How two vectors of sums, of rows a and b, are folded into one: the lanes of `low` and of `high` are
// added. Within 128 bits first, by interleaving, then whole groups of 128 bits: each is one cheap
// instruction, and after log2(L) folds lane t holds the sum of row t.
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

// out[t] = a[t] . b[t], for whole multiples of kRowMultiple rows; b_stride 0 takes one b for all.
template <class A>
EVIT_INLINE void row_products(const A* a, const A* b, int64_t b_stride, int64_t rows, int64_t padded,
                              A* out) {
  constexpr int L = kLanes<A>;
  for (int64_t t = 0; t < rows; t += L) {
    Vector<A, L> sums[L];
    EVIT_UNROLL
    for (int i = 0; i < L; ++i) sums[i] = load<L>(a + (t + i) * padded) * load<L>(b + (t + i) * b_stride);
    for (int64_t c = L; c < padded; c += L) {
      EVIT_UNROLL
      for (int i = 0; i < L; ++i)
        sums[i] += load<L>(a + (t + i) * padded + c) * load<L>(b + (t + i) * b_stride + c);
    }
    store<L>(out + t, sums_of_rows<L>(sums));
  }
}

// sums[c] += sum over t of block[t][c], times factor[t] where given; for multiples of kRowMultiple.
template <class A>
EVIT_INLINE void add_column_sums(const A* block, const A* factor, int64_t rows, int64_t padded,
                                 A* sums) {
  constexpr int L = kLanes<A>;
  for (int64_t c = 0; c < padded; c += L) {
    Vector<A, L> part[4] = {};
    for (int64_t t = 0; t < rows; t += 4) {
      EVIT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const Vector<A, L> x = load<L>(block + (t + i) * padded + c);
        part[i] += factor != nullptr ? x * factor[t + i] : x;
      }
    }
    store<L>(sums + c, load<L>(sums + c) + ((part[0] + part[1]) + (part[2] + part[3])));
  }
}

// ---- products of blocks and matrices ----

// sums[i][j] += sum over t of a[t][i] b[t][j], for R rows and C vectors of columns. Starts from zero
// and adds once at the end: sums over blocks are shorter, and their rounding errors smaller.
template <class A, int R, int C>
EVIT_INLINE void outer_tile(const A* a, int64_t a_stride, const A* b, int64_t b_stride, int64_t rows,
                            A* sums, int64_t padded) {
  constexpr int L = kLanes<A>;
  using V = Vector<A, L>;
  V tile[R][C] = {};
  for (int64_t t = 0; t < rows; ++t) {
    V right[C];
    EVIT_UNROLL
    for (int c = 0; c < C; ++c) right[c] = load<L>(b + t * b_stride + c * L);
    EVIT_UNROLL
    for (int r = 0; r < R; ++r) {
      EVIT_UNROLL
      for (int c = 0; c < C; ++c) tile[r][c] += right[c] * a[t * a_stride + r];
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

template <class A, int C>
EVIT_INLINE void outer_columns(const A* a, int64_t padded, const A* b, int64_t b_stride, int64_t rows,
                               int64_t width, A* sums) {
  constexpr int R = kTileSums / C;
  int64_t i = 0;
  for (; i + R <= width; i += R)
    outer_tile<A, R, C>(a + i, padded, b, b_stride, rows, sums + i * padded, padded);
  if constexpr (R > 4)
    for (; i + 4 <= width; i += 4)
      outer_tile<A, 4, C>(a + i, padded, b, b_stride, rows, sums + i * padded, padded);
  for (; i < width; ++i)
    outer_tile<A, 1, C>(a + i, padded, b, b_stride, rows, sums + i * padded, padded);
}

// sums (width x padded) += a^T b, where a is a block and b has rows of at least `padded` features.
template <class A>
void add_outer(const A* a, const A* b, int64_t b_stride, int64_t rows, int64_t width, int64_t padded,
               A* sums) {
  constexpr int L = kLanes<A>;
  int64_t j = 0;
  for (; j + 2 * L <= padded; j += 2 * L)
    outer_columns<A, 2>(a, padded, b + j, b_stride, rows, width, sums + j);
  if (j < padded) outer_columns<A, 1>(a, padded, b + j, b_stride, rows, width, sums + j);
}

// sink(t, j, vector) receives (a matrix)[t][j ...] for T rows and C vectors of columns.
template <class A, int T, int C, class F>
EVIT_INLINE void apply_tile(const A* a, const A* matrix, int64_t t, int64_t j, int64_t rows,
                            int64_t width, int64_t padded, F&& sink) {
  constexpr int L = kLanes<A>;
  using V = Vector<A, L>;
  V tile[T][C] = {};
  for (int64_t i = 0; i < width; ++i) {
    V right[C];
    EVIT_UNROLL
    for (int c = 0; c < C; ++c) right[c] = load<L>(matrix + i * padded + j + c * L);
    EVIT_UNROLL
    for (int r = 0; r < T; ++r) {
      EVIT_UNROLL
      for (int c = 0; c < C; ++c) tile[r][c] += right[c] * a[(t + r) * padded + i];
    }
  }
  EVIT_UNROLL
  for (int r = 0; r < T; ++r) {
    if (t + r >= rows) break;
    EVIT_UNROLL
    for (int c = 0; c < C; ++c) sink(t + r, j + c * L, tile[r][c]);
  }
}

// The product of a block and a matrix of `width` rows; each vector of it goes to `sink`.
template <class A, class F>
EVIT_INLINE void apply(const A* a, const A* matrix, int64_t rows, int64_t width, int64_t padded,
                       F&& sink) {
  constexpr int L = kLanes<A>;
  int64_t j = 0;
  for (; j + 2 * L <= padded; j += 2 * L)
    for (int64_t t = 0; t < rows; t += kTileSums / 2)
      apply_tile<A, kTileSums / 2, 2>(a, matrix, t, j, rows, width, padded, sink);
  if (j < padded)
    for (int64_t t = 0; t < rows; t += kTileSums)
      apply_tile<A, kTileSums, 1>(a, matrix, t, j, rows, width, padded, sink);
}

}  // namespace
