// How the rows of a march through time are cut into blocks of columns, and which function computes
// each.
#pragma once

#include "depthwise_conv3d_march.h"
#include "depthwise_conv3d_rows.h"

namespace {

#ifdef EVIT_PLAIN_ONLY
template <class S>
constexpr bool kMarches = false;
#else
template <class S>
constexpr bool kMarches = sizeof(S) <= 4;
#endif

// 16 registers do not hold the sums of three frames.
constexpr bool kHoldsFrames = kVectorRegisters == 32;

template <class S>
using MarchFunction = void (*)(const MarchJob<S>&);

// A block of columns and the function for it.
template <class S>
struct Block {
  MarchFunction<S> function;
  int64_t columns;
};

// How a row is cut into blocks. With registers for the sums of all frames: blocks of four columns,
// then blocks of as many as leave registers for all frames in flight. Where these cannot make up
// the width, the rest are single columns.
template <class S, bool HoldsFrames = kHoldsFrames>
class Blocks {
 public:
  static constexpr int64_t kSlabs = 1;  // of one call

  Blocks(const int64_t* kernel, int64_t stride, int64_t padding, int64_t source_width,
         int64_t width)
      : width_(width) {
    const bool three = kernel[0] == 3 && kernel[2] == 3;
    const bool five = kernel[0] == 5 && kernel[2] == 5;
    // As much padding on both sides as keeps the width.
    const bool same = padding == kernel[2] / 2 && source_width == width;
    if (three && stride == 1) {
      divide<3, 1, 7>();
      if (same && width == 7) last_ = of<3, 1, 7, 1, 1>();
    }
    if (three && stride == 2) divide<3, 2, 7>();
    if (five && stride == 1) {
      divide<5, 1, 3>();
      if (same && fours_ > 0) first_ = of<5, 1, 4, 2, 0>();
      if (same && last_.columns == 3) last_ = of<5, 1, 3, 0, 2>();
    }
  }

  bool ok() const { return last_.columns > 0; }

  Block<S> at(int64_t w) const {
    if (w < fours_) return w == 0 ? first_ : four_;
    return width_ - w == last_.columns ? last_ : rest_;
  }

  int64_t count() const {
    int64_t blocks = 0;
    for (int64_t w = 0; w < width_; w += at(w).columns) ++blocks;
    return blocks;
  }

 private:
  template <int K, int KS, int B, int Left = 0, int Right = 0>
  static Block<S> of() {
    return {march<S, K, K, KS, B, Left, Right>, B};
  }

  // As few fours as leave a multiple of B.
  template <int K, int KS, int B>
  void divide() {
    while (fours_ <= width_ && (width_ - fours_) % B != 0) fours_ += 4;
    first_ = four_ = of<K, KS, 4>();
    if (fours_ <= width_) {
      rest_ = last_ = of<K, KS, B>();
    } else {
      fours_ = width_ / 4 * 4;
      rest_ = last_ = of<K, KS, 1>();
    }
  }

  const int64_t width_;
  int64_t fours_ = 0;  // columns in blocks of four
  Block<S> four_ = {};
  Block<S> rest_ = {};
  Block<S> first_ = {};  // of the row, where it is a four
  Block<S> last_ = {};   // of the row, where it is not
};

// Without them: as for_each_block cuts a row.
template <class S>
class Blocks<S, false> {
 public:
  static constexpr int64_t kSlabs = kGroup;

  Blocks(const int64_t* kernel, int64_t stride, int64_t /*padding*/, int64_t /*source_width*/,
         int64_t width)
      : width_(width), most_(widest_block(width)) {
    const bool three = kernel[0] == 3 && kernel[2] == 3;
    const bool five = kernel[0] == 5 && kernel[2] == 5;
    if (three && stride == 1) gather_with<3, 1>();
    if (three && stride == 2) gather_with<3, 2>();
    if (five && stride == 1) gather_with<5, 1>();
  }

  bool ok() const { return functions_[1] != nullptr; }

  Block<S> at(int64_t w) const {
    const int64_t left = width_ - w;
    const int64_t columns = left >= most_ ? most_ : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    return {functions_[columns], columns};
  }

 private:
  template <int K, int KS>
  void gather_with() {
    functions_[8] = gather<S, K, K, KS, 8>;
    functions_[7] = gather<S, K, K, KS, 7>;
    functions_[4] = gather<S, K, K, KS, 4>;
    functions_[2] = gather<S, K, K, KS, 2>;
    functions_[1] = gather<S, K, K, KS, 1>;
  }

  const int64_t width_;
  const int64_t most_;
  MarchFunction<S> functions_[9] = {};  // by columns
};

}  // namespace
