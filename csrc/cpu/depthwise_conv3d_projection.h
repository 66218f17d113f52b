// What follows a depthwise convolution row by row: a pointwise convolution that reads its rows from
// the cache into which they have just been written.
#pragma once

#include "pointwise_conv3d_product.h"
#include "pointwise_conv3d_rows.h"

namespace {

template <class S>
class Projection {
 public:
  // From `depth` to `width` channels; residual and output are dense rows of `width` channels.
  Projection(const S* weight, const S* bias, const S* residual, S* output, int64_t depth,
             int64_t width, int32_t num_threads)
      : product_(product(weight, bias, residual, output, depth, width)), panels_(product_) {
    if (!ok()) return;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
    panels_.pack();
  }

  bool ok() const { return panels_.ok(); }

  // Writes the tokens [token, token + count) of the output from rows `stride` elements apart.
  void run(const Acc<S>* rows, int64_t stride, int64_t token, int64_t count) const {
    panels_.multiply(rows, stride, token, count, 0, panels_.count());
  }

 private:
  static Product<S> product(const S* weight, const S* bias, const S* residual, S* output,
                            int64_t depth, int64_t width) {
    Product<S> p = {};
    p.groups = 1;
    p.depth = depth;
    p.width = width;
    p.weight = weight;
    p.weight_row = depth;
    p.weight_column = 1;
    p.bias = bias;
    p.residual = residual;
    p.activation = Activation::kNone;
    p.destination = output;
    return p;
  }

  const Product<S> product_;
  Panels<S> panels_;
};

}  // namespace
