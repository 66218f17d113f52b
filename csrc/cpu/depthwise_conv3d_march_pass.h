// A pass of a depthwise convolution row by row, all frames of a tile at once, for kernels of 3 x 3
// x 3 and 5 x 5 x 5 taps: the source rows that one row of destinations reads stay unpacked in
// cache.
#pragma once

#include "depthwise_conv3d_march.h"
#include "depthwise_conv3d_pass.h"
#include "depthwise_conv3d_weights.h"

namespace {

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
          narrow(nullptr, m.depth(), m.strides_[3], m.depth() > 0 ? m.plan_.source_size[2] : 0,
                 false, m.depth()) {}

    bool ok() const { return steps.ok() && weights.ok() && held.ok() && ring.ok() && narrow.ok(); }

    Buffer<Step> steps;
    Buffer<Acc<S>> weights;
    Buffer<int64_t> held;  // source row of each slot
    UnpackedRows<S> ring;  // (frame, slot)
    Rows<S> narrow;        // of an expansion
  };

  const Expansion<S>* expansion() const { return plan_.pass.expansion; }

  // Channels of the source where it is expanded, else 0.
  int64_t depth() const { return expansion() != nullptr ? expansion()->depth() : 0; }

  int64_t sources_of(int64_t frames) const {
    return smaller(plan_.source_size[0], frames + p_.kernel[0] - 1);
  }

  // From shapes alone, but for the number of rows, which changes no result.
  void choose_tiles() {
    const int64_t columns = plan_.columns.left + plan_.source_size[2] + plan_.columns.right;
    group_ = smaller(kGroup, plan_.slabs);
    frames_ = size_[0];
    const auto too_large = [&] {
      const int64_t rows = slots_ * sources_of(frames_) * group_;
      return rows * columns * L * static_cast<int64_t>(sizeof(Acc<S>)) > kRingBytes;
    };
    while (frames_ > 8 && too_large()) frames_ = ceil_div(frames_, 2);
    while (group_ > 1 && too_large()) group_ /= 2;
    while (frames_ > 1 && too_large()) frames_ = ceil_div(frames_, 2);
    sources_ = sources_of(frames_);
    groups_ = ceil_div(plan_.slabs, group_);
    time_tiles_ = ceil_div(size_[0], frames_);
    const int64_t bands = larger(1, p_.batch * time_tiles_ * groups_);
    rows_ = ceil_div(size_[1], smaller(size_[1], ceil_div(4 * p_.num_threads, bands)));
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
    job.source_frame_stride = slots_ * worker.ring.row_stride();
    job.plane_weights = p_.kernel[1] * p_.kernel[2] * L;
    if (shared_) {
      job.weights = weights + t.slab * plan_.slab_weights;
    } else {
      for (int64_t s = 0; s < t.slabs; ++s) pack(t.slab + s, s, worker.weights.data());
      job.weights = worker.weights.data();
    }
    for (int64_t i = 0; i < slots_; ++i) worker.held[i] = -1;

    const int64_t turns = larger(1, blocks_.count() * t.slabs * t.sources);
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
      if (row + 1 < t.end_row)
        next = ahead(t, row + 1, seen, turns);
      else if (upcoming.slabs > 0)
        next = ahead(upcoming, upcoming.row, -1, turns);
      job.ahead = &next;
      run_row(t, row, worker, job);
    }
  }

  void unpack(const Tile& t, int64_t row, int64_t slot, Worker& worker) const {
    worker.held[slot] = row;
    if (expansion() != nullptr) {
      const int64_t width = plan_.source_size[2];
      for (int64_t f = 0; f < t.sources; ++f)
        expansion()->expand(worker.narrow.read(source(t, row) + f * strides_[1], width),
                            worker.narrow.stride(), width, t.slab, t.slabs,
                            worker.ring.at(f * slots_ + slot), worker.ring.slab_stride());
      return;
    }
    for (int64_t f = 0; f < t.sources; ++f)
      worker.ring.copy(f * slots_ + slot, source(t, row) + f * strides_[1], strides_[3],
                       channels(t));
  }

  void run_row(const Tile& t, int64_t row, const Worker& worker, MarchJob<S> job) const {
    const Acc<S>* const weights = job.weights;
    Target<S> targets[kGroup];
    for (int64_t s = 0; s < t.slabs; ++s) targets[s] = plan_.target(t.sample, t.slab + s);
    int64_t columns;
    for (int64_t w = 0; w < size_[2]; w += columns) {
      const Block<S> block = blocks_.at(w);
      columns = block.columns;
      const int64_t column = w * p_.stride[2] - plan_.columns.padding;
      // Slabs are innermost: the lines of a column that they write lie side by side.
      for (int64_t s = 0; s < t.slabs; ++s) {
        job.source = worker.ring.at(0) + s * worker.ring.slab_stride() + column * L;
        job.weights = weights + s * plan_.slab_weights;
        job.target = targets[s];
        job.offset = job.target.offset(0, row, w);
        const bool more = s + 1 < t.slabs;
        job.upcoming = more ? job.offset + L : job.target.offset(0, row, w + columns) - s * L;
        block.function(job);
      }
    }
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
