// Pointwise convolution on CPUs: matrix products with bias, activation and residual in the store.
#include "evit/pointwise_conv3d.h"

#include "dispatch.h"
#include "pointwise_conv3d_rows.h"
#include "pointwise_conv3d_tiles.h"
#include "pointwise_conv3d_weight_gradient.h"

namespace {

using evit::Status;
using Problem = evit::PointwiseConv3dProblem;

constexpr int64_t kBlock = 8 * kTokens;  // tokens of one task

// destination = activation(source matrix + bias) + residual, or multiplier * activation'(...).
// Every group of `depth` source channels has a matrix of its own and `width` destination channels.
template <class S>
struct Product {
  const S* source;
  int64_t tokens, groups, depth, width, source_stride;
  const S* weight;
  int64_t weight_group, weight_row, weight_column;  // strides along groups, width and depth
  const S* bias;
  const S* residual;
  const S* multiplier;
  Activation activation;
  S* destination;
  int32_t num_threads;
};

// One panel of one group's matrix.
template <class S>
void pack_panel(const Product<S>& p, int64_t group, int64_t panel, Acc<S>* packed) {
  const int64_t first = panel * kPanel * kLanes<S>;
  pack_panel(p.weight + group * p.weight_group + first * p.weight_row, p.weight_row,
             p.weight_column, p.depth, p.width - first, packed);
}

// Where a tile of results goes: destination channels from `channel` on, of which `lanes` exist.
template <class A>
struct Place {
  int64_t token;
  int64_t channel;
  int64_t left;   // channels of the group from here on
  const A* bias;  // of the first channel, or null
};

// Stores one vector of each of M tokens.
template <class S, int M>
EVIT_INLINE void finish(const Product<S>& p, const Place<Acc<S>>& to, int64_t c,
                        Vector<Acc<S>, kLanes<S>> (&sums)[M]) {
  constexpr int L = kLanes<S>;
  using V = Vector<Acc<S>, L>;
  const int lanes = static_cast<int>(smaller(L, to.left - c));
  const int64_t width = p.groups * p.width;
  if (to.bias != nullptr) {
    const V shift = load<L>(to.bias + c);
    EVIT_UNROLL
    for (int m = 0; m < M; ++m) sums[m] += shift;
  }
  const int64_t offset = to.token * width + to.channel + c;
  if (p.multiplier == nullptr && lanes == L && activate_inline<Acc<S>, L>(sums, p.activation)) {
    if (p.residual != nullptr) {
      EVIT_UNROLL
      for (int m = 0; m < M; ++m) sums[m] += load<L>(p.residual + offset + m * width);
    }
    EVIT_UNROLL
    for (int m = 0; m < M; ++m) store<L>(p.destination + offset + m * width, sums[m]);
    return;
  }
  V values[M];
  for (int m = 0; m < M; ++m) values[m] = sums[m];
  if (p.multiplier != nullptr) {
    V grads[M];
    for (int m = 0; m < M; ++m) grads[m] = load_part<L>(p.multiplier + offset + m * width, lanes);
    differentiate<Acc<S>, L>(grads, values, M, p.activation);
    for (int m = 0; m < M; ++m) values[m] = grads[m];
  } else {
    activate<Acc<S>, L>(values, M, p.activation);
  }
  for (int m = 0; m < M; ++m) {
    if (p.residual != nullptr) values[m] += load_part<L>(p.residual + offset + m * width, lanes);
    store_part<L>(p.destination + offset + m * width, values[m], lanes);
  }
}

template <class S, int M, int N>
EVIT_INLINE void tile(const Product<S>& p, const Acc<S>* a, int64_t stride, const Acc<S>* panel,
                      Place<Acc<S>> to, int64_t first) {
  constexpr int L = kLanes<S>;
  Vector<Acc<S>, L> sums[M][N];
  product_tile<Acc<S>, M, N>(a + first * stride, stride, panel, p.depth, sums);
  to.token += first;
  EVIT_UNROLL
  for (int n = 0; n < N; ++n) {
    Vector<Acc<S>, L> column[M];
    EVIT_UNROLL
    for (int m = 0; m < M; ++m) column[m] = sums[m][n];
    finish<S, M>(p, to, n * L, column);
  }
}

// `count` tokens, all channels of one panel.
template <class S, int N>
void panel_of_tokens(const Product<S>& p, const Acc<S>* a, int64_t stride, const Acc<S>* panel,
                     const Place<Acc<S>>& to, int64_t count) {
  int64_t m = 0;
  for (; m + kTokens <= count; m += kTokens) tile<S, kTokens, N>(p, a, stride, panel, to, m);
  for (; m + 4 <= count; m += 4) tile<S, 4, N>(p, a, stride, panel, to, m);
  for (; m < count; ++m) tile<S, 1, N>(p, a, stride, panel, to, m);
}

template <class S>
Status multiply(const Product<S>& p) {
  constexpr int L = kLanes<S>;
  constexpr int64_t W = kPanel * L;
  const int64_t group_panels = ceil_div(p.width, W);
  const int64_t panels = p.groups * group_panels;
  const int64_t blocks = ceil_div(p.tokens, kBlock);
  // Few tokens and many threads: the channels are shared out too.
  const int64_t parts = larger(1, smaller(panels, ceil_div(3 * p.num_threads, larger(1, blocks))));
  Buffer<Acc<S>> packed(panels * p.depth * W);
  Buffer<Acc<S>> bias(panels * W);
  if (!packed.ok() || !bias.ok()) return {kNoMemory};
  for (int64_t panel = 0; p.bias != nullptr && panel < panels; ++panel)
    for (int64_t lane = 0; lane < W; ++lane) {
      const int64_t c = panel % group_panels * W + lane;
      bias[panel * W + lane] =
          c < p.width ? load<1>(p.bias + panel / group_panels * p.width + c)[0] : 0;
    }
  bool failed = false;

#pragma omp parallel num_threads(p.num_threads) if (p.num_threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < panels; ++panel)
      pack_panel(p, panel / group_panels, panel % group_panels,
                 packed.data() + panel * p.depth * W);

    Rows<S> rows(p.source, p.groups * p.depth, p.source_stride, kBlock, false, p.depth);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < blocks * parts; ++task) {
      const int64_t token = task / parts * kBlock;
      const int64_t part = task % parts;
      const int64_t count = smaller(kBlock, p.tokens - token);
      if (!rows.ok()) {
        failed = true;
        continue;
      }
      const Acc<S>* a = rows.at(token, count);
      for (int64_t panel = part * panels / parts; panel < (part + 1) * panels / parts; ++panel) {
        const int64_t group = panel / group_panels;
        const int64_t c = panel % group_panels * W;
        const Place<Acc<S>> to = {token, group * p.width + c, p.width - c,
                                  p.bias != nullptr ? bias.data() + panel * W : nullptr};
        const Acc<S>* b = packed.data() + panel * p.depth * W;
        if (to.left > L)
          panel_of_tokens<S, kPanel>(p, a + group * p.depth, rows.stride(), b, to, count);
        else
          panel_of_tokens<S, 1>(p, a + group * p.depth, rows.stride(), b, to, count);
      }
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
    // The activation's input is computed again rather than kept: see depthwise_conv3d.cpp.
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
