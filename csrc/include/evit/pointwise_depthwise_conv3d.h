// A pointwise convolution with its activation, then a depthwise one: what lies between them is
// never stored as a whole. Tensors are channels-last, (N, T, H, W, C).
#pragma once

#include "evit/depthwise_conv3d.h"

namespace evit {

struct PointwiseDepthwiseConv3dProblem {
  DepthwiseConv3dProblem depthwise;  // but in_strides are those of the input, before the pointwise
  Activation activation;             // after the pointwise convolution
  int64_t in_channels;
};

namespace cpu {

// Whether there are kernels for a problem on this CPU.
bool pointwise_depthwise_conv3d_serves(const PointwiseDepthwiseConv3dProblem& problem);

// output (N, T', H', W', C) dense. pointwise_weight (C, in_channels) and weight (C, k_t, k_h, k_w)
// dense. pointwise_bias and bias (C) or null.
Status pointwise_depthwise_conv3d_forward(const PointwiseDepthwiseConv3dProblem& problem,
                                          const void* input, const void* pointwise_weight,
                                          const void* pointwise_bias, const void* weight,
                                          const void* bias, void* output);

}  // namespace cpu
}  // namespace evit
