// Which source frames and rows feed which destination: computed once a call, then only looked up.
//
// One routine serves forward and data gradient, time and height, zero and repeated borders. Taps
// that fall outside are simply absent. Taps of one destination that a repeated border sends to the
// same frame are merged: their weight planes are added first, so a clip of one frame costs one
// plane.
#pragma once

#include "buffer.h"
#include "evit/depthwise_conv3d.h"

namespace {

constexpr int kMaxKernel = 7;

// Taps [first, last] of the kernel connect a destination with `source`.
struct Link {
  int32_t source;
  int16_t first;
  int16_t last;
};

class Plan {
 public:
  // `axis` is 0 (time) or 1 (height). Forward: destinations are outputs, sources inputs.
  // Transposed: the other way round.
  Plan(const evit::DepthwiseConv3dProblem& p, int axis, bool transposed)
      : begin_((transposed ? p.in[axis] : p.out[axis]) + 2), links_(p.out[axis] * p.kernel[axis]) {
    const int64_t destinations = transposed ? p.in[axis] : p.out[axis];
    for (int64_t i = 0; i < destinations + 2; ++i) begin_[i] = 0;
    // Counting sort by destination; begin_ is shifted by one slot while links are being placed.
    visit(p, axis,
          [&](int64_t out, int64_t in, int, int) { ++begin_[(transposed ? in : out) + 2]; });
    for (int64_t i = 0; i < destinations; ++i) begin_[i + 2] += begin_[i + 1];
    visit(p, axis, [&](int64_t out, int64_t in, int first, int last) {
      const int64_t slot = begin_[(transposed ? in : out) + 1]++;
      links_[slot] = {static_cast<int32_t>(transposed ? out : in), static_cast<int16_t>(first),
                      static_cast<int16_t>(last)};
    });
  }

  bool ok() const { return begin_.ok() && links_.ok(); }
  const Link* begin(int64_t destination) const { return links_.data() + begin_[destination]; }
  const Link* end(int64_t destination) const { return links_.data() + begin_[destination + 1]; }

  int64_t most_links(int64_t destinations) const {
    int64_t most = 1;
    for (int64_t d = 0; d < destinations; ++d) most = larger(most, end(d) - begin(d));
    return most;
  }

  // Sources [first, last] that destinations [from, to) read; empty (last < first) when they read
  // none.
  void sources(int64_t from, int64_t to, int64_t* first, int64_t* last) const {
    *first = INT32_MAX;
    *last = -1;
    for (const Link* link = begin(from); link != end(to - 1); ++link) {
      *first = smaller(*first, link->source);
      *last = larger(*last, link->source);
    }
  }

  // The largest number of sources between the first and the last of any `step` destinations in a
  // row.
  int64_t widest(int64_t destinations, int64_t step) const {
    int64_t most = 1, first, last;
    for (int64_t d = 0; d < destinations; d += step) {
      sources(d, smaller(d + step, destinations), &first, &last);
      most = larger(most, last - first + 1);
    }
    return most;
  }

 private:
  template <class F>
  static void visit(const evit::DepthwiseConv3dProblem& p, int axis, F&& f) {
    const bool clamp = axis == 0 && p.clamp_time;
    const int64_t size = p.in[axis];
    for (int64_t out = 0; out < p.out[axis]; ++out) {
      int64_t previous = -1;
      int first = 0;
      int last = 0;
      for (int k = 0; k < p.kernel[axis]; ++k) {
        int64_t in = out * p.stride[axis] - p.padding[axis] + k * p.dilation[axis];
        if (in < 0 || in >= size) {
          if (!clamp) continue;
          in = in < 0 ? 0 : size - 1;
        }
        if (in == previous) {
          last = k;
          continue;
        }
        if (previous >= 0) f(out, previous, first, last);
        previous = in;
        first = last = k;
      }
      if (previous >= 0) f(out, previous, first, last);
    }
  }

  Buffer<int64_t> begin_;
  Buffer<Link> links_;
};

// Numbers the weight planes along time: single taps first, then every merged range in use.
class Planes {
 public:
  Planes(const evit::DepthwiseConv3dProblem& p, const Plan& time, int64_t destinations) {
    for (auto& row : index_)
      for (auto& entry : row) entry = -1;
    for (int k = 0; k < p.kernel[0]; ++k) add(k, k);
    for (int64_t d = 0; d < destinations; ++d)
      for (const Link* link = time.begin(d); link != time.end(d); ++link)
        if (index_[link->first][link->last] < 0) add(link->first, link->last);
  }

  int count() const { return count_; }
  int of(const Link& link) const { return index_[link.first][link.last]; }
  int first(int plane) const { return range_[plane].first; }
  int last(int plane) const { return range_[plane].last; }

 private:
  void add(int first, int last) {
    index_[first][last] = count_;
    range_[count_++] = {0, static_cast<int16_t>(first), static_cast<int16_t>(last)};
  }

  int count_ = 0;
  int index_[kMaxKernel][kMaxKernel];
  Link range_[kMaxKernel * (kMaxKernel + 1) / 2];
};

// Strides of sample, frame, row and column of a dense channels-last tensor.
inline void dense_strides(const int64_t* size, int64_t channels, int64_t* strides) {
  strides[3] = channels;
  strides[2] = strides[3] * size[2];
  strides[1] = strides[2] * size[1];
  strides[0] = strides[1] * size[0];
}

constexpr int64_t kRingBytes = 512 * 1024;  // of unpacked rows, to stay in a core's L2 cache

// Destination rows of one tile: as many as keep the ring in cache, evenly spread. From shapes
// alone.
int64_t tile_rows(const Plan& height, int64_t rows, int64_t slots, int64_t row_bytes) {
  int64_t tile = rows;
  while (tile > 1 && height.widest(rows, tile) * slots * row_bytes > kRingBytes)
    tile -= (tile + 7) / 8;
  return ceil_div(rows, ceil_div(rows, larger(1, tile)));
}

}  // namespace
