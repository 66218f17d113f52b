// Source rows of a depthwise convolution that are computed, not read: a pointwise convolution with
// its activation, straight into the cache from which the depthwise convolution takes them.
#pragma once

#include "activation.h"
#include "pointwise_conv3d_rows.h"
#include "pointwise_conv3d_tiles.h"

namespace {

// columns[m] = activation(source[m] panel + bias) for `count` columns of the source, `stride`
// elements apart: N slabs, `slab_stride` apart, of a packed panel.
template <class A, int N>
struct Expand {
  static constexpr int L = kVectorBytes / int(sizeof(A));

  const A* source;
  int64_t stride, depth;
  const A* panel;
  const A* bias;
  Activation activation;
  A* columns;
  int64_t slab_stride;

  // Not inlined: its addresses need all general registers.
  __attribute__((noinline)) void run(int64_t count) const {
    for_each_tile(count,
                  [&](auto block_columns, int64_t first) { block<block_columns.value>(first); });
  }

 private:
  template <int M>
  EVIT_INLINE void block(int64_t first) const {
    using V = Vector<A, L>;
    V sums[M][N];
    product_tile<A, M, N>(source + first * stride, stride, panel, depth, sums);
    EVIT_UNROLL
    for (int n = 0; n < N; ++n) {
      A* to = columns + n * slab_stride + first * L;
      const V shift = load<L>(bias + n * L);
      V values[M];
      EVIT_UNROLL
      for (int m = 0; m < M; ++m) values[m] = sums[m][n] + shift;
      if (activate_inline<A, L>(values, activation)) {
        EVIT_UNROLL
        for (int m = 0; m < M; ++m) store<L>(to + m * L, values[m]);
        continue;
      }
      // A copy: see finish() in depthwise_conv3d_finish.h.
      V others[M];
      for (int m = 0; m < M; ++m) others[m] = values[m];
      activate<A, L>(others, M, activation);
      for (int m = 0; m < M; ++m) store<L>(to + m * L, others[m]);
    }
  }
};

// Columns of `channels` = activation(columns of `depth` weight^T + bias), in slabs.
template <class S>
class Expansion {
 public:
  static constexpr int L = kLanes<S>;

  // weight (channels, depth), bias (channels) or null.
  Expansion(const S* weight, const S* bias, Activation activation, int64_t depth, int64_t channels,
            int32_t num_threads)
      : activation_(activation),
        depth_(depth),
        packed_(ceil_div(channels, W) * W * depth),
        bias_(ceil_div(channels, W) * W) {
    if (!ok()) return;
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_threads > 1)
    for (int64_t first = 0; first < channels; first += W) {
      pack_panel(weight + first * depth, depth, 1, depth, channels - first,
                 packed_.data() + first * depth);
      for (int64_t c = first; c < first + W; ++c)
        bias_[c] = bias != nullptr && c < channels ? load<1>(bias + c)[0] : 0;
    }
  }

  bool ok() const { return packed_.ok() && bias_.ok(); }
  int64_t depth() const { return depth_; }

  // `count` columns from `source`, `stride` elements apart: slabs [slab, slab + slabs), of which
  // each goes to a place of its own.
  void expand(const Acc<S>* source, int64_t stride, int64_t count, int64_t slab, int64_t slabs,
              Acc<S>* to, int64_t slab_stride) const {
    for (int64_t s = 0; s < slabs;) {
      const bool whole = (slab + s) % kPanel == 0 && s + kPanel <= slabs;
      Acc<S>* columns = to + s * slab_stride;
      if (whole)
        job<kPanel>(source, stride, slab + s, columns, slab_stride).run(count);
      else
        job<1>(source, stride, slab + s, columns, slab_stride).run(count);
      s += whole ? kPanel : 1;
    }
    if constexpr (sizeof(S) != sizeof(Acc<S>)) {
      // Rounded as if it had been stored between the convolutions: the same bits as two calls.
      for (int64_t s = 0; s < slabs; ++s)
        for (Acc<S>* p = to + s * slab_stride; p < to + s * slab_stride + count * L; p += L) {
          S rounded[L];
          store<L>(rounded, load<L>(p));
          store<L>(p, load<L>(rounded));
        }
    }
  }

 private:
  static constexpr int64_t W = kPanel * L;

  template <int N>
  Expand<Acc<S>, N> job(const Acc<S>* source, int64_t stride, int64_t slab, Acc<S>* columns,
                        int64_t slab_stride) const {
    const Acc<S>* panel = packed_.data() + slab / kPanel * W * depth_ + slab % kPanel * L;
    return {source,      stride,  depth_,     panel, bias_.data() + slab * L,
            activation_, columns, slab_stride};
  }

  const Activation activation_;
  const int64_t depth_;
  Buffer<Acc<S>> packed_;  // (panel, depth, W)
  Buffer<Acc<S>> bias_;
};

}  // namespace
