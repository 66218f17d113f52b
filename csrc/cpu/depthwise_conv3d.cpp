// Depthwise 3-D convolution on CPUs: cuts the work into tiles of a few slabs of channels, some rows
// and all frames; within a tile frames pass through a ring in cache (depthwise_conv3d_pack.h).
#include "evit/depthwise_conv3d.h"

#include "depthwise_conv3d_plan.h"
#include "depthwise_conv3d_rows.h"
#include "depthwise_conv3d_weight_gradient.h"
#include "dispatch.h"
#include "transpose.h"

namespace {

using evit::DType;
using evit::Status;
using Problem = evit::DepthwiseConv3dProblem;

// The weights of one slab as (plane, k_h, k_w, L) in the accumulation type; mirrored along k_w
// where asked.
template <class S>
void pack_weights(const Problem& p, const Planes& planes, const S* weight, bool mirrored,
                  int64_t slab, Acc<S>* packed) {
  constexpr int L = kLanes<S>;
  const int64_t kt = p.kernel[0], kw = p.kernel[2], plane = p.kernel[1] * kw, taps = kt * plane;
  const S* source = weight + slab * L * taps;
  const int64_t channels = smaller(L, p.channels - slab * L);
  const auto place = [&](int64_t tap) {
    return (mirrored ? tap + kw - 1 - 2 * (tap % kw) : tap) * L;
  };
  if (channels == L && taps >= L) {
    for (int64_t first = 0; first < taps; first += L) {
      const int64_t from = smaller(first, taps - L);
      Vector<Acc<S>, L> rows[L];
      EVIT_UNROLL
      for (int i = 0; i < L; ++i) rows[i] = load<L>(source + i * taps + from);
      transpose<Acc<S>, L>(rows);
      for (int i = 0; i < L; ++i) store<L>(packed + place(from + i), rows[i]);
    }
  } else {
    for (int lane = 0; lane < L; ++lane)
      for (int64_t tap = 0; tap < taps; ++tap)
        packed[place(tap) + lane] = lane < channels ? load<1>(source + lane * taps + tap)[0] : 0;
  }
  // Behind the planes of single taps those that are sums of them.
  for (int i = static_cast<int>(kt); i < planes.count(); ++i)
    for (int64_t j = 0; j < plane; ++j) {
      Vector<Acc<S>, L> sum = {};
      for (int t = planes.first(i); t <= planes.last(i); ++t)
        sum += load<L>(packed + (t * plane + j) * L);
      store<L>(packed + (i * plane + j) * L, sum);
    }
}

// What a pass reads and writes; `transposed` is the data gradient.
template <class S>
struct Pass {
  const S* source;
  int64_t source_strides[4];
  const S* weight;
  const S* bias;
  const S* multiplier;
  Activation activation;
  S* destination;
  bool transposed;
};

template <class S>
class Convolution {
 public:
  Convolution(const Problem& p, const Pass<S>& pass)
      : p_(p),
        pass_(pass),
        size_(pass.transposed ? p.in : p.out),
        source_size_(pass.transposed ? p.out : p.in),
        columns_(columns_of<S>(p.kernel[2], p.stride[2], p.dilation[2], p.padding[2],
                               pass.transposed, source_size_[2], size_[2])),
        time_(p, 0, pass.transposed),
        height_(p, 1, pass.transposed),
        planes_(p, time_, size_[0]),
        slots_(time_.widest(size_[0], 1)),
        slabs_(ceil_div(p.channels, L)),
        slab_weights_(planes_.count() * p.kernel[1] * p.kernel[2] * L),
        weights_(slabs_ * slab_weights_),
        bias_(slabs_ * L) {}

  Status run() {
    if (!time_.ok() || !height_.ok() || !weights_.ok() || !bias_.ok()) return {kNoMemory};
    for (int64_t c = 0; pass_.bias != nullptr && c < slabs_ * L; ++c)
      bias_[c] = c < p_.channels ? load<1>(pass_.bias + c)[0] : 0;

    const int64_t group = smaller(kGroup, slabs_);
    const int64_t groups = ceil_div(slabs_, group);
    const int64_t row_bytes = (columns_.left + source_size_[2] + columns_.right) * group * L *
                              static_cast<int64_t>(sizeof(Acc<S>));
    rows_ = tile_rows(height_, size_[1], slots_, row_bytes);
    const int64_t row_tiles = ceil_div(size_[1], rows_);
    // Time runs inside a tile, so that each frame is unpacked once; it is cut only to occupy
    // threads.
    const int64_t tiles = p_.batch * row_tiles * groups;
    const int64_t time_tiles = smaller(size_[0], ceil_div(3 * p_.num_threads, larger(1, tiles)));
    frames_ = ceil_div(size_[0], time_tiles);
    const int64_t tasks = tiles * time_tiles;
    const int64_t source_rows = height_.widest(size_[1], rows_);
    bool failed = false;

#pragma omp parallel num_threads(p_.num_threads) if (p_.num_threads > 1)
    {
      FrameRing<S> ring(slots_, source_rows, source_size_[2], columns_.left, columns_.right, group);
      // First the frames that a destination frame reads, then their rows.
      Buffer<Tap<Acc<S>>> taps(time_.most_links(size_[0]) *
                               (1 + rows_ * height_.most_links(size_[1])));
      Buffer<TapList<Acc<S>>> lists(rows_);
      const bool ready = ring.ok() && taps.ok() && lists.ok();
#pragma omp for schedule(static)
      for (int64_t slab = 0; slab < slabs_; ++slab)
        pack_weights(p_, planes_, pass_.weight, columns_.mirrored, slab,
                     weights_.data() + slab * slab_weights_);
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
    const int64_t rows = smaller(rows_, size_[1] - h0);
    const int64_t channels = smaller(group * L, p_.channels - slab * L);
    int64_t first, last;
    height_.sources(h0, h0 + rows, &first, &last);
    ring.start(pass_.source + n * pass_.source_strides[0] + slab * L, pass_.source_strides, first,
               larger(0, last - first + 1), channels);

    FrameJob<S> job = {};
    job.lists = lists;
    job.rows = rows;
    job.width = size_[2];
    job.source_width = source_size_[2];
    job.kernel = p_.kernel[2];
    job.stride = p_.stride[2];
    job.dilation = p_.dilation[2];
    job.padding = columns_.padding;
    job.activation = pass_.activation;
    job.column_stride = p_.channels;
    job.row_stride = size_[2] * p_.channels;
    const Acc<S>* weights = weights_.data() + slab * slab_weights_;
    const int64_t row_weights = p_.kernel[2] * L;

    for (int64_t t = t0; t < smaller(t0 + frames_, size_[0]); ++t) {
      Tap<Acc<S>>* next = taps;
      for (const Link* f = time_.begin(t); f != time_.end(t); ++f)
        *next++ = {ring.frame(f->source), weights + planes_.of(*f) * p_.kernel[1] * row_weights};
      const TapList<Acc<S>> frames = {taps, static_cast<int>(next - taps)};
      for (int64_t h = 0; h < rows; ++h) {
        lists[h].taps = next;
        for (int f = 0; f < frames.count; ++f)
          for (const Link* r = height_.begin(h0 + h); r != height_.end(h0 + h); ++r)
            *next++ = {frames.taps[f].row + (r->source - first) * ring.row_stride(),
                       frames.taps[f].weight + r->first * row_weights};
        lists[h].count = static_cast<int>(next - lists[h].taps);
      }
      // A frame far out in the padding reads no source at all.
      const bool more =
          t + 1 < smaller(t0 + frames_, size_[0]) && time_.begin(t + 1) != time_.end(t + 1);
      const int64_t upcoming = more ? time_.end(t + 1)[-1].source : -1;
      job.next_row_stride = pass_.source_strides[2];
      job.next_column_stride = pass_.source_strides[3];
      const bool fetch = upcoming >= 0 && !ring.holds(upcoming);
      const int64_t frame = ((n * size_[0] + t) * size_[1] + h0) * job.row_stride;
      for (int64_t c = 0; c < channels; c += L) {
        const int64_t offset = frame + slab * L + c;
        job.source_offset = c / L * ring.slab_stride();
        job.weight_offset = c / L * slab_weights_;
        job.bias = pass_.bias != nullptr ? bias_.data() + slab * L + c : nullptr;
        job.multiplier = pass_.multiplier != nullptr ? pass_.multiplier + offset : nullptr;
        job.destination = pass_.destination + offset;
        job.lanes = static_cast<int>(smaller(L, channels - c));
        job.next = fetch ? ring.source(upcoming) + c : nullptr;
        columns_.function(job);
      }
    }
  }

  const Problem& p_;
  const Pass<S>& pass_;
  const int64_t* size_;
  const int64_t* source_size_;
  const Columns<S> columns_;
  const Plan time_;
  const Plan height_;
  const Planes planes_;
  const int64_t slots_;
  const int64_t slabs_;
  const int64_t slab_weights_;
  Buffer<Acc<S>> weights_;
  Buffer<Acc<S>> bias_;
  int64_t rows_ = 1;
  int64_t frames_ = 1;
};

template <class S>
Status forward_as(const Problem& p, const void* input, const void* weight, const void* bias,
                  const void* multiplier, void* output) {
  Pass<S> pass = {};
  pass.source = static_cast<const S*>(input);
  for (int i = 0; i < 4; ++i) pass.source_strides[i] = p.in_strides[i];
  pass.weight = static_cast<const S*>(weight);
  pass.bias = static_cast<const S*>(bias);
  pass.multiplier = static_cast<const S*>(multiplier);
  pass.activation = p.activation;
  pass.destination = static_cast<S*>(output);
  return Convolution<S>(p, pass).run();
}

template <class S>
Status backward_as(const Problem& p, const void* grad_output, const void* input, const void* weight,
                   const void* bias, void* scratch, void* partials, void* grad_input,
                   void* grad_weight, void* grad_bias) {
  const S* grad = static_cast<const S*>(grad_output);
  if (p.activation != Activation::kNone) {
    // The activation's input is computed again rather than kept: a convolution costs about as much
    // as reading it back would, and the memory is the caller's.
    const Status status = forward_as<S>(p, input, weight, bias, grad_output, scratch);
    if (!status.ok()) return status;
    grad = static_cast<const S*>(scratch);
  }
  if (grad_input != nullptr) {
    Pass<S> pass = {};
    pass.source = grad;
    dense_strides(p.out, p.channels, pass.source_strides);
    pass.weight = static_cast<const S*>(weight);
    pass.activation = Activation::kNone;
    pass.destination = static_cast<S*>(grad_input);
    pass.transposed = true;
    const Status status = Convolution<S>(p, pass).run();
    if (!status.ok()) return status;
  }
  if (grad_weight == nullptr && grad_bias == nullptr) return {};
  return WeightGradient<S>(p).run(grad, static_cast<const S*>(input),
                                  static_cast<Acc<S>*>(partials), static_cast<S*>(grad_weight),
                                  static_cast<S*>(grad_bias));
}

}  // namespace

namespace evit::cpu::EVIT_ISA {

Status depthwise_conv3d_forward(const Problem& p, const void* input, const void* weight,
                                const void* bias, void* output) {
  return with_storage(p.dtype, [&](auto s) {
    return forward_as<typename decltype(s)::type>(p, input, weight, bias, nullptr, output);
  });
}

int64_t depthwise_conv3d_workspace(const Problem& p) {
  return with_storage(
      p.dtype, [&](auto s) { return WeightGradient<typename decltype(s)::type>(p).workspace(); });
}

Status depthwise_conv3d_backward(const Problem& p, const void* grad_output, const void* input,
                                 const void* weight, const void* bias, void* scratch,
                                 void* partials, void* grad_input, void* grad_weight,
                                 void* grad_bias) {
  return with_storage(p.dtype, [&](auto s) {
    return backward_as<typename decltype(s)::type>(p, grad_output, input, weight, bias, scratch,
                                                   partials, grad_input, grad_weight, grad_bias);
  });
}

}  // namespace evit::cpu::EVIT_ISA

EVIT_ENTRY(Status, depthwise_conv3d_forward,
           (const DepthwiseConv3dProblem& problem, const void* input, const void* weight,
            const void* bias, void* output),
           (problem, input, weight, bias, output))

EVIT_ENTRY(int64_t, depthwise_conv3d_workspace, (const DepthwiseConv3dProblem& problem), (problem))

EVIT_ENTRY(Status, depthwise_conv3d_backward,
           (const DepthwiseConv3dProblem& problem, const void* grad_output, const void* input,
            const void* weight, const void* bias, void* scratch, void* partials, void* grad_input,
            void* grad_weight, void* grad_bias),
           (problem, grad_output, input, weight, bias, scratch, partials, grad_input, grad_weight,
            grad_bias))
