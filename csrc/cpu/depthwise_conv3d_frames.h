// A pass of a depthwise convolution frame by frame, for any kernel: the source frames that one
// destination frame reads stay unpacked in cache.
#pragma once

#include "depthwise_conv3d_pass.h"
#include "depthwise_conv3d_weights.h"

namespace {

// Cuts the work into tiles of a few slabs of channels, some rows and all frames; within a tile
// frames pass through a ring.
template <class S>
class FramePass {
 public:
  explicit FramePass(const PassPlan<S>& plan)
      : plan_(plan),
        p_(plan.problem),
        size_(plan.size),
        slots_(plan.time.widest(size_[0], 1)),
        weights_(plan.slabs * plan.slab_weights) {}

  evit::Status run() {
    if (!weights_.ok()) return {kNoMemory};
    const int64_t group = smaller(kGroup, plan_.slabs);
    const int64_t groups = ceil_div(plan_.slabs, group);
    const Columns<S>& columns = plan_.columns;
    const int64_t source_width = plan_.source_size[2];
    const int64_t row_bytes = (columns.left + source_width + columns.right) * group * L *
                              static_cast<int64_t>(sizeof(Acc<S>));
    rows_ = tile_rows(plan_.height, size_[1], slots_, row_bytes);
    const int64_t row_tiles = ceil_div(size_[1], rows_);
    // Time runs inside a tile, so that each frame is unpacked once; it is cut only to occupy
    // threads.
    const int64_t tiles = p_.batch * row_tiles * groups;
    const int64_t time_tiles = smaller(size_[0], ceil_div(3 * p_.num_threads, larger(1, tiles)));
    frames_ = ceil_div(size_[0], time_tiles);
    const int64_t tasks = tiles * time_tiles;
    const int64_t source_rows = plan_.height.widest(size_[1], rows_);
    bool failed = false;

#pragma omp parallel num_threads(p_.num_threads) if (p_.num_threads > 1)
    {
      FrameRing<S> ring(slots_, source_rows, source_width, columns.left, columns.right, group);
      // First the frames that a destination frame reads, then their rows.
      Buffer<Tap<Acc<S>>> taps(plan_.time.most_links(size_[0]) *
                               (1 + rows_ * plan_.height.most_links(size_[1])));
      Buffer<TapList<Acc<S>>> lists(rows_);
      const bool ready = ring.ok() && taps.ok() && lists.ok();
#pragma omp for schedule(static)
      for (int64_t slab = 0; slab < plan_.slabs; ++slab)
        pack_weights(p_, plan_.planes, plan_.pass.weight, columns.mirrored, slab,
                     weights_.data() + slab * plan_.slab_weights);
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < tasks; ++task) {
        // Channels are innermost: neighbours in memory are read at about the same time.
        const int64_t slab = task % groups * group;
        const int64_t h0 = task / groups % row_tiles * rows_;
        const int64_t t0 = task / (groups * row_tiles) % time_tiles * frames_;
        const int64_t n = task / (groups * row_tiles * time_tiles);
        if (ready)
          tile(n, t0, h0, slab, group, ring, taps.data(), lists.data());
        else
          failed = true;
      }
    }
    return {failed ? kNoMemory : nullptr};
  }

 private:
  static constexpr int L = kLanes<S>;

  void tile(int64_t n, int64_t t0, int64_t h0, int64_t slab, int64_t group, FrameRing<S>& ring,
            Tap<Acc<S>>* taps, TapList<Acc<S>>* lists) const {
    const int64_t* const strides = plan_.pass.source_strides;
    const Plan& time = plan_.time;
    const Plan& height = plan_.height;
    const int64_t rows = smaller(rows_, size_[1] - h0);
    const int64_t slabs = smaller(group, plan_.slabs - slab);
    int64_t first, last;
    height.sources(h0, h0 + rows, &first, &last);
    ring.start(plan_.source(n, slab), strides, first, larger(0, last - first + 1),
               smaller(slabs * L, p_.channels - slab * L));

    FrameJob<S> job = {};
    job.lists = lists;
    job.rows = rows;
    job.width = size_[2];
    job.source_width = plan_.source_size[2];
    job.kernel = p_.kernel[2];
    job.stride = p_.stride[2];
    job.dilation = p_.dilation[2];
    job.padding = plan_.columns.padding;
    job.next_row_stride = strides[2];
    job.next_column_stride = strides[3];
    const Acc<S>* weights = weights_.data() + slab * plan_.slab_weights;
    const int64_t row_weights = p_.kernel[2] * L;
    const int64_t end = smaller(t0 + frames_, size_[0]);

    for (int64_t t = t0; t < end; ++t) {
      Tap<Acc<S>>* next = taps;
      for (const Link* f = time.begin(t); f != time.end(t); ++f)
        *next++ = {ring.frame(f->source),
                   weights + plan_.planes.of(*f) * p_.kernel[1] * row_weights};
      const TapList<Acc<S>> frames = {taps, static_cast<int>(next - taps)};
      for (int64_t h = 0; h < rows; ++h) {
        lists[h].taps = next;
        for (int f = 0; f < frames.count; ++f)
          for (const Link* r = height.begin(h0 + h); r != height.end(h0 + h); ++r)
            *next++ = {frames.taps[f].row + (r->source - first) * ring.row_stride(),
                       frames.taps[f].weight + r->first * row_weights};
        lists[h].count = static_cast<int>(next - lists[h].taps);
      }
      // A frame far out in the padding reads no source at all.
      const bool more = t + 1 < end && time.begin(t + 1) != time.end(t + 1);
      const int64_t upcoming = more ? time.end(t + 1)[-1].source : -1;
      const bool fetch = upcoming >= 0 && !ring.holds(upcoming);
      for (int64_t s = 0; s < slabs; ++s) {
        const Target<S> target = plan_.target(n, slab + s);
        job.target = target.from(target.offset(t, h0, 0));
        job.source_offset = s * ring.slab_stride();
        job.weight_offset = s * plan_.slab_weights;
        job.next = fetch ? ring.source(upcoming) + s * L : nullptr;
        plan_.columns.function(job);
      }
    }
  }

  const PassPlan<S>& plan_;
  const evit::DepthwiseConv3dProblem& p_;
  const int64_t* const size_;
  const int64_t slots_;
  Buffer<Acc<S>> weights_;
  int64_t rows_ = 1;
  int64_t frames_ = 1;
};

}  // namespace
