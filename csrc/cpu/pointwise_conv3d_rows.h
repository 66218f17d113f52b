// What the products of a pointwise convolution read: rows of channels in the accumulation type.
#pragma once

#include "buffer.h"
#include "simd.h"

namespace {

// Rows of C values as the products read them: the tensor itself where it is float and whole vectors
// wide, else a copy of a few rows in the accumulation type, padded with zeros.
template <class S>
class Rows {
 public:
  static constexpr int L = kLanes<S>;

  // With `whole_vectors`, a vector may be loaded from every group of `group` channels on.
  Rows(const S* source, int64_t channels, int64_t stride, int64_t rows, bool whole_vectors,
       int64_t group)
      : source_(source),
        channels_(channels),
        stride_(stride),
        copies_(sizeof(S) != sizeof(Acc<S>) || (whole_vectors && group % L != 0)),
        width_(copies_ ? (ceil_div(channels, L) + 1) * L : stride),
        copy_(copies_ ? rows * width_ : 0) {}

  bool ok() const { return copy_.ok(); }
  bool copies() const { return copies_; }
  int64_t stride() const { return width_; }

  const Acc<S>* at(int64_t first, int64_t count) { return read(source_ + first * stride_, count); }

  // The same of rows that begin elsewhere.
  const Acc<S>* read(const S* source, int64_t count) {
    if constexpr (sizeof(S) == sizeof(Acc<S>)) {
      if (!copies_) return source;
    }
    for (int64_t r = 0; r < count; ++r) {
      const S* from = source + r * stride_;
      Acc<S>* to = copy_.data() + r * width_;
      int64_t c = 0;
      for (; c + L <= channels_; c += L) store<L>(to + c, load<L>(from + c));
      for (; c < channels_; ++c) to[c] = load<1>(from + c)[0];
      for (; c < width_; ++c) to[c] = 0;
    }
    return copy_.data();
  }

 private:
  const S* source_;
  int64_t channels_, stride_;
  bool copies_;
  int64_t width_;
  Buffer<Acc<S>> copy_;
};

}  // namespace
