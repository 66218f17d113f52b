// A depthwise convolution with pointwise ones around it, either of which may be absent: what lies
// between them is never stored as a whole. Tensors are channels-last, (N, T, H, W, C).
#pragma once

#include "evit/depthwise_conv3d.h"

namespace evit {

struct PointwiseDepthwiseConv3dProblem {
  DepthwiseConv3dProblem depthwise;  // but in_strides are those of the input, before the pointwise
  Activation activation;             // after the first pointwise convolution
  int64_t in_channels;               // of the first pointwise convolution, or 0: there is none
  int64_t out_channels;              // of the last pointwise convolution, or 0: there is none
};

// Parameters are dense, biases may be null: pointwise_weight (C, in_channels), weight (C, k_t, k_h,
// k_w), project_weight (out_channels, C). residual, like the output, or null: added at the end
// where there is a last pointwise convolution.
struct PointwiseDepthwiseConv3dTensors {
  const void* input;
  const void* pointwise_weight;
  const void* pointwise_bias;
  const void* weight;
  const void* bias;
  const void* project_weight;
  const void* project_bias;
  const void* residual;
  void* output;  // (N, T', H', W', C) or, of the last pointwise convolution, out_channels; dense
};

namespace cpu {

// Whether there are kernels for a problem on this CPU.
bool pointwise_depthwise_conv3d_serves(const PointwiseDepthwiseConv3dProblem& problem);

Status pointwise_depthwise_conv3d_forward(const PointwiseDepthwiseConv3dProblem& problem,
                                          const PointwiseDepthwiseConv3dTensors& tensors);

}  // namespace cpu
}  // namespace evit
