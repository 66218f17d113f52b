// Dense 3-D convolution of few input channels: what brings a clip into a network.
#pragma once

#include "evit/common.h"

namespace evit {

// Input (B, T, H, W, C_in) with strides, channels next to each other and columns dense; output
// (B, T', H', W', C_out) dense. Axes of arrays are time, height, width.
struct DenseConv3dProblem {
  DType dtype;
  Activation activation;
  bool clamp_time;  // frames outside the clip are the nearest frame inside, instead of zeros
  int32_t num_threads;
  int64_t batch;
  int64_t in_channels;
  int64_t out_channels;
  int64_t in[3];
  int64_t out[3];
  int64_t kernel[3];
  int64_t stride[3];
  int64_t padding[3];     // before the first element
  int64_t in_strides[3];  // elements from sample, frame and row to the next
};

namespace cpu {

// weight (C_out, C_in, k_t, k_h, k_w) dense; bias (C_out) may be null.
Status dense_conv3d_forward(const DenseConv3dProblem& problem, const void* input,
                            const void* weight, const void* bias, void* output);

// Elements of the accumulation type (float; double for kFloat64) that the gradient needs.
int64_t dense_conv3d_workspace(const DenseConv3dProblem& problem);

// The gradients of weight and bias, null where not wanted, of the convolution without activation.
Status dense_conv3d_weight_gradient(const DenseConv3dProblem& problem, const void* grad_output,
                                    const void* input, void* partials, void* grad_weight,
                                    void* grad_bias);

}  // namespace cpu
}  // namespace evit
