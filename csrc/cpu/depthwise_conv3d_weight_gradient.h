// The gradients of weight and bias of a depthwise convolution: partial sums over tiles, cut by the
// shape alone and added in their order.
#pragma once

#include "depthwise_conv3d_plan.h"
#include "depthwise_conv3d_rows.h"
#include "depthwise_conv3d_weight_rows.h"
#include "evit/depthwise_conv3d.h"

namespace {

constexpr int64_t kMaxSplits = 32;
constexpr int64_t kMaxPartialBytes = 8 << 20;

template <class S>
class WeightGradient {
 public:
  // Everything here follows from the shape: the split of the sum, and so its bits, never from
  // threads.
  explicit WeightGradient(const evit::DepthwiseConv3dProblem& p)
      : p_(p),
        columns_(columns_of<S>(p.kernel[2], p.stride[2], p.dilation[2], p.padding[2], false,
                               p.in[2], p.out[2])),
        time_(p, 0, false),
        height_(p, 1, false),
        planes_(p, time_, p.out[0]),
        slots_(time_.widest(p.out[0], 1)),
        slabs_(ceil_div(p.channels, L)),
        group_(smaller(kGroup, slabs_)),
        plane_taps_(p.kernel[1] * p.kernel[2]),
        taps_(planes_.count() * plane_taps_),
        elements_((taps_ + 1) * slabs_ * L) {
    const int64_t row_bytes = (columns_.left + p.in[2] + columns_.right) * group_ * L *
                              static_cast<int64_t>(sizeof(Acc<S>));
    rows_ = tile_rows(height_, p.out[1], slots_, row_bytes);
    row_tiles_ = ceil_div(p.out[1], rows_);
    const int64_t affordable =
        larger(2, kMaxPartialBytes / (elements_ * static_cast<int64_t>(sizeof(Acc<S>))));
    // Few slabs leave little to do in parallel: then more of the sum is split.
    const int64_t wanted = ceil_div(kMaxSplits, ceil_div(slabs_, group_));
    splits_ = larger(1, smaller(smaller(wanted, affordable), p.batch * row_tiles_));
  }

  int64_t workspace() const { return splits_ * elements_; }

  evit::Status run(const S* grad, const S* input, Acc<S>* partials, S* grad_weight, S* grad_bias) {
    if (!time_.ok() || !height_.ok()) return {kNoMemory};
    const int64_t source_rows = height_.widest(p_.out[1], rows_);
    const int64_t groups = ceil_div(slabs_, group_);
    bool failed = false;
#pragma omp parallel num_threads(p_.num_threads) if (p_.num_threads > 1)
    {
      FrameRing<S> grads(1, rows_, p_.out[2], 0, 0, group_);
      FrameRing<S> inputs(slots_, source_rows, p_.in[2], columns_.left, columns_.right, group_);
      Buffer<const Acc<S>*> rows(rows_ * (p_.kernel[1] + 1));
      const bool ready = grads.ok() && inputs.ok() && rows.ok();
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < splits_ * groups; ++task) {
        if (ready)
          part(task / groups, task % groups * group_, grad, input, partials, grad_weight != nullptr,
               grad_bias != nullptr, grads, inputs, rows.data());
        else
          failed = true;
      }
#pragma omp for schedule(static)
      for (int64_t slab = 0; slab < slabs_; ++slab)
        if (!failed) combine(slab, partials, grad_weight, grad_bias);
    }
    return {failed ? kNoMemory : nullptr};
  }

 private:
  static constexpr int L = kLanes<S>;
  using V = Vector<Acc<S>, L>;

  Acc<S>* partial(Acc<S>* partials, int64_t split, int64_t slab) const {
    return partials + split * elements_ + slab * (taps_ + 1) * L;
  }

  // The sums over one split's tiles, one group: per slab (plane, k_h, k_w, L), then the bias (L).
  void part(int64_t split, int64_t slab, const S* grad, const S* input, Acc<S>* partials,
            bool want_weight, bool want_bias, FrameRing<S>& grads, FrameRing<S>& inputs,
            const Acc<S>** rows) const {
    Acc<S>* sums = partial(partials, split, slab);
    const int64_t channels = smaller(group_ * L, p_.channels - slab * L);
    const int64_t slab_sums = (taps_ + 1) * L;
    for (int64_t i = 0; i < ceil_div(channels, L) * slab_sums; ++i) sums[i] = 0;
    int64_t grad_strides[4];
    dense_strides(p_.out, p_.channels, grad_strides);
    WeightJob<Acc<S>> job = {};
    job.grads = rows;
    job.inputs = rows + rows_;
    job.kernel_rows = p_.kernel[1];
    job.width = p_.out[2];
    job.part_rows = larger(1, kProducts / larger(1, job.width));
    job.source_width = p_.in[2];
    job.kernel = p_.kernel[2];
    job.stride = p_.stride[2];
    job.dilation = p_.dilation[2];
    job.padding = p_.padding[2];
    const WeightFunction<Acc<S>> frame =
        weight_function<S>(p_.kernel[2], p_.stride[2], p_.dilation[2]);

    const int64_t tiles = p_.batch * row_tiles_;
    for (int64_t tile = split * tiles / splits_; tile < (split + 1) * tiles / splits_; ++tile) {
      const int64_t n = tile / row_tiles_;
      const int64_t h0 = tile % row_tiles_ * rows_;
      job.rows = smaller(rows_, p_.out[1] - h0);
      int64_t first, last;
      height_.sources(h0, h0 + job.rows, &first, &last);
      grads.start(grad + n * grad_strides[0] + slab * L, grad_strides, h0, job.rows, channels);
      inputs.start(input + n * p_.in_strides[0] + slab * L, p_.in_strides, first,
                   larger(0, last - first + 1), channels);
      for (int64_t t = 0; t < p_.out[0]; ++t) {
        const Acc<S>* frame_of_grads = grads.frame(t);
        for (int64_t h = 0; h < job.rows; ++h) rows[h] = frame_of_grads + h * grads.row_stride();
        for (int64_t c = 0; want_bias && c < channels; c += L) {
          job.grad_offset = c / L * grads.slab_stride();
          add_bias(job, sums + c / L * slab_sums + taps_ * L);
        }
        for (const Link* f = time_.begin(t); want_weight && f != time_.end(t); ++f) {
          const Acc<S>* frame_of_inputs = inputs.frame(f->source);
          for (int64_t i = 0; i < job.rows * p_.kernel[1]; ++i) rows[rows_ + i] = nullptr;
          for (int64_t h = 0; h < job.rows; ++h)
            for (const Link* r = height_.begin(h0 + h); r != height_.end(h0 + h); ++r)
              rows[rows_ + h * p_.kernel[1] + r->first] =
                  frame_of_inputs + (r->source - first) * inputs.row_stride();
          for (int64_t c = 0; c < channels; c += L) {
            job.grad_offset = c / L * grads.slab_stride();
            job.input_offset = c / L * inputs.slab_stride();
            job.partial = sums + c / L * slab_sums + planes_.of(*f) * plane_taps_ * L;
            frame(job);
          }
        }
      }
    }
  }

  static void add_bias(const WeightJob<Acc<S>>& job, Acc<S>* to) {
    V sums[4] = {};
    for (int64_t h = 0; h < job.rows; ++h)
      for (int64_t w = 0; w < job.width; ++w)
        sums[w & 3] += load<L>(job.grads[h] + job.grad_offset + w * L);
    store<L>(to, load<L>(to) + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
  }

  // Splits are added in their order. The sum of a merged plane belongs to each of its taps.
  void combine(int64_t slab, Acc<S>* partials, S* grad_weight, S* grad_bias) const {
    Acc<S>* sums = partial(partials, 0, slab);
    for (int64_t split = 1; split < splits_; ++split) {
      const Acc<S>* more = partial(partials, split, slab);
      for (int64_t i = 0; i < (taps_ + 1) * L; ++i) sums[i] += more[i];
    }
    const int64_t channels = smaller(L, p_.channels - slab * L);
    // One vector of sums to its channels, which lie `stride` apart.
    const auto spread = [&](V sum, S* to, int64_t stride) {
      for (int64_t lane = 0; lane < channels; ++lane)
        store<1>(to + lane * stride, Vector<Acc<S>, 1>{sum[lane]});
    };
    if (grad_bias != nullptr) spread(load<L>(sums + taps_ * L), grad_bias + slab * L, 1);
    if (grad_weight == nullptr) return;
    const int64_t weights = p_.kernel[0] * plane_taps_;
    for (int64_t t = 0; t < p_.kernel[0]; ++t)
      for (int64_t tap = 0; tap < plane_taps_; ++tap) {
        V sum = {};
        for (int plane = 0; plane < planes_.count(); ++plane)
          if (planes_.first(plane) <= t && t <= planes_.last(plane))
            sum += load<L>(sums + (plane * plane_taps_ + tap) * L);
        spread(sum, grad_weight + slab * L * weights + t * plane_taps_ + tap, weights);
      }
  }

  const evit::DepthwiseConv3dProblem& p_;
  const Columns<S> columns_;
  const Plan time_;
  const Plan height_;
  const Planes planes_;
  const int64_t slots_;
  const int64_t slabs_;
  const int64_t group_;
  const int64_t plane_taps_;
  const int64_t taps_;
  const int64_t elements_;
  int64_t rows_ = 1;
  int64_t row_tiles_ = 1;
  int64_t splits_ = 1;
};

}  // namespace
