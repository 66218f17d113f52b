// What a march through time will read next, fetched while it computes.
#pragma once

#include "depthwise_conv3d_pack.h"

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

}  // namespace
