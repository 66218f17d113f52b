// A depthwise convolution that marches through time: a block of columns of one row is summed for
// all destination frames that the present source frame reaches, in registers. Each source row is
// loaded once, however many frames the kernel has.
#pragma once

#include "depthwise_conv3d_finish.h"
#include "depthwise_conv3d_pack.h"
#include "depthwise_conv3d_steps.h"

namespace {

// Walks the source rows that will be unpacked next in the order of memory, and fetches them a few
// columns at a time, between the products of what is there already.
template <class S>
class Ahead {
 public:
  Ahead() = default;

  // `rows` rows of `frames` frames from `source`, `width` columns of `channels`, in `turns` calls.
  Ahead(const S* source, const int64_t* strides, int64_t rows, int64_t frames, int64_t width,
        int64_t channels, int64_t turns)
      : at_(source),
        row_(source),
        frame_stride_(strides[1]),
        row_stride_(strides[2]),
        column_stride_(strides[3]),
        lines_(ceil_div(channels * static_cast<int64_t>(sizeof(S)), kLine)),
        frames_(frames),
        width_(width),
        rows_(rows),
        left_(width),
        per_turn_(ceil_div(rows * frames * width, turns)) {}

  EVIT_INLINE void fetch() {
    for (int64_t wanted = per_turn_; wanted > 0 && rows_ > 0;) {
      const int64_t count = smaller(wanted, left_);
      if (lines_ == kGroup)
        columns<kGroup>(count);
      else if (lines_ == 1)
        columns<1>(count);
      else
        columns<0>(count);
      wanted -= count;
      left_ -= count;
      if (left_ == 0) next_run();
    }
  }

 private:
  // `Lines` lines of each column, or lines_ if that is 0.
  template <int Lines>
  EVIT_INLINE void columns(int64_t count) {
    const S* at = at_;
    for (int64_t i = 0; i < count; ++i, at += column_stride_) {
      const char* p = reinterpret_cast<const char*>(at);
      EVIT_UNROLL
      for (int64_t k = 0; k < (Lines > 0 ? Lines : lines_); ++k) __builtin_prefetch(p + k * kLine);
    }
    at_ = at;
  }

  void next_run() {
    left_ = width_;
    if (++frame_ == frames_) {
      frame_ = 0;
      row_ += row_stride_;
      --rows_;
    }
    at_ = row_ + frame_ * frame_stride_;
  }

  const S* at_ = nullptr;
  const S* row_ = nullptr;  // of the first frame
  int64_t frame_stride_ = 0, row_stride_ = 0, column_stride_ = 0;
  int64_t lines_ = 0, frames_ = 0, width_ = 0;
  int64_t rows_ = 0, frame_ = 0, left_ = 0;  // where it is
  int64_t per_turn_ = 0;
};

// A source row and the row of taps that multiplies it, in elements from the first of each.
struct RowTap {
  int64_t row;
  int64_t weight;
};

// A block of columns of one row of destinations, one slab, the frames of a tile.
template <class S>
struct MarchJob {
  const Step* steps;
  int64_t step_count;
  const RowTap* rows;
  int64_t row_count;
  const Acc<S>* source;  // unpacked, the first column that the block reads
  int64_t source_frame_stride;
  const Acc<S>* weights;
  int64_t plane_weights;  // elements
  Target<S> target;
  int64_t offset;    // of the block in the target, frame 0
  int64_t upcoming;  // of the block to be written next
  Ahead<S>* ahead;
};

// Destination columns 0 .. B - 1 from source columns times KS + (0 .. KW - 1). The first `Left` and
// the last `Right` of these are known to be padding.
template <class S, int KT, int KW, int KS, int B, int Left, int Right>
void march(const MarchJob<S>& job) {
  constexpr int L = kLanes<S>;
  using V = Vector<Acc<S>, L>;
  V sums[KT][B];
  EVIT_UNROLL
  for (int j = 0; j < KT; ++j) {
    EVIT_UNROLL
    for (int i = 0; i < B; ++i) sums[j][i] = V{};
  }
  for (const Step* step = job.steps; step != job.steps + job.step_count; ++step) {
    const int64_t frame = step->destination * job.target.frame_stride;
    if (step->destination >= 0) {
      // Lines to be written must come from memory first, too.
      const S* out = job.target.destination + job.upcoming + frame;
      EVIT_UNROLL
      for (int i = 0; i < B; ++i) __builtin_prefetch(out + i * job.target.column_stride, 1);
    }
    if (step->source >= 0) {
      job.ahead->fetch();
      const Acc<S>* source = job.source + step->source * job.source_frame_stride;
      for (int64_t r = 0; r < job.row_count; ++r) {
        const Acc<S>* row = source + job.rows[r].row;
        const Acc<S>* weight = job.weights + job.rows[r].weight;
        // With a stride of 2 the even taps first, then the odd: fewer columns to hold at a time.
        EVIT_UNROLL
        for (int phase = 0; phase < KS; ++phase) {
          constexpr int kMost = B + (KW - 1) / KS;
          V x[kMost];
          EVIT_UNROLL
          for (int m = 0; m < kMost; ++m) {
            const int column = phase + m * KS;
            if (column < Left || column >= (B - 1) * KS + KW - Right) continue;
            x[m] = load<L>(row + column * L);
            keep(x[m]);
          }
          EVIT_UNROLL
          for (int j = 0; j < KT; ++j) {
            if (step->planes[j] < 0) continue;
            const Acc<S>* taps = weight + step->planes[j] * job.plane_weights;
            EVIT_UNROLL
            for (int k = phase; k < KW; k += KS) {
              V tap = load<L>(taps + k * L);
              keep(tap);
              EVIT_UNROLL
              for (int i = 0; i < B; ++i) {
                const int column = i * KS + k;
                if (column < Left || column >= (B - 1) * KS + KW - Right) continue;
                sums[j][i] += x[i + (k - phase) / KS] * tap;
              }
            }
          }
        }
      }
    }
    if (step->destination >= 0) finish<S, B, true>(job.target, job.offset + frame, sums[0]);
    EVIT_UNROLL
    for (int j = 0; j < KT; ++j) {
      EVIT_UNROLL
      for (int i = 0; i < B; ++i) sums[j][i] = j + 1 < KT ? sums[j + 1 < KT ? j + 1 : j][i] : V{};
    }
  }
}

template <class S>
using MarchFunction = void (*)(const MarchJob<S>&);

// A block of columns and the function for it.
template <class S>
struct Block {
  MarchFunction<S> function;
  int64_t columns;
};

#if !defined(EVIT_PLAIN_ONLY) && (defined(__AVX512F__) || defined(__aarch64__))
template <class S>
constexpr bool kMarches = sizeof(S) <= 4;
#else
// 16 registers do not hold the sums of three frames.
template <class S>
constexpr bool kMarches = false;
#endif

// How a row is cut into blocks: blocks of four columns, then blocks of as many as leave registers
// for all frames in flight. Where these cannot make up the width, the rest are single columns.
template <class S>
class Blocks {
 public:
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

}  // namespace
