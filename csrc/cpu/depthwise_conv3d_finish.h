// What blocks of destination columns of a depthwise convolution have in common: how a row is added,
// and the end of their sums: bias, activation (or its derivative), store.
#pragma once

#include "activation.h"
#include "simd.h"

namespace {

// sums[i] += source columns i * KS + (0 .. KW - 1) of a row times a row of KW weights.
template <class S, int KW, int KS, int B>
EVIT_INLINE void add_row(const Acc<S>* row, const Acc<S>* weight,
                         Vector<Acc<S>, kLanes<S>> (&sums)[B]) {
  constexpr int L = kLanes<S>;
  using V = Vector<Acc<S>, L>;
  V taps[KW];
  EVIT_UNROLL
  for (int k = 0; k < KW; ++k) taps[k] = load<L>(weight + k * L);
  EVIT_UNROLL
  for (int j = 0; j < (B - 1) * KS + KW; ++j) {
    V x = load<L>(row + j * L);
    keep(x);
    EVIT_UNROLL
    for (int k = 0; k < KW; ++k)
      if (j >= k && (j - k) % KS == 0 && (j - k) / KS < B) sums[(j - k) / KS] += x * taps[k];
  }
}

// Where the sums of one slab of channels go.
template <class S>
struct Target {
  const Acc<S>* bias;   // (L) or null
  const S* multiplier;  // null, or like the destination: store multiplier * act'(sum)
  Activation activation;
  S* destination;
  int64_t frame_stride;  // of destination and multiplier, in elements
  int64_t row_stride;
  int64_t column_stride;
  int lanes;  // channels of this slab that exist

  int64_t offset(int64_t frame, int64_t row, int64_t column) const {
    return frame * frame_stride + row * row_stride + column * column_stride;
  }

  Target from(int64_t offset) const {
    Target t = *this;
    t.destination += offset;
    if (t.multiplier != nullptr) t.multiplier += offset;
    return t;
  }
};

// N columns from `offset` on. Derivatives are inlined in marches: in those that hold sums of other
// frames these would have to leave their registers for a call; in the others a gradient through
// hardswish takes 0.975 of the time. Elsewhere that is not worth the time to compile it.
template <class S, int N, bool InlineDerivatives = false>
EVIT_INLINE void finish(const Target<S>& target, int64_t offset,
                        const Vector<Acc<S>, kLanes<S>> (&totals)[N]) {
  constexpr int L = kLanes<S>;
  using V = Vector<Acc<S>, L>;
  V sums[N];
  V bias = {};
  if (target.bias != nullptr) bias = load<L>(target.bias);
  EVIT_UNROLL
  for (int i = 0; i < N; ++i) sums[i] = totals[i] + bias;
  S* out = target.destination + offset;
  const S* multiplier = target.multiplier != nullptr ? target.multiplier + offset : nullptr;
  if (target.lanes == L) {
    V results[N];
    bool inlined = false;
    if (multiplier == nullptr) {
      EVIT_UNROLL
      for (int i = 0; i < N; ++i) results[i] = sums[i];
      inlined = activate_inline<Acc<S>, L>(results, target.activation);
    } else if constexpr (InlineDerivatives) {
      EVIT_UNROLL
      for (int i = 0; i < N; ++i) results[i] = load<L>(multiplier + i * target.column_stride);
      inlined = differentiate_inline<Acc<S>, L>(results, sums, target.activation);
    }
    if (inlined) {
      EVIT_UNROLL
      for (int i = 0; i < N; ++i) store<L>(out + i * target.column_stride, results[i]);
      return;
    }
  }
  // A copy: the address that goes to an out-of-line function must not be that of the accumulators,
  // or the compiler keeps them in memory for the whole block.
  V values[N];
  for (int i = 0; i < N; ++i) values[i] = sums[i];
  if (multiplier != nullptr) {
    V grads[N];
    for (int i = 0; i < N; ++i)
      grads[i] = load_part<L>(multiplier + i * target.column_stride, target.lanes);
    differentiate<Acc<S>, L>(grads, values, N, target.activation);
    for (int i = 0; i < N; ++i) values[i] = grads[i];
  } else {
    activate<Acc<S>, L>(values, N, target.activation);
  }
  for (int i = 0; i < N; ++i)
    store_part<L>(out + i * target.column_stride, values[i], target.lanes);
}

}  // namespace
