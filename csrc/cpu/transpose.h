// Matrix transposition in registers: what leads from planes of pixels to rows of channels and back.
#pragma once

#include "buffer.h"
#include "simd.h"

namespace {

// a and b alternating: the lower halves (Half = 0) or the upper halves (Half = 1) of both.
template <class T, int L, int Half, int... I>
EVIT_INLINE Vector<T, L> interleave(Vector<T, L> a, Vector<T, L> b, Lanes<I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (I % 2 * L + I / 2 + Half * (L / 2))...);
#else
  return __builtin_shuffle(a, b,
                           Vector<T, L>{static_cast<T>(I % 2 * L + I / 2 + Half * (L / 2))...});
#endif
}

// Each round of interleaving row i with row i + L/2 moves one bit of the row's number into the
// column's, so that after log2(L) rounds the two have changed places.
template <class T, int L>
EVIT_INLINE void transpose(Vector<T, L> (&rows)[L]) {
  using All = typename LanesUpTo<L>::type;
  EVIT_UNROLL
  for (int round = 1; round < L; round *= 2) {
    Vector<T, L> next[L];
    EVIT_UNROLL
    for (int i = 0; i < L / 2; ++i) {
      next[2 * i] = interleave<T, L, 0>(rows[i], rows[i + L / 2], All{});
      next[2 * i + 1] = interleave<T, L, 1>(rows[i], rows[i + L / 2], All{});
    }
    EVIT_UNROLL
    for (int i = 0; i < L; ++i) rows[i] = next[i];
  }
}

// A strip of a matrix: to[j][i] = from[i][j], both with a stride between their rows.
template <class T, int L>
EVIT_INLINE void transpose_block(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  Vector<T, L> rows[L];
  EVIT_UNROLL
  for (int i = 0; i < L; ++i) rows[i] = load_raw<Vector<T, L>>(from + i * from_stride);
  transpose<T, L>(rows);
  EVIT_UNROLL
  for (int i = 0; i < L; ++i) std::memcpy(to + i * to_stride, &rows[i], sizeof rows[i]);
}

}  // namespace
