// Blocks of destination columns of a depthwise convolution (forward or data gradient), one slab of
// channels. A block is held in registers while the source columns stream by: every source element
// is loaded once per tap row and used for all its horizontal taps.
#pragma once

#include "depthwise_conv3d_finish.h"
#include "depthwise_conv3d_pack.h"

namespace {

// A source row, unpacked to (columns, L), and the row of weights (k_w, L) that multiplies it.
template <class A>
struct Tap {
  const A* row;
  const A* weight;
};

// The taps of one destination row.
template <class A>
struct TapList {
  const Tap<A>* taps;
  int count;
};

// One frame of a tile: `rows` destination rows, one slab.
template <class S>
struct FrameJob {
  const TapList<Acc<S>>* lists;  // per destination row, pointing at the first slab of the group
  int64_t source_offset;         // from there to this slab, in rows and in weights
  int64_t weight_offset;
  int64_t rows;
  int64_t width;  // of the destination
  int64_t source_width;
  int64_t kernel;
  int64_t stride;
  int64_t dilation;
  int64_t padding;
  Target<S> target;
  const S* next;            // this slab of the source frame to be read next, or null
  int64_t next_row_stride;  // in elements
  int64_t next_column_stride;
};

template <class S>
using FrameFunction = void (*)(const FrameJob<S>&);

constexpr bool kWideBlocks = kVectorRegisters == 32;

// Blocks of 8 columns, or of 7 where only that divides evenly.
inline int64_t widest_block(int64_t width) {
  return width % 8 != 0 && width % 7 == 0 ? 7 : 8;
}

// Calls block(Width<B>, w) over [0, width): blocks of 8, or of 7 where only that divides evenly.
template <bool Wide = false, class F>
EVIT_INLINE void for_each_block(int64_t width, F&& block) {
  int64_t w = 0;
  if constexpr (Wide && kWideBlocks) {
    if (width % 14 == 0) {
      for (; w < width; w += 14) block(Width<14>{}, w);
      return;
    }
  }
  if (widest_block(width) == 7) {
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

// Destination columns [w, w + B) gather from source columns w * KS - padding + (0 .. KW - 1).
template <class S, int KW, int KS, int B>
EVIT_INLINE void gather_block(const FrameJob<S>& job, int64_t h, int64_t w) {
  constexpr int L = kLanes<S>;
  using V = Vector<Acc<S>, L>;
  V sums[B];
  EVIT_UNROLL
  for (int i = 0; i < B; ++i) sums[i] = V{};  // not `= {}`, which becomes a memset of the stack
  const TapList<Acc<S>> list = job.lists[h];
  const int64_t x0 = (w * KS - job.padding) * L + job.source_offset;
  const int64_t offset = job.target.offset(0, h, w);
  S* const out = job.target.destination + offset;
  EVIT_UNROLL
  for (int i = 0; i < B; ++i) __builtin_prefetch(out + i * job.target.column_stride, 1);
  if (KS == 1 && job.next != nullptr) {
    const S* next = job.next + h * KS * job.next_row_stride + w * KS * job.next_column_stride;
    EVIT_UNROLL
    for (int r = 0; r < KS; ++r) {
      EVIT_UNROLL
      for (int i = 0; i < B * KS; ++i)
        __builtin_prefetch(next + r * job.next_row_stride + i * job.next_column_stride, 0, 3);
    }
  }
  for (int t = 0; t < list.count; ++t) {
    add_row<S, KW, KS>(list.taps[t].row + x0, list.taps[t].weight + job.weight_offset, sums);
  }
  finish<S, B>(job.target, offset, sums);
}

// Data gradient of stride 2: destination column d receives from source column j where
// d = 2 j - padding + k. Parity is that of w + padding - (KW - 1), fixed within a block.
template <class S, int KW, int B, int Parity>
EVIT_INLINE void scatter_block(const FrameJob<S>& job, int64_t h, int64_t w) {
  constexpr int L = kLanes<S>;
  using V = Vector<Acc<S>, L>;
  V sums[B];
  EVIT_UNROLL
  for (int i = 0; i < B; ++i) sums[i] = V{};
  const TapList<Acc<S>> list = job.lists[h];
  // The division is exact: the sum is even.
  const int64_t j0 = (w + job.padding - (KW - 1) + Parity) / 2 * L + job.source_offset;
  for (int t = 0; t < list.count; ++t) {
    const Acc<S>* row = list.taps[t].row + j0;
    const Acc<S>* weight = list.taps[t].weight + job.weight_offset;
    V taps[KW];
    EVIT_UNROLL
    for (int k = 0; k < KW; ++k) taps[k] = load<L>(weight + k * L);
    EVIT_UNROLL
    for (int j = 0; 2 * j - (KW - 1) + Parity < B; ++j) {
      V x = load<L>(row + j * L);
      keep(x);
      EVIT_UNROLL
      for (int k = 0; k < KW; ++k) {
        const int d = 2 * j + k - (KW - 1) + Parity;
        if (d >= 0 && d < B) sums[d] += x * taps[k];
      }
    }
  }
  finish<S, B>(job.target, job.target.offset(0, h, w), sums);
}

// Any kernel, stride and dilation, one column at a time.
template <class S, bool Scatter>
void plain_frame(const FrameJob<S>& job) {
  constexpr int L = kLanes<S>;
  for (int64_t w = 0; w < job.width; ++w)
    for (int64_t h = 0; h < job.rows; ++h) {
      const TapList<Acc<S>> list = job.lists[h];
      Vector<Acc<S>, L> sum[1] = {};
      for (int64_t k = 0; k < job.kernel; ++k) {
        int64_t x = w * job.stride - job.padding + k * job.dilation;
        if (Scatter) {
          const int64_t scaled = w + job.padding - k * job.dilation;
          if (scaled % job.stride != 0) continue;
          x = scaled / job.stride;
        }
        if (x < 0 || x >= job.source_width) continue;
        for (int t = 0; t < list.count; ++t)
          sum[0] += load<L>(list.taps[t].row + job.source_offset + x * L) *
                    load<L>(list.taps[t].weight + job.weight_offset + k * L);
      }
      finish<S, 1>(job.target, job.target.offset(0, h, w), sum);
    }
}

// Rows run inside a block of columns: what a row read is still in L1 when the next row wants it.
template <class S, int KW, int KS>
void gather_frame(const FrameJob<S>& job) {
  for_each_block<(KW > 3)>(job.width, [&](auto block, int64_t w) {
    for (int64_t h = 0; h < job.rows; ++h) gather_block<S, KW, KS, block.value>(job, h, w);
  });
}

template <class S, int KW>
void scatter_frame(const FrameJob<S>& job) {
  for_each_block(job.width, [&](auto block, int64_t w) {
    const bool odd = (w + job.padding - (KW - 1)) & 1;
    for (int64_t h = 0; h < job.rows; ++h)
      if (odd)
        scatter_block<S, KW, block.value, 1>(job, h, w);
      else
        scatter_block<S, KW, block.value, 0>(job, h, w);
  });
}

// How a pass runs along the width.
template <class S>
struct Columns {
  FrameFunction<S> function;
  bool mirrored;    // the weights come in reverse order
  int64_t padding;  // for the function
  int64_t left;     // zero columns that the function reads before and after the source's
  int64_t right;
};

// float64 is there for exactness, not for speed, and the baseline for machines without AVX2:
// both take the plain path.
template <class S>
Columns<S> columns_of(int64_t kernel, int64_t stride, int64_t dilation, int64_t padding,
                      bool scatter, int64_t source_width, int64_t width) {
#ifdef EVIT_PLAIN_ONLY
  constexpr bool fast = false;
#else
  constexpr bool fast = sizeof(S) <= 4;
#endif
  if constexpr (fast) {
    const bool dense = dilation == 1 || kernel == 1;
    if (dense && (stride == 1 || (stride == 2 && !scatter))) {
      // A data gradient of stride 1 is a gather too, with mirrored weights.
      Columns<S> c = {nullptr, scatter, scatter ? kernel - 1 - padding : padding, 0, 0};
      c.left = larger(0, c.padding);
      c.right = larger(0, (width - 1) * stride - c.padding + kernel - source_width);
      if (stride == 1 && kernel == 1) c.function = gather_frame<S, 1, 1>;
      if (stride == 1 && kernel == 3) c.function = gather_frame<S, 3, 1>;
      if (stride == 1 && kernel == 5) c.function = gather_frame<S, 5, 1>;
      if (stride == 2 && kernel == 3) c.function = gather_frame<S, 3, 2>;
      if (stride == 2 && kernel == 5) c.function = gather_frame<S, 5, 2>;
      if (c.function != nullptr) return c;
    }
    if (dense && stride == 2 && scatter && (kernel == 3 || kernel == 5)) {
      Columns<S> c = {kernel == 3 ? scatter_frame<S, 3> : scatter_frame<S, 5>, false, padding, 0,
                      0};
      c.left = kernel;
      c.right = kernel + larger(0, (width + padding) / 2 - source_width);
      return c;
    }
  }
  return {scatter ? plain_frame<S, true> : plain_frame<S, false>, false, padding, 0, 0};
}

}  // namespace
