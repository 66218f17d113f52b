// Weights in the order in which the kernels read them.
#pragma once

#include "depthwise_conv3d_plan.h"
#include "simd.h"
#include "transpose.h"

namespace {

// The weights of one slab as (plane, k_h, k_w, L) in the accumulation type; mirrored along k_w
// where asked.
template <class S>
void pack_weights(const evit::DepthwiseConv3dProblem& p, const Planes& planes, const S* weight,
                  bool mirrored, int64_t slab, Acc<S>* packed) {
  constexpr int L = kLanes<S>;
  const int64_t kt = p.kernel[0], kw = p.kernel[2], plane = p.kernel[1] * kw, taps = kt * plane;
  const S* source = weight + slab * L * taps;
  const int64_t channels = smaller(L, p.channels - slab * L);
  const auto place = [&](int64_t tap) {
    return (mirrored ? tap + kw - 1 - 2 * (tap % kw) : tap) * L;
  };
  if (channels == L && taps >= L) {
    for (int64_t first = 0; first < taps; first += L) {
      const int64_t from = smaller(first, taps - L);
      Vector<Acc<S>, L> rows[L];
      EVIT_UNROLL
      for (int i = 0; i < L; ++i) rows[i] = load<L>(source + i * taps + from);
      transpose<Acc<S>, L>(rows);
      for (int i = 0; i < L; ++i) store<L>(packed + place(from + i), rows[i]);
    }
  } else {
    for (int lane = 0; lane < L; ++lane)
      for (int64_t tap = 0; tap < taps; ++tap)
        packed[place(tap) + lane] = lane < channels ? load<1>(source + lane * taps + tap)[0] : 0;
  }
  // Behind the planes of single taps those that are sums of them.
  for (int i = static_cast<int>(kt); i < planes.count(); ++i)
    for (int64_t j = 0; j < plane; ++j) {
      Vector<Acc<S>, L> sum = {};
      for (int t = planes.first(i); t <= planes.last(i); ++t)
        sum += load<L>(packed + (t * plane + j) * L);
      store<L>(packed + (i * plane + j) * L, sum);
    }
}

}  // namespace
