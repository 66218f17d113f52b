// A march through time: which source frame reaches which destination frames in flight.
#pragma once

#include "depthwise_conv3d_plan.h"

namespace {

// One source frame: the planes of weights with which it reaches the destinations in flight, oldest
// first, and the destination that is complete after it.
struct Step {
  int64_t source;              // -1: none, the march goes on in the padding
  int64_t destination;         // -1: none of this tile
  int32_t planes[kMaxKernel];  // -1: that destination takes nothing from this frame
};

class Steps {
 public:
  // `kernel`: how many destinations can be in flight.
  Steps(const Plan& time, const Planes& planes, int64_t destinations, int64_t kernel)
      : time_(time), planes_(planes), kernel_(kernel) {
    int64_t lowest = INT64_MAX, highest = INT64_MIN, last = -1, links = 0;
    for (int64_t d = 0; d < destinations; ++d)
      for (const Link* link = time.begin(d); link != time.end(d); ++link) {
        lowest = smaller(lowest, d - link->source);
        highest = larger(highest, d - link->source);
        last = larger(last, link->source);
        ++links;
      }
    const bool busy = 2 * links >= (kernel + 1) * (last + 1);
    fits_ = links > 0 && highest - lowest < kernel && busy;
    oldest_ = fits_ ? lowest : 0;
  }

  // Whether no source frame reaches more destinations than can be in flight, and on average at
  // least half of these take part: clips of one or two frames are faster frame by frame.
  bool fits() const { return fits_; }

  // The most steps to `frames` destinations in a row.
  int64_t most(int64_t frames) const { return frames + kernel_ - 1; }

  // The first source frame that destinations from `begin` on read.
  int64_t first_source(int64_t begin) const { return larger(0, begin - oldest_ - kernel_ + 1); }

  // The steps to destinations [begin, end), with sources counted from the first. Returns how many.
  int64_t fill(int64_t begin, int64_t end, Step* steps) const {
    const int64_t first = first_source(begin);
    int64_t count = 0;
    for (int64_t source = begin - oldest_ - kernel_ + 1; source + oldest_ < end; ++source) {
      const int64_t oldest = source + oldest_;
      Step& step = steps[count++];
      step.source = -1;
      step.destination = oldest >= begin ? oldest : -1;
      for (int j = 0; j < kMaxKernel; ++j) step.planes[j] = -1;
      for (int64_t d = larger(begin, oldest); d < smaller(end, oldest + kernel_); ++d)
        for (const Link* link = time_.begin(d); link != time_.end(d); ++link)
          if (link->source == source) {
            step.planes[d - oldest] = planes_.of(*link);
            step.source = source - first;
          }
    }
    return count;
  }

 private:
  const Plan& time_;
  const Planes& planes_;
  const int64_t kernel_;
  int64_t oldest_;  // destination of a source frame, counted from that frame
  bool fits_;
};

}  // namespace
