// What the products of a pointwise convolution read: rows of channels in the accumulation type.
#pragma once

#include "buffer.h"
#include "simd.h"

namespace {

// Copies `columns` of each row, with zeros after them, to whole vectors in the accumulation type.
template <class S>
void pack_rows(const S* from, int64_t stride, int64_t rows, int64_t columns, Acc<S>* to,
               int64_t to_stride) {
  constexpr int L = kLanes<S>;
  for (; rows > 0; --rows, from += stride, to += to_stride)
    for (int64_t c = 0; c < columns; c += L)
      store<L>(to + c, load_part<L>(from + c, static_cast<int>(smaller(L, columns - c))));
}

// Rows of C values as the products read them: the tensor itself where it is of the accumulation
// type, else a copy of a few rows.
template <class S>
class Rows {
 public:
  static constexpr int L = kLanes<S>;
  static constexpr bool kCopies = sizeof(S) != sizeof(Acc<S>);

  Rows(const S* source, int64_t channels, int64_t stride, int64_t rows)
      : source_(source),
        channels_(channels),
        stride_(stride),
        width_(kCopies ? ceil_div(channels, L) * L : stride),
        copy_(kCopies ? rows * width_ : 0) {}

  bool ok() const { return copy_.ok(); }
  int64_t stride() const { return width_; }

  const Acc<S>* at(int64_t first, int64_t count) { return read(source_ + first * stride_, count); }

  // The same of rows that begin elsewhere.
  const Acc<S>* read(const S* source, int64_t count) {
    if constexpr (kCopies) {
      pack_rows(source, stride_, count, channels_, copy_.data(), width_);
      return copy_.data();
    } else {
      return source;
    }
  }

 private:
  const S* source_;
  int64_t channels_, stride_;
  int64_t width_;
  Buffer<Acc<S>> copy_;
};

}  // namespace
