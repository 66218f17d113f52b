// Which inputs an output of a depthwise convolution reads, and which outputs read an input: integer
// arithmetic alone, the same on host and device, so that it can be tried for every small shape.
#pragma once

#include "evit/depthwise_conv3d.h"
#include "launch.h"

namespace evit::cuda {

using Window = DepthwiseConv3dProblem;
constexpr int kTime = 0;

// The coordinate along an axis that tap `k` of output `o` reads; -1 for a zero outside.
EVIT_HD int64_t input_of(const Window& p, int axis, int64_t o, int64_t k) {
  const int64_t i = o * p.stride[axis] - p.padding[axis] + k * p.dilation[axis];
  if (axis == kTime && p.clamp_time) return i < 0 ? 0 : i < p.in[axis] ? i : p.in[axis] - 1;
  return i >= 0 && i < p.in[axis] ? i : -1;
}

// Consecutive outputs [first, end).
struct Outputs {
  int64_t first;
  int64_t end;
};

EVIT_HD int64_t floor_div(int64_t a, int64_t b) {
  return a >= 0 ? a / b : -((-a + b - 1) / b);
}

// The outputs whose tap `k` reads coordinate `i` of an axis. Inside the clip that is one or none;
// its first and last frames, where they are repeated, are read by all outputs that reach beyond
// them.
EVIT_HD Outputs outputs_of(const Window& p, int axis, int64_t i, int64_t k) {
  const int64_t shift = p.padding[axis] - k * p.dilation[axis];  // o * stride = i + shift
  const int64_t s = p.stride[axis];
  int64_t first = -floor_div(-(i + shift), s);  // rounded up: inputs from i on
  int64_t end = floor_div(i + shift, s) + 1;    // inputs up to i
  if (axis == kTime && p.clamp_time) {
    if (i == 0) first = 0;
    if (i == p.in[axis] - 1) end = p.out[axis];
  }
  return {first < 0 ? 0 : first, end < p.out[axis] ? end : p.out[axis]};
}

// An element of a tensor (n, c, t, h, w).
struct Element {
  int64_t n;
  int64_t c;
  int64_t at[3];
};

// The element at a position of a dense tensor: channels are next to each other, or columns when
// planar. Threads that follow each other then touch memory that does.
EVIT_HD Element element_at(const Window& p, const int64_t (&size)[3], int64_t index) {
  Element e;
  if (!p.planar) {
    e.c = index % p.channels;
    index /= p.channels;
  }
  for (int axis = 2; axis >= 0; --axis) {
    e.at[axis] = index % size[axis];
    index /= size[axis];
  }
  if (p.planar) {
    e.c = index % p.channels;
    index /= p.channels;
  }
  e.n = index;
  return e;
}

// Distances in memory, in elements.
struct Strides {
  int64_t n;
  int64_t c;
  int64_t at[3];
};

EVIT_HD Strides strides_of_input(const Window& p) {
  return {p.in_strides[0],
          p.planar ? p.in[0] * p.in[1] * p.in[2] : 1,
          {p.in_strides[1], p.in_strides[2], p.in_strides[3]}};
}

EVIT_HD Strides strides_of_dense(const Window& p, const int64_t (&size)[3]) {
  const int64_t positions = size[0] * size[1] * size[2];
  const int64_t column = p.planar ? 1 : p.channels;
  return {positions * p.channels,
          p.planar ? positions : 1,
          {size[1] * size[2] * column, size[2] * column, column}};
}

EVIT_HD int64_t taps_of(const Window& p) {
  return p.kernel[0] * p.kernel[1] * p.kernel[2];
}

// ---- the weight gradient: sums over splits of the output rows (n, t, h), added up in their order

constexpr int64_t kSplitRows = 8;  // of one sum, at least
constexpr int64_t kMaxSplits = 256;

EVIT_HD int64_t rows_of(const Window& p) {
  return p.batch * p.out[0] * p.out[1];
}

// A function of the shape alone, so that results do not depend on the device.
EVIT_HD int64_t splits_of(const Window& p) {
  const int64_t wanted = (rows_of(p) + kSplitRows - 1) / kSplitRows;
  return wanted < kMaxSplits ? wanted : kMaxSplits;
}

EVIT_HD int64_t first_row(const Window& p, int64_t split) {
  return split * rows_of(p) / splits_of(p);
}

// Sums of splits (split, tap, channel): those of the bias stand behind the last tap.
template <class A>
struct SplitSums {
  int64_t splits;
  const A* values;
};

}  // namespace evit::cuda
