// A pass of a depthwise convolution row by row, all frames of a tile at once, for kernels of 3 x 3
// x 3 and 5 x 5 x 5 taps: the source rows that one row of destinations reads stay unpacked in
// cache.
#pragma once

#include "depthwise_conv3d_blocks.h"
#include "depthwise_conv3d_pass.h"
#include "depthwise_conv3d_weights.h"
#include "evit/cpu.h"

namespace {

// Where a projection follows, a tile has all channels: at most so many, of at least so many frames,
// if there are as many, in at most a core's second-level cache. Measured: 512 channels cost more
// rows computed twice than they save; four frames save less than eight, but were not slower than
// single calls; to leave 0.4 of 1 MiB free for others costs 1.0 to 1.2 of the time.
constexpr int64_t kMostChannels = 256;
constexpr int64_t kLeastFrames = 4;

// Cuts the work into tiles of a few slabs of channels, some rows and as many frames as fit in
// cache; within a tile rows pass through a ring.
template <class S>
class MarchPass {
 public:
  explicit MarchPass(const PassPlan<S>& plan)
      : plan_(plan),
        p_(plan.problem),
        size_(plan.size),
        strides_(plan.pass.source_strides),
        steps_(plan.time, plan.planes, size_[0], p_.kernel[0]),
        blocks_(p_.kernel, p_.stride[2], plan.columns.padding, plan.source_size[2], size_[2]),
        slots_(plan.height.widest(size_[1], 1)) {}

  bool fits() const {
    const bool gathers = !plan_.pass.transposed || p_.stride[2] == 1;
    return blocks_.ok() && steps_.fits() && gathers && p_.dilation[2] == 1;
  }

  // Whether tiles of all channels, as a projection needs them, fit in cache.
  bool projects() const { return whole_frames() > 0; }

  evit::Status run() {
    choose_tiles();
    // Weights that one tile alone reads are packed by the thread that reads them.
    shared_ = tasks_ > groups_;
    Buffer<Acc<S>> weights(shared_ ? plan_.slabs * plan_.slab_weights : 0);
    bool failed = !weights.ok();
    int64_t started = failed ? tasks_ : 0;
#pragma omp parallel num_threads(p_.num_threads) if (p_.num_threads > 1)
    {
      Worker worker(*this);
      if (shared_ && weights.ok()) {
#pragma omp for schedule(static)
        for (int64_t slab = 0; slab < plan_.slabs; ++slab) pack(slab, slab, weights.data());
      }
      const auto next = [&] {
        int64_t task;
#pragma omp atomic capture
        task = started++;
        return task < tasks_ ? tile_of(task) : Tile{};
      };
      // The next tile is taken before this one begins: while this one ends, the next is fetched.
      Tile tile = next();
      while (tile.slabs > 0) {
        const Tile upcoming = next();
        if (worker.ok())
          run_tile(tile, upcoming, worker, weights.data());
        else
          failed = true;
        tile = upcoming;
      }
    }
    return {failed ? kNoMemory : nullptr};
  }

 private:
  static constexpr int L = kLanes<S>;
  static constexpr int64_t kMostSlabs = kMostChannels / L;
  static_assert(kMostSlabs >= kGroup, "a tile has no more slabs than that");

  struct Tile {
    int64_t sample, slab, slabs;  // no slabs: no tile
    int64_t row, end_row;
    int64_t frame, end_frame;
    int64_t first_source;  // frame
    int64_t sources;
  };

  // What a thread needs for a tile.
  struct Worker {
    explicit Worker(const MarchPass& m)
        : steps(m.steps_.most(m.frames_)),
          weights(m.shared_ ? 0 : m.group_ * m.plan_.slab_weights),
          held(m.slots_),
          ring(m.slots_ * m.sources_, m.plan_.source_size[2], m.plan_.columns.left,
               m.plan_.columns.right, m.group_),
          narrow(nullptr, m.depth(), m.strides_[3], m.depth() > 0 ? m.plan_.source_size[2] : 0),
          results(m.projection() != nullptr ? m.frames_ * m.size_[2] * m.p_.channels : 0),
          wide(nullptr, m.p_.channels, m.p_.channels, m.projection() != nullptr ? m.size_[2] : 0) {}

    bool ok() const {
      return steps.ok() && weights.ok() && held.ok() && ring.ok() && narrow.ok() && results.ok() &&
             wide.ok();
    }

    Buffer<Step> steps;
    Buffer<Acc<S>> weights;
    Buffer<int64_t> held;  // source row of each slot
    UnpackedRows<S> ring;  // (frame, slot)
    Rows<S> narrow;        // of an expansion
    Buffer<S> results;     // for a projection: (frame, column, channel) of one row
    Rows<S> wide;          // as the projection reads them
  };

  const Expansion<S>* expansion() const { return plan_.pass.expansion; }

  const Projection<S>* projection() const { return plan_.pass.projection; }

  // Channels of the source where it is expanded, else 0.
  int64_t depth() const { return expansion() != nullptr ? expansion()->depth() : 0; }

  int64_t sources_of(int64_t frames) const {
    return smaller(plan_.source_size[0], frames + p_.kernel[0] - 1);
  }

  int64_t ring_bytes(int64_t frames, int64_t slabs) const {
    const int64_t columns = plan_.columns.left + plan_.source_size[2] + plan_.columns.right;
    return slots_ * sources_of(frames) * slabs * columns * L * static_cast<int64_t>(sizeof(Acc<S>));
  }

  // The frames of a tile of all channels, 0 if not even the fewest fit in cache.
  int64_t whole_frames() const {
    if (plan_.slabs > kMostSlabs) return 0;
    const int64_t results = size_[2] * p_.channels * static_cast<int64_t>(sizeof(S));
    const int64_t most = evit::cpu::second_level_cache_bytes();
    const auto fits = [&](int64_t frames) {
      return ring_bytes(frames, plan_.slabs) + frames * results <= most;
    };
    const int64_t least = smaller(kLeastFrames, size_[0]);
    int64_t frames = size_[0];
    while (frames > least && !fits(frames)) frames = larger(least, ceil_div(frames, 2));
    return fits(frames) ? frames : 0;
  }

  // No choice changes a result: every sum is made in the same order.
  void choose_tiles() {
    group_ = smaller(kGroup, plan_.slabs);
    frames_ = size_[0];
    // Fewer, and one thread waits for the other: with 4, two threads took 1.02 of the time.
    int64_t tiles_of_thread = 6;
    const auto too_large = [&] { return ring_bytes(frames_, group_) > kRingBytes; };
    if (projection() != nullptr) {
      group_ = plan_.slabs;
      frames_ = whole_frames();
      // The higher the tiles, the fewer rows of sources are computed for two of them.
      tiles_of_thread = 2;
    } else {
      while (frames_ > 8 && too_large()) frames_ = ceil_div(frames_, 2);
      while (group_ > 1 && too_large()) group_ /= 2;
      while (frames_ > 1 && too_large()) frames_ = ceil_div(frames_, 2);
    }
    sources_ = sources_of(frames_);
    groups_ = ceil_div(plan_.slabs, group_);
    time_tiles_ = ceil_div(size_[0], frames_);
    const int64_t bands = larger(1, p_.batch * time_tiles_ * groups_);
    const int64_t wanted = ceil_div(tiles_of_thread * p_.num_threads, bands);
    rows_ = ceil_div(size_[1], smaller(size_[1], wanted));
    row_tiles_ = ceil_div(size_[1], rows_);
    tasks_ = p_.batch * time_tiles_ * groups_ * row_tiles_;
  }

  // Channels are innermost: neighbours in memory are read at about the same time.
  Tile tile_of(int64_t task) const {
    Tile t;
    t.slab = task % groups_ * group_;
    t.slabs = smaller(group_, plan_.slabs - t.slab);
    task /= groups_;
    t.row = task % row_tiles_ * rows_;
    t.end_row = smaller(t.row + rows_, size_[1]);
    task /= row_tiles_;
    t.frame = task % time_tiles_ * frames_;
    t.end_frame = smaller(t.frame + frames_, size_[0]);
    t.sample = task / time_tiles_;
    t.first_source = steps_.first_source(t.frame);
    // Destinations far out in the padding read none.
    t.sources = larger(0, smaller(sources_, plan_.source_size[0] - t.first_source));
    return t;
  }

  int64_t channels(const Tile& t) const { return smaller(t.slabs * L, p_.channels - t.slab * L); }

  const S* source(const Tile& t, int64_t row) const {
    return plan_.source(t.sample, t.slab) + t.first_source * strides_[1] + row * strides_[2];
  }

  // Fetches what row `row` of destinations will read beyond `seen`, the last source row so far.
  Ahead<S> ahead(const Tile& t, int64_t row, int64_t seen, int64_t turns) const {
    int64_t first, last;
    plan_.height.sources(row, row + 1, &first, &last);
    first = larger(first, seen + 1);
    if (last < first) return {};
    const int64_t width = plan_.source_size[2];
    return {source(t, first),
            strides_,
            last - first + 1,
            t.sources,
            width,
            depth() > 0 ? depth() : channels(t),
            turns};
  }

  void pack(int64_t slab, int64_t place, Acc<S>* weights) const {
    pack_weights(p_, plan_.planes, plan_.pass.weight, plan_.columns.mirrored, slab,
                 weights + place * plan_.slab_weights);
  }

  void run_tile(const Tile& t, const Tile& upcoming, Worker& worker, const Acc<S>* weights) const {
    MarchJob<S> job = {};
    job.steps = worker.steps.data();
    job.step_count = steps_.fill(t.frame, t.end_frame, worker.steps.data());
    job.source_slab_stride = worker.ring.slab_stride();
    job.source_frame_stride = slots_ * worker.ring.row_stride();
    job.slab_weights = plan_.slab_weights;
    job.plane_weights = p_.kernel[1] * p_.kernel[2] * L;
    if (shared_) {
      job.weights = weights + t.slab * plan_.slab_weights;
    } else {
      for (int64_t s = 0; s < t.slabs; ++s) pack(t.slab + s, s, worker.weights.data());
      job.weights = worker.weights.data();
    }
    for (int64_t i = 0; i < slots_; ++i) worker.held[i] = -1;

    int64_t turns = 1;
    if constexpr (kHoldsFrames) turns = larger(1, blocks_.count() * t.slabs * t.sources);
    int64_t seen = -1;
    for (int64_t row = t.row; row < t.end_row; ++row) {
      RowTap taps[kMaxKernel];
      job.rows = taps;
      job.row_count = 0;
      for (const Link* link = plan_.height.begin(row); link != plan_.height.end(row); ++link) {
        const int64_t slot = link->source % slots_;
        if (worker.held[slot] != link->source) unpack(t, link->source, slot, worker);
        taps[job.row_count++] = {slot * worker.ring.row_stride(), link->first * p_.kernel[2] * L};
        seen = larger(seen, link->source);
      }
      Ahead<S> next;
      if constexpr (kHoldsFrames) {
        if (row + 1 < t.end_row)
          next = ahead(t, row + 1, seen, turns);
        else if (upcoming.slabs > 0)
          next = ahead(upcoming, upcoming.row, -1, turns);
      }
      job.ahead = &next;
      run_row(t, row, worker, job);
    }
  }

  void unpack(const Tile& t, int64_t row, int64_t slot, Worker& worker) const {
    worker.held[slot] = row;
    if (expansion() != nullptr) {
      // What is larger stays in L1: the rows of a frame, or a panel of weights for all frames. Rows
      // that are converted, are converted once.
      const int64_t width = plan_.source_size[2];
      const bool rows_stay = width >= kPanel * L || Rows<S>::kCopies;
      const int64_t step = rows_stay ? t.slabs : kPanel;
      for (int64_t s = 0; s < t.slabs; s += step)
        for (int64_t f = 0; f < t.sources; ++f)
          expansion()->expand(worker.narrow.read(source(t, row) + f * strides_[1], width),
                              worker.narrow.stride(), width, t.slab + s, smaller(step, t.slabs - s),
                              worker.ring.at(f * slots_ + slot) + s * worker.ring.slab_stride(),
                              worker.ring.slab_stride());
      return;
    }
    for (int64_t f = 0; f < t.sources; ++f)
      worker.ring.copy(f * slots_ + slot, source(t, row) + f * strides_[1], strides_[3],
                       channels(t));
  }

  // The part of run_row that follows the columns of all slabs.
  void project(const Tile& t, int64_t row, Worker& worker) const {
    const int64_t width = size_[2];
    for (int64_t f = t.frame; f < t.end_frame; ++f) {
      const S* results = worker.results.data() + (f - t.frame) * width * p_.channels;
      const int64_t token = ((t.sample * size_[0] + f) * size_[1] + row) * width;
      projection()->run(worker.wide.read(results, width), worker.wide.stride(), token, width);
    }
  }

  void run_row(const Tile& t, int64_t row, Worker& worker, MarchJob<S> job) const {
    const Acc<S>* const weights = job.weights;
    Target<S> targets[kMostSlabs];
    for (int64_t s = 0; s < t.slabs; ++s) targets[s] = plan_.target(t.sample, t.slab + s);
    int64_t start = targets[0].offset(0, row, 0);  // of the row in the target, frame 0
    if (projection() != nullptr) {
      for (int64_t s = 0; s < t.slabs; ++s) {
        targets[s].frame_stride = targets[s].row_stride;
        targets[s].destination = worker.results.data() + s * L;
      }
      start = -t.frame * targets[0].frame_stride;
    }
    int64_t columns;
    for (int64_t w = 0; w < size_[2]; w += columns) {
      const Block<S> block = blocks_.at(w);
      columns = block.columns;
      const int64_t column = w * p_.stride[2] - plan_.columns.padding;
      // Slabs are innermost: the lines of a column that they write lie side by side.
      for (int64_t s = 0; s < t.slabs; s += job.slabs) {
        job.slabs = smaller(Blocks<S>::kSlabs, t.slabs - s);
        job.source = worker.ring.at(0) + s * worker.ring.slab_stride() + column * L;
        job.weights = weights + s * plan_.slab_weights;
        job.target = targets + s;
        job.offset = start + w * job.target->column_stride;
        const bool more = s + job.slabs < t.slabs;
        job.upcoming =
            job.offset + (more ? job.slabs * L : columns * job.target->column_stride - s * L);
        block.function(job);
      }
    }
    if (projection() != nullptr) project(t, row, worker);
  }

  const PassPlan<S>& plan_;
  const evit::DepthwiseConv3dProblem& p_;
  const int64_t* const size_;
  const int64_t* const strides_;  // of the source: sample, frame, row, column
  const Steps steps_;
  const Blocks<S> blocks_;
  const int64_t slots_;  // source rows that are held at a time
  int64_t group_ = 1, groups_ = 1;
  int64_t rows_ = 1, row_tiles_ = 1;
  int64_t frames_ = 1, time_tiles_ = 1;
  int64_t sources_ = 1;  // the most frames that a tile reads
  int64_t tasks_ = 0;
  bool shared_ = false;  // whether several tiles read the same weights
};

}  // namespace
