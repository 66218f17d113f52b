// A depthwise convolution that marches through time: a block of columns of one row is summed for
// all destination frames that the present source frame reaches, in registers. Each source row is
// loaded once, however many frames the kernel has.
#pragma once

#include "depthwise_conv3d_ahead.h"
#include "depthwise_conv3d_finish.h"
#include "depthwise_conv3d_steps.h"

namespace {

// A source row and the row of taps that multiplies it, in elements from the first of each.
struct RowTap {
  int64_t row;
  int64_t weight;
};

// A block of columns of one row of destinations, one or a few slabs, the frames of a tile.
template <class S>
struct MarchJob {
  const Step* steps;
  int64_t step_count;
  const RowTap* rows;
  int64_t row_count;
  const Acc<S>* source;  // unpacked, the first column that the block reads, of the first slab
  int64_t source_slab_stride;
  int64_t source_frame_stride;
  const Acc<S>* weights;  // of the first slab
  int64_t slab_weights;   // elements
  int64_t plane_weights;
  const Target<S>* target;  // of the first slab
  int64_t slabs;
  int64_t offset;    // of the block in the target, frame 0
  int64_t upcoming;  // of the block to be written next
  Ahead<S>* ahead;
};

// Lines to be written must come from memory first, too: those of the next block, B columns of a
// frame.
template <class S, int B>
EVIT_INLINE void prefetch_target(const MarchJob<S>& job, int64_t frame) {
  const S* out = job.target->destination + job.upcoming + frame;
  EVIT_UNROLL
  for (int i = 0; i < B; ++i) __builtin_prefetch(out + i * job.target->column_stride, 1);
}

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
    const int64_t frame = step->destination * job.target->frame_stride;
    if (step->destination >= 0) prefetch_target<S, B>(job, frame);
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
    if (step->destination >= 0) finish<S, B, true>(*job.target, job.offset + frame, sums[0]);
    EVIT_UNROLL
    for (int j = 0; j < KT; ++j) {
      EVIT_UNROLL
      for (int i = 0; i < B; ++i) sums[j][i] = j + 1 < KT ? sums[j + 1 < KT ? j + 1 : j][i] : V{};
    }
  }
}

// The same frame by frame, for processors whose registers do not hold the sums of all frames in
// flight: the sources stay in the first-level cache until the last of their destinations. Slabs are
// innermost, for several of them share a line of the target. Nothing is fetched ahead: the copy of
// the rows does, and both together took 1.04 of the time.
template <class S, int KT, int KW, int KS, int B>
void gather(const MarchJob<S>& job) {
  constexpr int L = kLanes<S>;
  for (int64_t s = 0; s < job.step_count; ++s) {
    const Step* const last = job.steps + s;
    if (last->destination < 0) continue;
    RowTap taps[KT * kMaxKernel];
    int count = 0;
    // A destination was the j-th of those in flight j steps before its last.
    for (int64_t j = smaller(s, KT - 1); j >= 0; --j) {
      const Step& step = last[-j];
      if (step.source < 0 || step.planes[j] < 0) continue;
      const int64_t source = step.source * job.source_frame_stride;
      const int64_t weights = step.planes[j] * job.plane_weights;
      for (int64_t r = 0; r < job.row_count; ++r)
        taps[count++] = {source + job.rows[r].row, weights + job.rows[r].weight};
    }
    const int64_t frame = last->destination * job.target->frame_stride;
    for (int64_t slab = 0; slab < job.slabs; ++slab) {
      const Acc<S>* const source = job.source + slab * job.source_slab_stride;
      const Acc<S>* const weights = job.weights + slab * job.slab_weights;
      if (slab * L * sizeof(S) % kLine == 0) prefetch_target<S, B>(job, frame + slab * L);
      Vector<Acc<S>, L> sums[B];
      EVIT_UNROLL
      for (int i = 0; i < B; ++i) sums[i] = Vector<Acc<S>, L>{};
      for (int i = 0; i < count; ++i)
        add_row<S, KW, KS>(source + taps[i].row, weights + taps[i].weight, sums);
      finish<S, B, true>(job.target[slab], job.offset + frame, sums);
    }
  }
}

}  // namespace
