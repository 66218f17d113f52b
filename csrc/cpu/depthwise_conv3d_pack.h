// A ring of source frames, one slab of channels each, unpacked to the accumulation type.
//
// The kernels read every source element many times. In a channels-last tensor the columns of one slab
// lie C elements apart, often a multiple of the cache's period, so they would evict each other; and
// 16-bit storage would be converted at every read. Copied once into a dense slab, with zero columns
// at both ends, a frame is read from L1, needs no bounds checks and no conversions.
#pragma once

#include "buffer.h"
#include "simd.h"

namespace {

// Loads the first `count` of L elements, the rest 0.
template <int L, class S>
EVIT_INLINE Vector<Acc<S>, L> load_part(const S* p, int count) {
  if (count == L) return load<L>(p);
  S lanes[L] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return load<L>(static_cast<const S*>(lanes));
}

template <int L, class S>
EVIT_INLINE void store_part(S* p, Vector<Acc<S>, L> v, int count) {
  if (count == L) return store<L>(p, v);
  S lanes[L];
  store<L>(static_cast<S*>(lanes), v);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

template <class S>
class FrameRing {
 public:
  static constexpr int L = kLanes<S>;

  // `slots` consecutive frames of up to `rows` rows of `width` columns, with `left` and `right` zero
  // columns around each row.
  FrameRing(int64_t slots, int64_t rows, int64_t width, int64_t left, int64_t right)
      : slots_(slots),
        rows_(rows),
        width_(width),
        left_(left),
        row_elements_((left + width + right) * L),
        frame_of_(slots),
        data_(slots * rows * row_elements_) {
    if (!ok()) return;
    for (int64_t row = 0; row < slots * rows; ++row) {
      Acc<S>* p = data_.data() + row * row_elements_;
      for (int64_t i = 0; i < left * L; ++i) p[i] = 0;
      for (int64_t i = (left + width) * L; i < row_elements_; ++i) p[i] = 0;
    }
  }

  bool ok() const { return frame_of_.ok() && data_.ok(); }

  // Forgets all frames: what follows is another slab, another tile or another sample.
  // Rows [first_row, first_row + count) of the source will be held, `lanes` channels from `source`.
  void start(const S* source, const int64_t* strides, int64_t first_row, int64_t count, int lanes) {
    source_ = source + first_row * strides[2];
    strides_ = strides;
    first_row_ = first_row;
    count_ = count;
    lanes_ = lanes;
    for (int64_t i = 0; i < slots_; ++i) frame_of_[i] = -1;
  }

  // The first column (after the zeros on the left) of a row of a frame, which is read if need be.
  const Acc<S>* row(int64_t frame, int64_t row) {
    const int64_t slot = frame % slots_;
    if (frame_of_[slot] != frame) fill(slot, frame);
    return data_.data() + (slot * rows_ + row - first_row_) * row_elements_ + left_ * L;
  }

 private:
  void fill(int64_t slot, int64_t frame) {
    frame_of_[slot] = frame;
    for (int64_t r = 0; r < count_; ++r) {
      const S* from = source_ + frame * strides_[1] + r * strides_[2];
      Acc<S>* to = data_.data() + (slot * rows_ + r) * row_elements_ + left_ * L;
      if (lanes_ == L) {
        for (int64_t w = 0; w < width_; ++w) store<L>(to + w * L, load<L>(from + w * strides_[3]));
      } else {
        for (int64_t w = 0; w < width_; ++w)
          store<L>(to + w * L, load_part<L>(from + w * strides_[3], lanes_));
      }
    }
  }

  int64_t slots_, rows_, width_, left_, row_elements_;
  Buffer<int64_t> frame_of_;
  Buffer<Acc<S>> data_;
  const S* source_ = nullptr;
  const int64_t* strides_ = nullptr;
  int64_t first_row_ = 0, count_ = 0;
  int lanes_ = L;
};

}  // namespace
