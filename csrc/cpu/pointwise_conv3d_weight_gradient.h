// The gradients of weight and bias of a pointwise convolution.
#pragma once

#include "evit/pointwise_conv3d.h"
#include "pointwise_conv3d_rows.h"
#include "pointwise_conv3d_tiles.h"

namespace {

constexpr int64_t kSplitTokens = 2048;  // of one partial sum
constexpr int64_t kMaxSplits = 16;
constexpr int64_t kChunk = 256;  // tokens that are read at a time

// The gradients of weight and bias: sums over all tokens, cut by the shape alone.
template <class S>
class WeightGradient {
 public:
  explicit WeightGradient(const evit::PointwiseConv3dProblem& p)
      : p_(p),
        depth_(p.in_channels / p.groups),
        rows_(p.out_channels / p.groups),
        width_(ceil_div(depth_, L) * L),
        elements_(p.out_channels * width_ + p.out_channels),
        splits_(larger(1, smaller(kMaxSplits, p.tokens / kSplitTokens))) {}

  int64_t workspace() const { return splits_ * elements_; }

  evit::Status run(const S* grad, const S* input, Acc<S>* partials, S* grad_weight,
                   S* grad_bias) const {
    // A task is a split and some rows of one group's result: enough tasks even for a few tokens.
    const int64_t group_parts = ceil_div(rows_, kRowsOfTask);
    const int64_t parts = p_.groups * group_parts;
    bool failed = false;
#pragma omp parallel num_threads(p_.num_threads) if (p_.num_threads > 1)
    {
      Rows<S> grads(grad, p_.out_channels, p_.out_channels, kChunk, false, rows_);
      Rows<S> inputs(input, p_.in_channels, p_.in_stride, kChunk, true, depth_);
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < splits_ * parts; ++task) {
        if (grads.ok() && inputs.ok())
          part(task / parts, task % parts / group_parts, task % group_parts * kRowsOfTask, grads,
               inputs, partials, grad_weight != nullptr, grad_bias != nullptr);
        else
          failed = true;
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < p_.out_channels; ++row)
        combine(row, partials, grad_weight, grad_bias);
    }
    return {failed ? kNoMemory : nullptr};
  }

 private:
  static constexpr int L = kLanes<S>;
  static constexpr int64_t kRowsOfTask = 64;
  static constexpr int kRows = kTokens >= 8 ? 8 : 4;  // of one register tile

  void part(int64_t split, int64_t group, int64_t first, Rows<S>& grads, Rows<S>& inputs,
            Acc<S>* partials, bool want_weight, bool want_bias) const {
    const int64_t last = group * rows_ + smaller(rows_, first + kRowsOfTask);
    first += group * rows_;
    Acc<S>* sums = partials + split * elements_;
    Acc<S>* bias = sums + p_.out_channels * width_;
    for (int64_t i = first * width_; i < last * width_; ++i) sums[i] = 0;
    for (int64_t i = first; i < last; ++i) bias[i] = 0;
    const int64_t end = (split + 1) * p_.tokens / splits_;
    for (int64_t token = split * p_.tokens / splits_; token < end; token += kChunk) {
      const int64_t count = smaller(kChunk, end - token);
      const Acc<S>* g = grads.at(token, count);
      if (want_bias) add_rows<Acc<S>>(g + first, grads.stride(), count, last - first, bias + first);
      if (!want_weight) continue;
      const Acc<S>* x = inputs.at(token, count) + group * depth_;
      int64_t row = first;
      for (; row + kRows <= last; row += kRows)
        columns<kRows>(g + row, grads.stride(), x, inputs.stride(), count, sums + row * width_);
      for (; row < last; ++row)
        columns<1>(g + row, grads.stride(), x, inputs.stride(), count, sums + row * width_);
    }
  }

  template <int M>
  void columns(const Acc<S>* g, int64_t g_stride, const Acc<S>* x, int64_t x_stride, int64_t count,
               Acc<S>* sums) const {
    int64_t c = 0;
    for (; c + 3 * L <= width_; c += 3 * L)
      outer_tile<Acc<S>, M, 3>(g, g_stride, x + c, x_stride, count, sums + c, width_);
    if (c + 2 * L <= width_) {
      outer_tile<Acc<S>, M, 2>(g, g_stride, x + c, x_stride, count, sums + c, width_);
      c += 2 * L;
    }
    if (c < width_) outer_tile<Acc<S>, M, 1>(g, g_stride, x + c, x_stride, count, sums + c, width_);
  }

  void combine(int64_t row, Acc<S>* partials, S* grad_weight, S* grad_bias) const {
    for (int64_t c = 0; grad_weight != nullptr && c < depth_; ++c) {
      Acc<S> sum = 0;
      for (int64_t split = 0; split < splits_; ++split)
        sum += partials[split * elements_ + row * width_ + c];
      store<1>(grad_weight + row * depth_ + c, Vector<Acc<S>, 1>{sum});
    }
    if (grad_bias == nullptr) return;
    Acc<S> sum = 0;
    for (int64_t split = 0; split < splits_; ++split)
      sum += partials[split * elements_ + p_.out_channels * width_ + row];
    store<1>(grad_bias + row, Vector<Acc<S>, 1>{sum});
  }

  const evit::PointwiseConv3dProblem& p_;
  const int64_t depth_;  // input channels of a group
  const int64_t rows_;   // output channels of a group
  const int64_t width_;  // depth in whole vectors
  const int64_t elements_;
  const int64_t splits_;
};

}  // namespace
