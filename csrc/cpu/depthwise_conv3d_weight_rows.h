// One row of the weight gradient: the products of an output-gradient row with several input rows.
//
// The horizontal taps of a few input rows stay in registers along the whole row; each block of
// gradient columns is loaded once and meets the input columns as they stream by.
#pragma once

#include "depthwise_conv3d_rows.h"

namespace {

template <class S>
struct WeightTap {
  const S* row;     // input row
  Acc<S>* partial;  // (k_w, C) to add to
};

template <class S>
struct WeightJob {
  const WeightTap<S>* taps;
  int num_taps;
  int64_t channel_begin;
  int64_t channel_end;
  int64_t channels;
  int64_t column_stride;
  int64_t source_width;
  int64_t width;
  int64_t kernel;
  int64_t stride;
  int64_t dilation;
  int64_t padding;
  const S* grad;         // (width, C)
  Acc<S>* bias_partial;  // (C) to add to, or null
};

template <class S>
using WeightFunction = void (*)(const WeightJob<S>&);

template <class S, int L, int KW, int KS, int R, int B, bool Edge>
EVIT_INLINE void weight_block(const WeightJob<S>& job, const WeightTap<S>* taps, int64_t c, int64_t w,
                              Vector<Acc<S>, L> (&sums)[R][KW]) {
  using V = Vector<Acc<S>, L>;
  V grads[B];
  EVIT_UNROLL
  for (int i = 0; i < B; ++i) grads[i] = load<L>(job.grad + (w + i) * job.channels + c);
  const int64_t x0 = w * KS - job.padding;
  EVIT_UNROLL
  for (int r = 0; r < R; ++r) {
    const S* row = taps[r].row + c + x0 * job.column_stride;
    EVIT_UNROLL
    for (int j = 0; j < (B - 1) * KS + KW; ++j) {
      if (Edge && (x0 + j < 0 || x0 + j >= job.source_width)) continue;
      const V x = load<L>(row + j * job.column_stride);
      EVIT_UNROLL
      for (int k = 0; k < KW; ++k)
        if (j >= k && (j - k) % KS == 0 && (j - k) / KS < B) sums[r][k] += x * grads[(j - k) / KS];
    }
  }
}

template <class S, int L, int KW, int KS, int R>
EVIT_INLINE void weight_rows(const WeightJob<S>& job, const WeightTap<S>* taps, int64_t c) {
  using V = Vector<Acc<S>, L>;
  V sums[R][KW] = {};
  for_each_block(job.width, [&](auto block, int64_t w) {
    constexpr int B = block.value;
    const int64_t x0 = w * KS - job.padding;
    if (B >= 7 && x0 >= 0 && x0 + (B - 1) * KS + KW <= job.source_width)
      weight_block<S, L, KW, KS, R, B, false>(job, taps, c, w, sums);
    else
      weight_block<S, L, KW, KS, R, B, true>(job, taps, c, w, sums);
  });
  for (int r = 0; r < R; ++r)
    for (int k = 0; k < KW; ++k) {
      Acc<S>* partial = taps[r].partial + k * job.channels + c;
      store<L>(partial, load<L>(partial) + sums[r][k]);
    }
}

template <class S, int L>
EVIT_INLINE void bias_row(const WeightJob<S>& job, int64_t c) {
  using V = Vector<Acc<S>, L>;
  if (job.bias_partial == nullptr) return;
  V sums[4] = {};
  for (int64_t w = 0; w < job.width; ++w) sums[w & 3] += load<L>(job.grad + w * job.channels + c);
  Acc<S>* partial = job.bias_partial + c;
  store<L>(partial, load<L>(partial) + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
}

template <class S, int L>
EVIT_INLINE void plain_weight_slab(const WeightJob<S>& job, int64_t c) {
  using V = Vector<Acc<S>, L>;
  for (int t = 0; t < job.num_taps; ++t)
    for (int64_t k = 0; k < job.kernel; ++k) {
      V sum = {};
      for (int64_t w = 0; w < job.width; ++w) {
        const int64_t x = w * job.stride - job.padding + k * job.dilation;
        if (x < 0 || x >= job.source_width) continue;
        const V grad = load<L>(job.grad + w * job.channels + c);
        sum += grad * load<L>(job.taps[t].row + x * job.column_stride + c);
      }
      Acc<S>* partial = job.taps[t].partial + k * job.channels + c;
      store<L>(partial, load<L>(partial) + sum);
    }
}

template <class S>
void plain_weight_row(const WeightJob<S>& job) {
  for_each_slab<S>(job.channel_end - job.channel_begin, [&](auto lanes, int64_t offset) {
    bias_row<S, lanes.value>(job, job.channel_begin + offset);
    plain_weight_slab<S, lanes.value>(job, job.channel_begin + offset);
  });
}

template <class S, int KW, int KS>
void weight_row(const WeightJob<S>& job) {
  // As many rows at a time as leave room for eight gradients in 32 registers.
  constexpr int kGroup = KW <= 3 ? 3 : 2;
  for_each_slab<S>(job.channel_end - job.channel_begin, [&](auto lanes, int64_t offset) {
    constexpr int L = lanes.value;
    const int64_t c = job.channel_begin + offset;
    bias_row<S, L>(job, c);
    if constexpr (L == 1) {
      plain_weight_slab<S, 1>(job, c);
    } else {
      int t = 0;
      for (; t + kGroup <= job.num_taps; t += kGroup)
        weight_rows<S, L, KW, KS, kGroup>(job, job.taps + t, c);
      for (; t < job.num_taps; ++t) weight_rows<S, L, KW, KS, 1>(job, job.taps + t, c);
    }
  });
}

template <class S>
WeightFunction<S> weight_function(int64_t kernel, int64_t stride, int64_t dilation) {
  if constexpr (sizeof(S) <= 4) {
    if (dilation == 1 || kernel == 1) {
      if (kernel == 1 && stride == 1) return weight_row<S, 1, 1>;
      if (kernel == 3 && stride == 1) return weight_row<S, 3, 1>;
      if (kernel == 3 && stride == 2) return weight_row<S, 3, 2>;
      if (kernel == 5 && stride == 1) return weight_row<S, 5, 1>;
      if (kernel == 5 && stride == 2) return weight_row<S, 5, 2>;
    }
  }
  return plain_weight_row<S>;
}

}  // namespace
