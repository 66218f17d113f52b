// Depthwise 3-D convolution, one kernel per channel. Tensors are channels-last, (N, T, H, W, C);
// with CUDA they may be planes instead, (N, C, T, H, W).
#pragma once

#include "evit/common.h"
#include "evit/cuda.h"

namespace evit {

// Sizes are in elements; triples are (time, height, width).
struct DepthwiseConv3dProblem {
  DType dtype;
  Activation activation;
  bool planar;      // CUDA only: input, output and their gradients are dense (N, C, T, H, W)
  bool clamp_time;  // frames outside the clip are the nearest frame inside, instead of zeros
  int32_t num_threads;
  int64_t batch;
  int64_t channels;
  int64_t in[3];
  int64_t out[3];
  int64_t kernel[3];
  int64_t stride[3];
  int64_t padding[3];  // before the first element; what stands after follows from `out`
  int64_t dilation[3];
  int64_t in_strides[4];  // of the input, for (n, t, h, w); channels have stride 1, unless planar
};

namespace cpu {

// output (N, T', H', W', C) dense. weight (C, k_t, k_h, k_w) dense. bias (C) or null.
Status depthwise_conv3d_forward(const DepthwiseConv3dProblem& problem, const void* input,
                                const void* weight, const void* bias, void* output);

// Elements of the accumulation type (float; double for kFloat64) that backward needs as `partials`.
int64_t depthwise_conv3d_workspace(const DepthwiseConv3dProblem& problem);

// grad_output dense like the output. `scratch` of its size is needed only with an activation.
// grad_input (dense, channels-last), grad_weight, grad_bias: null where not wanted.
Status depthwise_conv3d_backward(const DepthwiseConv3dProblem& problem, const void* grad_output,
                                 const void* input, const void* weight, const void* bias,
                                 void* scratch, void* partials, void* grad_input, void* grad_weight,
                                 void* grad_bias);

}  // namespace cpu

namespace cuda {

// As on CPUs, on memory of the stream's device. `workspace` and `partials` hold as many elements of
// the accumulation type as the functions before say.
int64_t depthwise_conv3d_forward_workspace(const DepthwiseConv3dProblem& problem);
Status depthwise_conv3d_forward(const DepthwiseConv3dProblem& problem, const void* input,
                                const void* weight, const void* bias, void* output, void* workspace,
                                Stream stream);
int64_t depthwise_conv3d_workspace(const DepthwiseConv3dProblem& problem);
Status depthwise_conv3d_backward(const DepthwiseConv3dProblem& problem, const void* grad_output,
                                 const void* input, const void* weight, const void* bias,
                                 void* scratch, void* partials, void* grad_input, void* grad_weight,
                                 void* grad_bias, Stream stream);

}  // namespace cuda
}  // namespace evit
