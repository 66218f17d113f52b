// The normalisers of a block of tokens, and division by them.
#pragma once

#include "relu_linear_attention_tiles.h"

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

// What queries and eps are multiplied by: it cancels in the quotient, and is 1 where sums of keys
// and values are not tiny. Where they are, products with queries would be denormal numbers, as in
// networks of random weights whose activations fade out layer by layer: processors take up to a
// hundred times as long for those, and their last bits are lost.
template <class A>
A lift_of(const A* matrix, int64_t count) {
  constexpr int L = kLanes<A>;
  using V = Vector<A, L>;
  V largest = {};
  for (int64_t i = 0; i < count; i += L) {
    const V x = load<L>(matrix + i), magnitude = x < V{} ? -x : x;
    largest = magnitude > largest ? magnitude : largest;
  }
  return any_less(broadcast<L>(A(0x1p-64)), largest) ? A(1) : A(0x1p48);
}

// n.value holds the products of queries and z; eps goes with the queries.
template <class A>
EVIT_INLINE void normalise(A epsilon, int64_t tokens, Normalisers<A>& n) {
  constexpr int L = kLanes<A>;
  using V = Vector<A, L>;
  const V zero = {}, one = broadcast<L>(A(1)), eps = broadcast<L>(epsilon);
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
