// A pass of a depthwise convolution over its input (forward) or over the gradient of its output
// (data gradient), and what is worked out about it once a call.
#pragma once

#include "depthwise_conv3d_expansion.h"
#include "depthwise_conv3d_plan.h"
#include "depthwise_conv3d_projection.h"
#include "depthwise_conv3d_rows.h"

namespace {

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
  const Expansion<S>* expansion;    // of the source, or null: the source is read as it is
  const Projection<S>* projection;  // takes the results, or null: they go to the destination
};

template <class S>
class PassPlan {
 public:
  static constexpr int L = kLanes<S>;

  PassPlan(const evit::DepthwiseConv3dProblem& p, const Pass<S>& pass)
      : problem(p),
        pass(pass),
        size(pass.transposed ? p.in : p.out),
        source_size(pass.transposed ? p.out : p.in),
        columns(columns_of<S>(p.kernel[2], p.stride[2], p.dilation[2], p.padding[2],
                              pass.transposed, source_size[2], size[2])),
        time(p, 0, pass.transposed),
        height(p, 1, pass.transposed),
        planes(p, time, size[0]),
        slabs(ceil_div(p.channels, L)),
        slab_weights(planes.count() * p.kernel[1] * p.kernel[2] * L),
        bias_(slabs * L) {
    for (int64_t c = 0; bias_.ok() && pass.bias != nullptr && c < slabs * L; ++c)
      bias_[c] = c < p.channels ? load<1>(pass.bias + c)[0] : 0;
  }

  bool ok() const { return time.ok() && height.ok() && bias_.ok(); }

  // Of all slabs from `slab` on, or null.
  const Acc<S>* bias(int64_t slab) const {
    return pass.bias != nullptr ? bias_.data() + slab * L : nullptr;
  }

  // Where the sums of a slab's channels [c, c + L) go, from frame 0 and row 0 of a sample on.
  Target<S> target(int64_t sample, int64_t slab) const {
    Target<S> t = {};
    t.column_stride = problem.channels;
    t.row_stride = size[2] * problem.channels;
    t.frame_stride = size[1] * t.row_stride;
    const int64_t offset = sample * size[0] * t.frame_stride + slab * L;
    t.bias = bias(slab);
    t.multiplier = pass.multiplier != nullptr ? pass.multiplier + offset : nullptr;
    t.activation = pass.activation;
    t.destination = pass.destination + offset;
    t.lanes = static_cast<int>(smaller(L, problem.channels - slab * L));
    return t;
  }

  // The first channel of a slab (of an expansion: of all that it reads), frame 0, row 0 and column
  // 0 of a sample.
  const S* source(int64_t sample, int64_t slab) const {
    const int64_t channel = pass.expansion != nullptr ? 0 : slab * L;
    return pass.source + sample * pass.source_strides[0] + channel;
  }

  const evit::DepthwiseConv3dProblem& problem;
  const Pass<S>& pass;
  const int64_t* const size;
  const int64_t* const source_size;
  const Columns<S> columns;
  const Plan time;
  const Plan height;
  const Planes planes;
  const int64_t slabs;
  const int64_t slab_weights;  // elements

 private:
  Buffer<Acc<S>> bias_;
};

}  // namespace
