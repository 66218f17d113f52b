// The weight gradient of one frame of a tile, one slab: products of the output gradient with the
// frames that it was made from.
//
// All taps of one kernel plane (k_h * k_w, or a part of it) stay in registers over the whole frame;
// each block of gradient columns is loaded once and meets the input columns as they stream by.
#pragma once

#include "depthwise_conv3d_rows.h"

namespace {

// One long chain of additions loses digits: about so many products are summed, then added to what
// was summed before. In rows of 1,200 columns the rounding error is 0.6 of the other.
constexpr int64_t kProducts = 512;

// `rows` gradient rows, each with the input row that tap row `k` of the kernel multiplies it with;
// null where that row lies outside.
template <class A>
struct WeightJob {
  const A* const* grads;   // [rows]
  const A* const* inputs;  // [rows][kernel_rows]
  int64_t grad_offset;     // from those pointers to this slab
  int64_t input_offset;
  int64_t rows;
  int64_t part_rows;  // as many as make up kProducts
  int64_t kernel_rows;
  int64_t width;
  int64_t source_width;
  int64_t kernel;
  int64_t stride;
  int64_t dilation;
  int64_t padding;
  A* partial;  // (k_h, k_w, L) to add to
};

template <class A>
using WeightFunction = void (*)(const WeightJob<A>&);

// Some columns of some gradient rows.
struct WeightPart {
  int64_t column, columns;
  int64_t row, end_row;
};

// Calls f(part) for parts of about kProducts, in order.
template <class A, class F>
EVIT_INLINE void for_each_part(const WeightJob<A>& job, F&& f) {
  for (int64_t h = 0; h < job.rows; h += job.part_rows)
    for (int64_t w = 0; w < job.width; w += kProducts)
      f(WeightPart{w, smaller(kProducts, job.width - w), h, smaller(job.rows, h + job.part_rows)});
}

// Tap rows [first, first + R) of the kernel.
template <class A, int L, int KW, int KS, int R>
EVIT_INLINE void weight_plane(const WeightJob<A>& job, const WeightPart& part, int64_t first) {
  using V = Vector<A, L>;
  V sums[R][KW];
  EVIT_UNROLL
  for (int r = 0; r < R; ++r) {
    EVIT_UNROLL
    for (int k = 0; k < KW; ++k) sums[r][k] = V{};
  }
  for_each_block(part.columns, [&](auto block, int64_t column) {
    constexpr int B = block.value;
    const int64_t w = part.column + column;
    const int64_t x0 = (w * KS - job.padding) * L + job.input_offset;
    for (int64_t h = part.row; h < part.end_row; ++h) {
      V grads[B];
      EVIT_UNROLL
      for (int i = 0; i < B; ++i) grads[i] = load<L>(job.grads[h] + job.grad_offset + (w + i) * L);
      EVIT_UNROLL
      for (int r = 0; r < R; ++r) {
        const A* row = job.inputs[h * job.kernel_rows + first + r];
        if (row == nullptr) continue;
        EVIT_UNROLL
        for (int j = 0; j < (B - 1) * KS + KW; ++j) {
          V x = load<L>(row + x0 + j * L);
          keep(x);
          EVIT_UNROLL
          for (int k = 0; k < KW; ++k)
            if (j >= k && (j - k) % KS == 0 && (j - k) / KS < B)
              sums[r][k] += x * grads[(j - k) / KS];
        }
      }
    }
  });
  EVIT_UNROLL
  for (int r = 0; r < R; ++r) {
    EVIT_UNROLL
    for (int k = 0; k < KW; ++k) {
      A* partial = job.partial + ((first + r) * KW + k) * L;
      store<L>(partial, load<L>(partial) + sums[r][k]);
    }
  }
}

template <class A, int L, int KW, int KS>
void weight_frame(const WeightJob<A>& job) {
  // As many tap rows at a time as leave room for eight gradients in 32 registers.
  constexpr int R = KW <= 3 ? 3 : 2;
  for_each_part(job, [&](const WeightPart& part) {
    int64_t first = 0;
    for (; first + R <= job.kernel_rows; first += R)
      weight_plane<A, L, KW, KS, R>(job, part, first);
    for (; first < job.kernel_rows; ++first) weight_plane<A, L, KW, KS, 1>(job, part, first);
  });
}

template <class A, int L>
void plain_weight_frame(const WeightJob<A>& job) {
  for (int64_t r = 0; r < job.kernel_rows; ++r)
    for (int64_t k = 0; k < job.kernel; ++k) {
      Vector<A, L> total = {};
      for_each_part(job, [&](const WeightPart& part) {
        Vector<A, L> sum = {};
        for (int64_t h = part.row; h < part.end_row; ++h) {
          const A* row = job.inputs[h * job.kernel_rows + r];
          if (row == nullptr) continue;
          for (int64_t w = part.column; w < part.column + part.columns; ++w) {
            const int64_t x = w * job.stride - job.padding + k * job.dilation;
            if (x < 0 || x >= job.source_width) continue;
            sum += load<L>(job.grads[h] + job.grad_offset + w * L) *
                   load<L>(row + job.input_offset + x * L);
          }
        }
        total += sum;
      });
      A* partial = job.partial + (r * job.kernel + k) * L;
      store<L>(partial, load<L>(partial) + total);
    }
}

template <class S>
WeightFunction<Acc<S>> weight_function(int64_t kernel, int64_t stride, int64_t dilation) {
  constexpr int L = kLanes<S>;
#ifndef EVIT_PLAIN_ONLY
  if constexpr (sizeof(S) <= 4) {
    if (dilation == 1 || kernel == 1) {
      if (kernel == 1 && stride == 1) return weight_frame<float, L, 1, 1>;
      if (kernel == 3 && stride == 1) return weight_frame<float, L, 3, 1>;
      if (kernel == 3 && stride == 2) return weight_frame<float, L, 3, 2>;
      if (kernel == 5 && stride == 1) return weight_frame<float, L, 5, 1>;
      if (kernel == 5 && stride == 2) return weight_frame<float, L, 5, 2>;
    }
  }
#endif
  return plain_weight_frame<Acc<S>, L>;
}

}  // namespace
