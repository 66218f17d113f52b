// Batch normalisation and activation: y = act((x - mean) / sqrt(variance + eps) * weight + bias).
#pragma once

#include "evit/common.h"

namespace evit {

// Sizes and strides are in elements. Per-channel arrays are of the accumulation type: float, and
// double for kFloat64.
struct BatchNormActivationProblem {
  DType dtype;
  Activation activation;
  int32_t num_threads;
  bool planar;         // dense (N, C, T, H, W); else channels-last, channels next to each other
  bool batch_moments;  // backward: mean and variance are those of the input, and depend on it
  int64_t batch;
  int64_t channels;
  int64_t size[3];        // time, height, width
  int64_t in_strides[4];  // channels-last input: for (n, t, h, w); when not dense, a multiple of 16
                          // channels is needed
  double eps;
};

namespace cpu {

// mean and variance (C) of the input over batch and positions; the variance is the biased one.
Status batch_norm_statistics(const BatchNormActivationProblem& problem, const void* input,
                             void* mean, void* variance);

// weight and bias (C), or null for ones and zeros. output dense, in the layout of the input.
Status batch_norm_activation_forward(const BatchNormActivationProblem& problem, const void* input,
                                     const void* mean, const void* variance, const void* weight,
                                     const void* bias, void* output);

// grad_output and grad_input dense, in the layout of the input. grad_input, grad_weight (C) and
// grad_bias (C): null where not wanted.
Status batch_norm_activation_backward(const BatchNormActivationProblem& problem,
                                      const void* grad_output, const void* input, const void* mean,
                                      const void* variance, const void* weight, const void* bias,
                                      void* grad_input, void* grad_weight, void* grad_bias);

}  // namespace cpu
}  // namespace evit
