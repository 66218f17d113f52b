// The gradients of weight and bias of a pointwise convolution.
#pragma once

#include "evit/pointwise_conv3d.h"
#include "pointwise_conv3d_ahead.h"
#include "pointwise_conv3d_rows.h"
#include "pointwise_conv3d_tiles.h"

namespace {

constexpr int64_t kSplitTokens = 2048;  // of one partial sum
constexpr int64_t kMaxSplits = 16;
constexpr int64_t kChunk = kTerms;  // tokens that are read at a time

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
        splits_(larger(1, smaller(kMaxSplits, p.tokens / kSplitTokens))),
        far_(p.tokens * (p.in_channels + p.out_channels) * static_cast<int64_t>(sizeof(S)) > kFar) {
  }

  int64_t workspace() const { return splits_ * elements_; }

  evit::Status run(const S* grad, const S* input, Acc<S>* partials, S* grad_weight,
                   S* grad_bias) const {
    // A task is a split and some rows of one group's result: enough tasks even for a few tokens.
    const int64_t group_parts = ceil_div(rows_, kRowsOfTask);
    const int64_t parts = p_.groups * group_parts;
    bool failed = false;
#pragma omp parallel num_threads(p_.num_threads) if (p_.num_threads > 1)
    {
      Buffer<Acc<S>> grads(kChunk * kRowsOfTask);
      Buffer<Acc<S>> inputs(kChunk * kPanelColumns);
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < splits_ * parts; ++task) {
        if (grads.ok() && inputs.ok())
          part(task / parts, task % parts / group_parts, task % group_parts * kRowsOfTask, grad,
               input, grads.data(), inputs.data(), partials, grad_weight != nullptr,
               grad_bias != nullptr);
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
  static constexpr int64_t kPanelVectors = 3;
  static constexpr int64_t kPanelColumns = kPanelVectors * L;
  // Bytes of both tensors from which on they are fetched ahead: caches may hold smaller ones, and
  // then it takes up to 1.08 of the time.
  static constexpr int64_t kFar = 2 << 20;
  // Rows so many bytes apart evict each other from the first-level cache.
  static constexpr int64_t kFarApart = 2048;

  void part(int64_t split, int64_t group, int64_t first, const S* grad, const S* input,
            Acc<S>* grads, Acc<S>* inputs, Acc<S>* partials, bool want_weight,
            bool want_bias) const {
    const int64_t rows = smaller(kRowsOfTask, rows_ - first);
    first += group * rows_;
    Acc<S>* sums = partials + split * elements_;
    Acc<S>* bias = sums + p_.out_channels * width_ + first;
    sums += first * width_;
    for (int64_t i = 0; i < rows * width_; ++i) sums[i] = 0;
    for (int64_t i = 0; i < rows; ++i) bias[i] = 0;
    // Panels of about one size: of one vector alone, a processor adds fewer than it could.
    const int64_t vectors = width_ / L, panels = ceil_div(vectors, kPanelVectors);
    const int64_t turns = panels * larger(1, rows / kRows);  // at fetching ahead
    const int64_t end = (split + 1) * p_.tokens / splits_;
    for (int64_t token = split * p_.tokens / splits_; token < end; token += kChunk) {
      const int64_t count = smaller(kChunk, end - token);
      const Block g = block(grad + token * p_.out_channels + first, p_.out_channels, count, rows,
                            grads, kRowsOfTask);
      if (want_bias) add_rows<Acc<S>>(g.rows, g.stride, count, rows, bias);
      if (!want_weight) continue;
      const int64_t next = token + count, more = far_ ? smaller(kChunk, end - next) : 0;
      RowsAhead ahead[] = {
          {grad + next * p_.out_channels + first, p_.out_channels, rows, more, turns},
          {input + next * p_.in_stride + group * depth_, p_.in_stride, depth_, more, turns}};
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t c = panel * vectors / panels * L;
        const int64_t columns = smaller((panel + 1) * vectors / panels * L, depth_) - c;
        const Block x = block(input + token * p_.in_stride + group * depth_ + c, p_.in_stride,
                              count, columns, inputs, kPanelColumns);
        if (columns > 2 * L)
          add_panel<3>(g, x, count, rows, sums + c, ahead);
        else if (columns > L)
          add_panel<2>(g, x, count, rows, sums + c, ahead);
        else
          add_panel<1>(g, x, count, rows, sums + c, ahead);
      }
    }
  }

  // Columns of some tokens, of whole vectors.
  struct Block {
    const Acc<S>* rows;
    int64_t stride;
  };

  // The tensor itself where it will do, else a copy.
  Block block(const S* from, int64_t stride, int64_t count, int64_t columns, Acc<S>* copy,
              int64_t copy_stride) const {
    if constexpr (!Rows<S>::kCopies) {
      const bool near = stride * static_cast<int64_t>(sizeof(S)) < kFarApart;
      if (near && columns % L == 0) return {from, stride};
    }
    pack_rows(from, stride, count, columns, copy, copy_stride);
    return {copy, copy_stride};
  }

  // Adds the products of `rows` columns of g and N vectors of x.
  template <int N>
  void add_panel(const Block& g, const Block& x, int64_t count, int64_t rows, Acc<S>* sums,
                 RowsAhead (&ahead)[2]) const {
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) {
      for (RowsAhead& tensor : ahead) tensor.fetch();
      outer_tile<Acc<S>, kRows, N>(g.rows + row, g.stride, x.rows, x.stride, count,
                                   sums + row * width_, width_);
    }
    for (; row < rows; ++row)
      outer_tile<Acc<S>, 1, N>(g.rows + row, g.stride, x.rows, x.stride, count, sums + row * width_,
                               width_);
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
  const bool far_;
};

}  // namespace
