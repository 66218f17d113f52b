// Linear attention with ReLU feature maps: relu(q) (relu(k)^T v) / (relu(q) . sum relu(k) + eps).
#pragma once

#include "evit/common.h"
#include "evit/cuda.h"

namespace evit {

// A (batch, heads, tokens, width) tensor anywhere in memory: strides in elements, features next to
// each other.
struct HeadsView {
  void* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t token_stride;
};

// Heads that live in the same tensors. q, k and v may be views of one packed tensor; inputs are
// never written to.
struct AttentionSource {
  int64_t heads;
  HeadsView q;
  HeadsView k;
  HeadsView v;
  HeadsView output;  // forward: written; backward: its gradient, read
  HeadsView grad_q;  // backward only: null data where not wanted
  HeadsView grad_k;
  HeadsView grad_v;
};

// Heads of all sources are counted in their order.
struct ReluLinearAttentionProblem {
  DType dtype;
  int32_t num_threads;
  int64_t batch;
  int64_t tokens;
  int64_t width;  // of a head
  double eps;
  int64_t num_sources;
  const AttentionSource* sources;
};

namespace cpu {

// `state` is (batch, all heads, width + 1, width) in the accumulation type (float; double for
// kFloat64): the sums of relu(k)^T v, and in the last row those of relu(k). Forward writes it
// unless it is null, backward reads it.
Status relu_linear_attention_forward(const ReluLinearAttentionProblem& problem, void* state);
Status relu_linear_attention_backward(const ReluLinearAttentionProblem& problem, const void* state);

}  // namespace cpu

namespace cuda {

// As on CPUs, on memory of the stream's device. `workspace` holds as many elements of the
// accumulation type as the functions say.
int64_t relu_linear_attention_forward_workspace(const ReluLinearAttentionProblem& problem);
Status relu_linear_attention_forward(const ReluLinearAttentionProblem& problem, void* state,
                                     void* workspace, Stream stream);
int64_t relu_linear_attention_backward_workspace(const ReluLinearAttentionProblem& problem);
Status relu_linear_attention_backward(const ReluLinearAttentionProblem& problem, const void* state,
                                      void* workspace, Stream stream);

}  // namespace cuda
}  // namespace evit
