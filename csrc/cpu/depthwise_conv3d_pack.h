// Source rows of a few slabs of channels each, unpacked to the accumulation type.
//
// The kernels read every source element many times. In a channels-last tensor the columns of one
// slab lie C elements apart, often a multiple of the cache's period, so they would evict each
// other; and 16-bit storage would be converted at every read. Copied once into dense slabs, with
// zero columns at both ends, a row is read from cache, needs no bounds checks and no conversions.
// Several slabs are copied together because memory is several times faster where whole runs of
// cache lines are read.
#pragma once

#include "buffer.h"
#include "simd.h"

namespace {

// Slabs of one task: full cache lines in a row where there are that many channels.
constexpr int64_t kGroup = 4;
// How many cache lines ahead the source is fetched: the processor alone finds too few of them. Into
// the second-level cache, which takes more of them from memory at a time than the first.
constexpr int64_t kAhead = 96;

// Rows of a few slabs, unpacked: (row, slab, column, L), with `left` and `right` zero columns
// around each.
template <class S>
class UnpackedRows {
 public:
  static constexpr int L = kLanes<S>;

  UnpackedRows(int64_t rows, int64_t width, int64_t left, int64_t right, int64_t slabs)
      : width_(width),
        left_(left),
        slab_stride_((left + width + right) * L),
        row_stride_(slab_stride_ * slabs),
        data_(rows * row_stride_) {
    if (!ok()) return;
    for (int64_t i = 0; i < rows * slabs; ++i) {
      Acc<S>* p = data_.data() + i * slab_stride_;
      for (int64_t j = 0; j < left * L; ++j) p[j] = 0;
      for (int64_t j = (left + width) * L; j < slab_stride_; ++j) p[j] = 0;
    }
  }

  bool ok() const { return data_.ok(); }

  // Elements from a row of one slab to the same row of the next, and from a row to the next.
  int64_t slab_stride() const { return slab_stride_; }
  int64_t row_stride() const { return row_stride_; }

  // The first column (after the zeros on the left) of a row, first slab.
  const Acc<S>* at(int64_t row) const { return data_.data() + row * row_stride_ + left_ * L; }

  Acc<S>* at(int64_t row) { return data_.data() + row * row_stride_ + left_ * L; }

  // Unpacks a row of `channels` whose columns lie `stride` elements apart.
  void copy(int64_t row, const S* from, int64_t stride, int64_t channels) {
    Acc<S>* to = data_.data() + row * row_stride_ + left_ * L;
    if (channels == kGroup * L)
      copy_slabs<kGroup>(from, stride, to);
    else if (channels == 2 * L)
      copy_slabs<2>(from, stride, to);
    else if (channels == L)
      copy_slabs<1>(from, stride, to);
    else
      copy_some(from, stride, channels, to);
  }

 private:
  template <int Slabs>
  void copy_slabs(const S* from, int64_t stride, Acc<S>* to) const {
    constexpr int kOfLine = larger(1, kLine / (L * static_cast<int64_t>(sizeof(S))));  // slabs
    constexpr int64_t kLines = ceil_div(Slabs, kOfLine);
    for (int64_t w = 0; w < width_; ++w, from += stride, to += L) {
      EVIT_UNROLL
      for (int g = 0; g < Slabs; g += kOfLine)
        __builtin_prefetch(from + kAhead / kLines * stride + g * L, 0, 2);
      EVIT_UNROLL
      for (int g = 0; g < Slabs; ++g) store<L>(to + g * slab_stride_, load<L>(from + g * L));
    }
  }

  void copy_some(const S* from, int64_t stride, int64_t channels, Acc<S>* to) const {
    for (int64_t w = 0; w < width_; ++w, from += stride, to += L)
      for (int64_t c = 0; c < channels; c += L) {
        const int lanes = static_cast<int>(smaller(L, channels - c));
        store<L>(to + c / L * slab_stride_, load_part<L>(from + c, lanes));
      }
  }

  int64_t width_, left_, slab_stride_, row_stride_;
  Buffer<Acc<S>> data_;
};

// A ring of frames.
template <class S>
class FrameRing {
 public:
  // `slots` consecutive frames of up to `rows` rows of `width` columns of `slabs` slabs, with
  // `left` and `right` zero columns around each row.
  FrameRing(int64_t slots, int64_t rows, int64_t width, int64_t left, int64_t right, int64_t slabs)
      : slots_(slots),
        rows_(rows),
        frame_of_(slots),
        data_(slots * rows, width, left, right, slabs) {}

  bool ok() const { return frame_of_.ok() && data_.ok(); }
  int64_t slab_stride() const { return data_.slab_stride(); }
  int64_t row_stride() const { return data_.row_stride(); }

  // Forgets all frames: what follows are other slabs, another tile or another sample.
  // Rows [first_row, first_row + count) of the source will be held, `channels` of them from
  // `source`.
  void start(const S* source, const int64_t* strides, int64_t first_row, int64_t count,
             int64_t channels) {
    source_ = source + first_row * strides[2];
    strides_ = strides;
    count_ = count;
    channels_ = channels;
    for (int64_t i = 0; i < slots_; ++i) frame_of_[i] = -1;
  }

  bool holds(int64_t frame) const { return frame_of_[frame % slots_] == frame; }
  const S* source(int64_t frame) const { return source_ + frame * strides_[1]; }

  // The first row of a frame; reads the frame if need be.
  const Acc<S>* frame(int64_t frame) {
    const int64_t slot = frame % slots_;
    if (frame_of_[slot] != frame) {
      frame_of_[slot] = frame;
      for (int64_t r = 0; r < count_; ++r)
        data_.copy(slot * rows_ + r, source(frame) + r * strides_[2], strides_[3], channels_);
    }
    return data_.at(slot * rows_);
  }

 private:
  int64_t slots_, rows_;
  Buffer<int64_t> frame_of_;
  UnpackedRows<S> data_;
  const S* source_ = nullptr;
  const int64_t* strides_ = nullptr;
  int64_t count_ = 0, channels_ = 0;
};

}  // namespace
