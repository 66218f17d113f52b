// How a dense convolution of few input channels goes through its source: padded lines, rows of taps
// and tiles of output columns.
#pragma once

#include "buffer.h"
#include "evit/dense_conv3d.h"
#include "simd.h"

namespace {

using Problem = evit::DenseConv3dProblem;

constexpr int64_t kLineBytes = 256 * 1024;  // of padded source lines, to stay in a core's L2 cache
constexpr int kTileColumns = kVectorRegisters == 32 ? 14 : 6;

// A line of the source, and the row of taps that multiplies it.
template <class A>
struct Tap {
  const A* line;
  int64_t row;  // of taps: k_t * kernel height + k_h
};

// What all passes share: sizes, and the source lines of some output rows, padded with zeros.
template <class S>
struct Window {
  using A = Acc<S>;
  static constexpr int L = kLanes<S>;

  explicit Window(const Problem& problem)
      : p(problem),
        depth(p.kernel[2] * p.in_channels),
        tap_rows(p.kernel[0] * p.kernel[1]),
        step(p.stride[2] * p.in_channels),
        panels(ceil_div(p.out_channels, L)),
        columns(larger(p.in[2] + p.padding[2], (p.out[2] - 1) * p.stride[2] + p.kernel[2])),
        line(columns * p.in_channels) {
    const int64_t line_bytes = line * p.kernel[0] * static_cast<int64_t>(sizeof(A));
    rows = 1;
    while (rows < p.out[1] && lines_of(rows + 1) * line_bytes <= kLineBytes) ++rows;
    row_tiles = ceil_div(p.out[1], rows);
    rows = ceil_div(p.out[1], row_tiles);
  }

  int64_t lines_of(int64_t output_rows) const {
    return (output_rows - 1) * p.stride[1] + p.kernel[1];
  }
  int64_t scratch() const { return p.kernel[0] * lines_of(rows) * line; }
  int64_t tiles() const { return p.batch * p.out[0] * row_tiles; }

  // Copies the lines that output rows [h0, h0 + count) of a frame see; of absent ones, nothing.
  void fill(const S* source, int64_t t, int64_t h0, int64_t count, A* lines) const {
    for (int64_t k = 0; k < p.kernel[0]; ++k) {
      const int64_t frame = source_frame(t, k);
      if (frame < 0) continue;
      for (int64_t i = 0; i < lines_of(count); ++i) {
        const int64_t row = h0 * p.stride[1] - p.padding[1] + i;
        if (row < 0 || row >= p.in[1]) continue;
        const S* from = source + frame * p.in_strides[1] + row * p.in_strides[2];
        A* to = lines + (k * lines_of(rows) + i) * line;
        const int64_t left = p.padding[2] * p.in_channels, width = p.in[2] * p.in_channels;
        for (int64_t c = 0; c < left; ++c) to[c] = 0;
        for_each_slab<S>(width, [&](auto lanes, int64_t c) {
          store<lanes.value>(to + left + c, load<lanes.value>(from + c));
        });
        for (int64_t c = left + width; c < line; ++c) to[c] = 0;
      }
    }
  }

  // The rows of taps of the i-th output row of a tile that lie inside the clip; returns how many.
  int64_t taps(int64_t t, int64_t h0, int64_t i, const A* lines, Tap<A>* list) const {
    int64_t count = 0;
    for (int64_t k = 0; k < p.kernel[0]; ++k) {
      if (source_frame(t, k) < 0) continue;
      for (int64_t h = 0; h < p.kernel[1]; ++h) {
        const int64_t row = (h0 + i) * p.stride[1] - p.padding[1] + h;
        if (row < 0 || row >= p.in[1]) continue;
        list[count++] = {lines + (k * lines_of(rows) + i * p.stride[1] + h) * line,
                         k * p.kernel[1] + h};
      }
    }
    return count;
  }

  int64_t source_frame(int64_t t, int64_t k) const {
    const int64_t frame = t * p.stride[0] - p.padding[0] + k;
    if (frame >= 0 && frame < p.in[0]) return frame;
    if (!p.clamp_time) return -1;
    return frame < 0 ? 0 : p.in[0] - 1;
  }

  const Problem& p;
  const int64_t depth;     // values of a row of taps
  const int64_t tap_rows;  // rows of taps of a kernel
  const int64_t step;      // elements of a line from output column to output column
  const int64_t panels;    // vectors of output channels
  const int64_t columns;   // of a padded line
  const int64_t line;      // its elements
  int64_t rows;            // output rows of a tile
  int64_t row_tiles;
};

}  // namespace
