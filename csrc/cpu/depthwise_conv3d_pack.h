// A ring of source frames, a few slabs of channels each, unpacked to the accumulation type.
//
// The kernels read every source element many times. In a channels-last tensor the columns of one
// slab lie C elements apart, often a multiple of the cache's period, so they would evict each
// other; and 16-bit storage would be converted at every read. Copied once into dense slabs, with
// zero columns at both ends, a frame is read from L1, needs no bounds checks and no conversions.
// Several slabs are copied together because memory is several times faster where whole runs of
// cache lines are read.
#pragma once

#include "buffer.h"
#include "simd.h"

namespace {

// Slabs of one task: four full cache lines in a row where there are that many channels.
constexpr int64_t kGroup = 4;
// How many cache lines ahead the source is fetched: the processor alone finds too few of them.
constexpr int64_t kAhead = 96;

template <class S>
class FrameRing {
 public:
  static constexpr int L = kLanes<S>;

  // `slots` consecutive frames of up to `rows` rows of `width` columns of `slabs` slabs, with
  // `left` and `right` zero columns around each row.
  FrameRing(int64_t slots, int64_t rows, int64_t width, int64_t left, int64_t right, int64_t slabs)
      : slots_(slots),
        rows_(rows),
        width_(width),
        left_(left),
        slab_stride_((left + width + right) * L),
        row_stride_(slab_stride_ * slabs),
        frame_of_(slots),
        data_(slots * rows * row_stride_) {
    if (!ok()) return;
    for (int64_t row = 0; row < slots * rows * slabs; ++row) {
      Acc<S>* p = data_.data() + row * slab_stride_;
      for (int64_t i = 0; i < left * L; ++i) p[i] = 0;
      for (int64_t i = (left + width) * L; i < slab_stride_; ++i) p[i] = 0;
    }
  }

  bool ok() const { return frame_of_.ok() && data_.ok(); }

  // Elements from a row of one slab to the same row of the next.
  int64_t slab_stride() const { return slab_stride_; }

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

  // The first column (after the zeros on the left) of the first row of a frame, first slab; reads
  // the frame if need be.
  const Acc<S>* frame(int64_t frame) {
    const int64_t slot = frame % slots_;
    if (frame_of_[slot] != frame) fill(slot, frame);
    return data_.data() + slot * rows_ * row_stride_ + left_ * L;
  }

  // Elements from a row to the next.
  int64_t row_stride() const { return row_stride_; }

 private:
  void fill(int64_t slot, int64_t frame) {
    frame_of_[slot] = frame;
    for (int64_t r = 0; r < count_; ++r) {
      const S* from = source_ + frame * strides_[1] + r * strides_[2];
      Acc<S>* to = data_.data() + (slot * rows_ + r) * row_stride_ + left_ * L;
      if (channels_ == kGroup * L)
        copy_row<kGroup>(from, to);
      else if (channels_ == L)
        copy_row<1>(from, to);
      else
        copy_some(from, to);
    }
  }

  template <int Slabs>
  void copy_row(const S* from, Acc<S>* to) const {
    for (int64_t w = 0; w < width_; ++w, from += strides_[3], to += L) {
      EVIT_UNROLL
      for (int g = 0; g < Slabs; ++g)
        __builtin_prefetch(from + kAhead / Slabs * strides_[3] + g * L);
      EVIT_UNROLL
      for (int g = 0; g < Slabs; ++g) store<L>(to + g * slab_stride_, load<L>(from + g * L));
    }
  }

  void copy_some(const S* from, Acc<S>* to) const {
    for (int64_t w = 0; w < width_; ++w, from += strides_[3], to += L)
      for (int64_t c = 0; c < channels_; c += L) {
        const int lanes = static_cast<int>(smaller(L, channels_ - c));
        store<L>(to + c / L * slab_stride_, load_part<L>(from + c, lanes));
      }
  }

  int64_t slots_, rows_, width_, left_, slab_stride_, row_stride_;
  Buffer<int64_t> frame_of_;
  Buffer<Acc<S>> data_;
  const S* source_ = nullptr;
  const int64_t* strides_ = nullptr;
  int64_t count_ = 0, channels_ = 0;
};

}  // namespace
