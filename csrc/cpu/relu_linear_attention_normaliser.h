// The normalisers of a block of tokens, and division by them.
#pragma once

#include "relu_linear_attention_tiles.h"
#include "relu_linear_attention_work.h"

namespace {

// x / den is computed as x * inverse * scale: one division serves a row, and the scale, 1 but for
// tiny normalisers, keeps their inverse finite. A scale of 0 marks a normaliser of 0: everything
// divided by it is 0, whatever it is.
template <class A>
struct Normalisers {
  A value[kBlockTokens];
  A inverse[kBlockTokens];
  A scale[kBlockTokens];
  bool scaled;  // whether any scale is not 1

  template <class V>
  EVIT_INLINE V divide(V x, int64_t t) const {
    return scale[t] == 0 ? V{} : x * inverse[t] * scale[t];
  }
};

// n.value holds the products of queries and z.
template <class A>
EVIT_INLINE void normalise(const Work<A>& w, int64_t tokens, Normalisers<A>& n) {
  constexpr int L = kLanes<A>;
  using V = Vector<A, L>;
  const V zero = {}, one = broadcast<L>(A(1)), eps = broadcast<L>(static_cast<A>(w.p.eps));
  const V tiny = broadcast<L>(A(0x1p-60)), huge = broadcast<L>(A(0x1p60));
  V magnitudes = one;
  for (int64_t t = 0; t < tokens; t += L) {
    const V den = load<L>(n.value + t) + eps;
    const V magnitude = den < zero ? -den : den;
    const V scale = magnitude < tiny ? huge : one;
    magnitudes = magnitude < magnitudes ? magnitude : magnitudes;
    store<L>(n.value + t, den);
    store<L>(n.inverse + t, one / (den * scale));
    store<L>(n.scale + t, den == zero ? zero : scale);
  }
  n.scaled = any_less(magnitudes, tiny);
}

}  // namespace
