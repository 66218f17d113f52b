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
constexpr int kTileSums = kVectorRegisters / 2;
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

// Copies a block to tokens of a tensor; op(vector, token, feature) transforms on the way. Past:
// vectors that fill lines go past the caches.
template <bool Past, class S, class F>
EVIT_INLINE void unpack_to(const Acc<S>* block, int64_t tokens, int64_t width, S* destination,
                           int64_t stride, F&& op) {
  using A = Acc<S>;
  for_each_slab<S>(width, [&](auto lanes, int64_t c) {
    constexpr int L = lanes.value;
    const A* source = block + position<A>(0, c);
    for (int64_t t = 0; t < tokens; ++t) {
      S* place = destination + t * stride + c;
      const auto x = op(load<L>(source + t * kLanes<A>), t, c);
      if constexpr (Past && kStoresPast<S, L>)
        store_past<S, L>(place, x);
      else
        store<L>(place, x);
    }
  });
}

template <class S, class F>
EVIT_INLINE void unpack(const Acc<S>* block, int64_t tokens, int64_t width, S* destination,
                        int64_t stride, [[maybe_unused]] bool past, F&& op) {
  if constexpr (kStoresPast<S, kLanes<Acc<S>>>)
    if (past) return unpack_to<true>(block, tokens, width, destination, stride, op);
  unpack_to<false>(block, tokens, width, destination, stride, op);
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

// Copies the positive part of whole vectors of features of whole multiples of tokens into a block,
// and writes what inner_products would say of it and one row.
template <class A>
EVIT_INLINE void pack_with_products(const A* source, int64_t stride, int64_t tokens, int64_t width,
                                    const A* row, A* block, A* out) {
  constexpr int L = kLanes<A>;
  for (int64_t t = 0; t < tokens; t += L) {
    Vector<A, L> sums[L] = {};
    for (int64_t c = 0; c < width; c += L) {
      const Vector<A, L> factor = load<L>(row + c);
      const A* from = source + t * stride + c;
      A* to = block + position<A>(t, c);
      EVIT_UNROLL
      for (int i = 0; i < L; ++i) {
        const Vector<A, L> x = positive_part(load<L>(from));
        store<L>(to + i * L, x);
        sums[i] += x * factor;
        from += stride;
      }
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

}  // namespace
