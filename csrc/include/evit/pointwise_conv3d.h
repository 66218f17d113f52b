// Pointwise convolution: a product of (tokens, C_in) with (C_out, C_in / groups) for each group of
// channels, and what follows it.
#pragma once

#include "evit/common.h"

namespace evit {

struct PointwiseConv3dProblem {
  DType dtype;
  Activation activation;
  int32_t num_threads;
  int64_t tokens;
  int64_t in_channels;
  int64_t out_channels;
  int64_t groups;     // both channel counts are multiples of it
  int64_t in_stride;  // elements from one token of the input to the next; channels have stride 1
};

namespace cpu {

// output (tokens, C_out) dense = activation(input weight^T + bias) + residual.
// bias (C_out) and residual (tokens, C_out, dense) may be null.
Status pointwise_conv3d_forward(const PointwiseConv3dProblem& problem, const void* input,
                                const void* weight, const void* bias, const void* residual,
                                void* output);

// Elements of the accumulation type (float; double for kFloat64) that backward needs as `partials`.
int64_t pointwise_conv3d_workspace(const PointwiseConv3dProblem& problem);

// grad_output (tokens, C_out) dense. `scratch` of its size is needed only with an activation.
// grad_input (tokens, C_in, dense), grad_weight, grad_bias: null where not wanted.
Status pointwise_conv3d_backward(const PointwiseConv3dProblem& problem, const void* grad_output,
                                 const void* input, const void* weight, const void* bias,
                                 void* scratch, void* partials, void* grad_input, void* grad_weight,
                                 void* grad_bias);

}  // namespace cpu
}  // namespace evit
