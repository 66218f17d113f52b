// Pointwise convolution on CPUs: matrix products with bias, activation and residual in the store.
#include "evit/pointwise_conv3d.h"

#include "dispatch.h"
#include "pointwise_conv3d_product.h"
#include "pointwise_conv3d_rows.h"
#include "pointwise_conv3d_weight_gradient.h"

namespace {

using evit::Status;
using Problem = evit::PointwiseConv3dProblem;

constexpr int64_t kTiles = 8;                 // register tiles of one task and panel
constexpr int64_t kBlock = kTiles * kTokens;  // tokens of one task
// Tasks that a thread takes at once, at most: what it fetches ahead is then mostly its own.
constexpr int64_t kRun = 32;

template <class S>
Status multiply(const Product<S>& p) {
  Panels<S> panels(p);
  if (!panels.ok()) return {kNoMemory};
  const int64_t blocks = ceil_div(p.tokens, kBlock);
  // Few tokens and many threads: the channels are shared out too.
  const int64_t parts =
      larger(1, smaller(panels.count(), ceil_div(3 * p.num_threads, larger(1, blocks))));
  // Eight runs or more for each thread: those that are ahead take over from those behind.
  const int64_t run = larger(1, smaller(kRun, blocks / (8 * p.num_threads)));
  bool failed = false;

#pragma omp parallel num_threads(p.num_threads) if (p.num_threads > 1)
  {
    panels.pack();
    Rows<S> rows(p.source, p.groups * p.depth, p.source_stride, kBlock);
#pragma omp for schedule(dynamic, run)
    for (int64_t task = 0; task < blocks * parts; ++task) {
      const int64_t token = task / parts * kBlock;
      const int64_t part = task % parts;
      const int64_t count = smaller(kBlock, p.tokens - token);
      RowsAhead ahead;
      if (run > 1) {
        const int64_t next = token + count;
        ahead = {p.source + next * p.source_stride, p.source_stride, p.groups * p.depth,
                 smaller(kBlock, p.tokens - next), panels.count() * kTiles};
      }
      if (rows.ok())
        panels.multiply(rows.at(token, count), rows.stride(), token, count,
                        part * panels.count() / parts, (part + 1) * panels.count() / parts, ahead);
      else
        failed = true;
    }
  }
  return {failed ? kNoMemory : nullptr};
}

template <class S>
Status forward_as(const Problem& p, const void* input, const void* weight, const void* bias,
                  const void* residual, const void* multiplier, void* output) {
  Product<S> product = {};
  product.source = static_cast<const S*>(input);
  product.tokens = p.tokens;
  product.groups = p.groups;
  product.depth = p.in_channels / p.groups;
  product.width = p.out_channels / p.groups;
  product.source_stride = p.in_stride;
  product.weight = static_cast<const S*>(weight);
  product.weight_group = product.width * product.depth;
  product.weight_row = product.depth;
  product.weight_column = 1;
  product.bias = static_cast<const S*>(bias);
  product.residual = static_cast<const S*>(residual);
  product.multiplier = static_cast<const S*>(multiplier);
  product.activation = p.activation;
  product.destination = static_cast<S*>(output);
  product.num_threads = p.num_threads;
  return multiply(product);
}

template <class S>
Status backward_as(const Problem& p, const void* grad_output, const void* input, const void* weight,
                   const void* bias, void* scratch, void* partials, void* grad_input,
                   void* grad_weight, void* grad_bias) {
  const S* grad = static_cast<const S*>(grad_output);
  if (p.activation != Activation::kNone) {
    // The activation's input is computed again; who keeps it undoes the activation himself.
    const Status status = forward_as<S>(p, input, weight, bias, nullptr, grad_output, scratch);
    if (!status.ok()) return status;
    grad = static_cast<const S*>(scratch);
  }
  if (grad_input != nullptr) {
    Product<S> product = {};
    product.source = grad;
    product.tokens = p.tokens;
    product.groups = p.groups;
    product.depth = p.out_channels / p.groups;
    product.width = p.in_channels / p.groups;
    product.source_stride = p.out_channels;
    product.weight = static_cast<const S*>(weight);
    product.weight_group = product.width * product.depth;
    product.weight_row = 1;
    product.weight_column = product.width;
    product.activation = Activation::kNone;
    product.destination = static_cast<S*>(grad_input);
    product.num_threads = p.num_threads;
    const Status status = multiply(product);
    if (!status.ok()) return status;
  }
  if (grad_weight == nullptr && grad_bias == nullptr) return {};
  return WeightGradient<S>(p).run(grad, static_cast<const S*>(input),
                                  static_cast<Acc<S>*>(partials), static_cast<S*>(grad_weight),
                                  static_cast<S*>(grad_bias));
}

}  // namespace

namespace evit::cpu::EVIT_ISA {

Status pointwise_conv3d_forward(const Problem& p, const void* input, const void* weight,
                                const void* bias, const void* residual, void* output) {
  return with_storage(p.dtype, [&](auto s) {
    return forward_as<typename decltype(s)::type>(p, input, weight, bias, residual, nullptr,
                                                  output);
  });
}

int64_t pointwise_conv3d_workspace(const Problem& p) {
  return with_storage(
      p.dtype, [&](auto s) { return WeightGradient<typename decltype(s)::type>(p).workspace(); });
}

Status pointwise_conv3d_backward(const Problem& p, const void* grad_output, const void* input,
                                 const void* weight, const void* bias, void* scratch,
                                 void* partials, void* grad_input, void* grad_weight,
                                 void* grad_bias) {
  return with_storage(p.dtype, [&](auto s) {
    return backward_as<typename decltype(s)::type>(p, grad_output, input, weight, bias, scratch,
                                                   partials, grad_input, grad_weight, grad_bias);
  });
}

}  // namespace evit::cpu::EVIT_ISA

EVIT_ENTRY(Status, pointwise_conv3d_forward,
           (const PointwiseConv3dProblem& problem, const void* input, const void* weight,
            const void* bias, const void* residual, void* output),
           (problem, input, weight, bias, residual, output))

EVIT_ENTRY(int64_t, pointwise_conv3d_workspace, (const PointwiseConv3dProblem& problem), (problem))

EVIT_ENTRY(Status, pointwise_conv3d_backward,
           (const PointwiseConv3dProblem& problem, const void* grad_output, const void* input,
            const void* weight, const void* bias, void* scratch, void* partials, void* grad_input,
            void* grad_weight, void* grad_bias),
           (problem, grad_output, input, weight, bias, scratch, partials, grad_input, grad_weight,
            grad_bias))
