// One destination row of a depthwise convolution (forward or data gradient), all channels.
//
// Per slab of one vector of channels, a block of destination columns is held in registers while the
// source columns stream by: every source element is loaded and converted once per tap row and used
// for all its horizontal taps. Blocks at the borders skip absent columns, they never multiply by zero.
#pragma once

#include "activation.h"
#include "simd.h"

namespace {

// A source row together with the row of weights (k_w, C) that multiplies it.
template <class S>
struct Tap {
  const S* row;
  const Acc<S>* weight;
};

template <class S>
struct RowJob {
  const Tap<S>* taps;
  int num_taps;
  int64_t channels;
  int64_t column_stride;  // of the source, in elements
  int64_t source_width;
  int64_t width;  // of the destination
  int64_t kernel;
  int64_t stride;
  int64_t dilation;
  int64_t padding;
  const Acc<S>* bias;    // (C) or null
  const S* multiplier;   // null, or a row like the destination: store multiplier * act'(sum)
  evit::Activation activation;
  S* destination;  // (width, C)
};

template <class S>
using RowFunction = void (*)(const RowJob<S>&);

template <class S, int L>
EVIT_INLINE void finish(const RowJob<S>& job, int64_t c, int64_t w, Vector<Acc<S>, L>* sums, int n) {
  using V = Vector<Acc<S>, L>;
  if (job.bias != nullptr) {
    const V bias = load<L>(job.bias + c);
    for (int i = 0; i < n; ++i) sums[i] += bias;
  }
  const int64_t offset = w * job.channels + c;
  if (job.multiplier != nullptr) {
    V grads[8];
    for (int i = 0; i < n; ++i) grads[i] = load<L>(job.multiplier + offset + i * job.channels);
    differentiate<Acc<S>, L>(grads, sums, n, job.activation);
    for (int i = 0; i < n; ++i) store<L>(job.destination + offset + i * job.channels, grads[i]);
    return;
  }
  if (job.activation != evit::Activation::kNone) activate<Acc<S>, L>(sums, n, job.activation);
  for (int i = 0; i < n; ++i) store<L>(job.destination + offset + i * job.channels, sums[i]);
}

// Destination columns [w, w + B) that gather from source columns w * KS - padding + (0 .. KW - 1).
template <class S, int L, int KW, int KS, int B, bool Edge>
EVIT_INLINE void gather_block(const RowJob<S>& job, int64_t c, int64_t w) {
  using V = Vector<Acc<S>, L>;
  V sums[B] = {};
  const int64_t x0 = w * KS - job.padding;
  for (int t = 0; t < job.num_taps; ++t) {
    const S* row = job.taps[t].row + c + x0 * job.column_stride;
    const Acc<S>* weight = job.taps[t].weight + c;
    V taps[KW];
    EVIT_UNROLL
    for (int k = 0; k < KW; ++k) taps[k] = load<L>(weight + k * job.channels);
    EVIT_UNROLL
    for (int j = 0; j < (B - 1) * KS + KW; ++j) {
      if (Edge && (x0 + j < 0 || x0 + j >= job.source_width)) continue;
      const V x = load<L>(row + j * job.column_stride);
      EVIT_UNROLL
      for (int k = 0; k < KW; ++k)
        if (j >= k && (j - k) % KS == 0 && (j - k) / KS < B) sums[(j - k) / KS] += x * taps[k];
    }
  }
  finish<S, L>(job, c, w, sums, B);
}

// Data gradient of stride 2: destination column d receives from source column j where
// d = 2 j - padding + k. Parity is that of w + padding - (KW - 1), fixed within a block.
template <class S, int L, int KW, int B, int Parity>
EVIT_INLINE void scatter_block(const RowJob<S>& job, int64_t c, int64_t w) {
  using V = Vector<Acc<S>, L>;
  V sums[B] = {};
  const int64_t j0 = (w + job.padding - (KW - 1) + Parity) / 2;  // exact: the sum is even
  for (int t = 0; t < job.num_taps; ++t) {
    const S* row = job.taps[t].row + c + j0 * job.column_stride;
    const Acc<S>* weight = job.taps[t].weight + c;
    V taps[KW];
    EVIT_UNROLL
    for (int k = 0; k < KW; ++k) taps[k] = load<L>(weight + k * job.channels);
    EVIT_UNROLL
    for (int j = 0; 2 * j - (KW - 1) + Parity < B; ++j) {
      if (j0 + j < 0 || j0 + j >= job.source_width) continue;
      const V x = load<L>(row + j * job.column_stride);
      EVIT_UNROLL
      for (int k = 0; k < KW; ++k) {
        const int d = 2 * j + k - (KW - 1) + Parity;
        if (d >= 0 && d < B) sums[d] += x * taps[k];
      }
    }
  }
  finish<S, L>(job, c, w, sums, B);
}

// Any kernel, stride and dilation, one column at a time.
template <class S, int L, bool Scatter>
EVIT_INLINE void plain_column(const RowJob<S>& job, int64_t c, int64_t w) {
  using V = Vector<Acc<S>, L>;
  V sum[1] = {};
  for (int64_t k = 0; k < job.kernel; ++k) {
    int64_t x;
    if (Scatter) {
      const int64_t scaled = w + job.padding - k * job.dilation;
      if (scaled < 0 || scaled % job.stride != 0) continue;
      x = scaled / job.stride;
    } else {
      x = w * job.stride - job.padding + k * job.dilation;
    }
    if (x < 0 || x >= job.source_width) continue;
    for (int t = 0; t < job.num_taps; ++t) {
      const Acc<S>* weight = job.taps[t].weight + k * job.channels + c;
      sum[0] += load<L>(job.taps[t].row + x * job.column_stride + c) * load<L>(weight);
    }
  }
  finish<S, L>(job, c, w, sum, 1);
}

template <class S, bool Scatter>
void plain_row(const RowJob<S>& job) {
  for_each_slab<S>(job.channels, [&](auto lanes, int64_t c) {
    for (int64_t w = 0; w < job.width; ++w) plain_column<S, lanes.value, Scatter>(job, c, w);
  });
}

// Calls block(Width<B>, w) over [0, width), all blocks of 8 or all of 7 where that divides evenly.
template <class F>
EVIT_INLINE void for_each_block(int64_t width, F&& block) {
  int64_t w = 0;
  if (width % 8 != 0 && width % 7 == 0) {
    for (; w < width; w += 7) block(Width<7>{}, w);
    return;
  }
  for (; w + 8 <= width; w += 8) block(Width<8>{}, w);
  if (w + 4 <= width) {
    block(Width<4>{}, w);
    w += 4;
  }
  if (w + 2 <= width) {
    block(Width<2>{}, w);
    w += 2;
  }
  if (w < width) block(Width<1>{}, w);
}

template <class S, int KW, int KS>
void gather_row(const RowJob<S>& job) {
  for_each_slab<S>(job.channels, [&](auto lanes, int64_t c) {
    constexpr int L = lanes.value;
    if constexpr (L == 1) {
      for (int64_t w = 0; w < job.width; ++w) plain_column<S, 1, false>(job, c, w);
    } else {
      for_each_block(job.width, [&](auto block, int64_t w) {
        constexpr int B = block.value;
        const int64_t x0 = w * KS - job.padding;
        if (B >= 7 && x0 >= 0 && x0 + (B - 1) * KS + KW <= job.source_width)
          gather_block<S, L, KW, KS, B, false>(job, c, w);
        else
          gather_block<S, L, KW, KS, B, true>(job, c, w);
      });
    }
  });
}

template <class S, int KW>
void scatter_row(const RowJob<S>& job) {
  for_each_slab<S>(job.channels, [&](auto lanes, int64_t c) {
    constexpr int L = lanes.value;
    if constexpr (L == 1) {
      for (int64_t w = 0; w < job.width; ++w) plain_column<S, 1, true>(job, c, w);
    } else {
      for_each_block(job.width, [&](auto block, int64_t w) {
        constexpr int B = block.value;
        if ((w + job.padding - (KW - 1)) & 1)
          scatter_block<S, L, KW, B, 1>(job, c, w);
        else
          scatter_block<S, L, KW, B, 0>(job, c, w);
      });
    }
  });
}

// float64 is there for exactness, not for speed: it takes the plain path.
template <class S>
RowFunction<S> row_function(int64_t kernel, int64_t stride, int64_t dilation, bool scatter) {
  if constexpr (sizeof(S) <= 4) {
    const bool dense = dilation == 1 || kernel == 1;
    if (dense && stride == 1) {
      // A data gradient of stride 1 is a gather too: its weights come in reverse order.
      if (kernel == 1) return gather_row<S, 1, 1>;
      if (kernel == 3) return gather_row<S, 3, 1>;
      if (kernel == 5) return gather_row<S, 5, 1>;
    }
    if (dense && stride == 2 && !scatter) {
      if (kernel == 3) return gather_row<S, 3, 2>;
      if (kernel == 5) return gather_row<S, 5, 2>;
    }
    if (dense && stride == 2 && scatter) {
      if (kernel == 3) return scatter_row<S, 3>;
      if (kernel == 5) return scatter_row<S, 5>;
    }
  }
  return scatter ? plain_row<S, true> : plain_row<S, false>;
}

// Whether row_function's choice for a data gradient wants reversed weights and the mirrored padding.
inline bool gradient_is_gather(bool is_double, int64_t kernel, int64_t stride, int64_t dilation) {
  return !is_double && stride == 1 && (dilation == 1 || kernel == 1) &&
         (kernel == 1 || kernel == 3 || kernel == 5);
}

}  // namespace
