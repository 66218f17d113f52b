// Depthwise 3-D convolution on CUDA devices, for every window, layout and storage type: one thread
// per result, sums in registers, no atomics. Each body says how the i-th result is computed. The
// windows that networks are made of are computed in strips, which is faster.
#include <algorithm>

#include "depthwise_conv3d_data_strips.h"
#include "depthwise_conv3d_forward_strips.h"
#include "depthwise_conv3d_index.h"
#include "depthwise_conv3d_weight_strips.h"
#include "scalar.h"

namespace evit::cuda {
namespace {

// The convolution and its bias at one output, before the activation. Every row of taps is summed by
// itself: the error of a sum grows with its length.
template <class S>
EVIT_HD Sum<S> convolved(const Window& p, const S* input, const S* weight, const S* bias,
                         const Element& out) {
  const Strides in = strides_of_input(p);
  const S* x = input + out.n * in.n + out.c * in.c;
  const S* w = weight + out.c * taps_of(p);
  Sum<S> sum = bias == nullptr ? Sum<S>(0) : read(bias + out.c);
  for (int64_t kt = 0; kt < p.kernel[0]; ++kt) {
    const int64_t t = input_of(p, 0, out.at[0], kt);
    if (t < 0) continue;
    for (int64_t kh = 0; kh < p.kernel[1]; ++kh) {
      const int64_t h = input_of(p, 1, out.at[1], kh);
      if (h < 0) continue;
      const S* row = x + t * in.at[0] + h * in.at[1];
      const S* taps = w + (kt * p.kernel[1] + kh) * p.kernel[2];
      Sum<S> part = 0;
      for (int64_t kw = 0; kw < p.kernel[2]; ++kw) {
        const int64_t column = input_of(p, 2, out.at[2], kw);
        if (column >= 0) part += read(row + column * in.at[2]) * read(taps + kw);
      }
      sum += part;
    }
  }
  return sum;
}

template <class S>
struct Forward {
  Window p;
  const S* input;
  const S* weight;
  const S* bias;
  S* output;

  EVIT_HD void operator()(int64_t i) const {
    const Element out = element_at(p, p.out, i);
    write(output + i, activate(convolved(p, input, weight, bias, out), p.activation));
  }
};

// The gradient before the activation, whose input is computed again.
template <class S>
struct DifferentiateActivation {
  Window p;
  const S* grad_output;
  const S* input;
  const S* weight;
  const S* bias;
  S* scratch;

  EVIT_HD void operator()(int64_t i) const {
    const Element out = element_at(p, p.out, i);
    const Sum<S> x = convolved(p, input, weight, bias, out);
    write(scratch + i, differentiate(Sum<S>(read(grad_output + i)), x, p.activation));
  }
};

template <class S>
struct DataGradient {
  Window p;
  const S* grad;
  const S* weight;
  S* grad_input;

  EVIT_HD void operator()(int64_t i) const {
    const Element in = element_at(p, p.in, i);
    const Strides out = strides_of_dense(p, p.out);
    const S* g = grad + in.n * out.n + in.c * out.c;
    const S* w = weight + in.c * taps_of(p);
    Sum<S> sum = 0;
    for (int64_t kt = 0; kt < p.kernel[0]; ++kt) {
      const Outputs frames = outputs_of(p, 0, in.at[0], kt);
      for (int64_t t = frames.first; t < frames.end; ++t) {
        for (int64_t kh = 0; kh < p.kernel[1]; ++kh) {
          const Outputs rows = outputs_of(p, 1, in.at[1], kh);
          for (int64_t h = rows.first; h < rows.end; ++h) {
            const S* row = g + t * out.at[0] + h * out.at[1];
            const S* taps = w + (kt * p.kernel[1] + kh) * p.kernel[2];
            Sum<S> part = 0;
            for (int64_t kw = 0; kw < p.kernel[2]; ++kw) {
              const Outputs columns = outputs_of(p, 2, in.at[2], kw);
              for (int64_t o = columns.first; o < columns.end; ++o)
                part += read(row + o * out.at[2]) * read(taps + kw);
            }
            sum += part;
          }
        }
      }
    }
    write(grad_input + i, sum);
  }
};

// One long chain of additions loses digits: so many products at most are summed, then added up.
constexpr int64_t kProducts = 512;

// The sum of one split for a tap of a channel; beyond the last tap, for the bias. Channels are next
// to each other in `partials` (split, tap, channel).
template <class S>
struct SumWeightGradient {
  Window p;
  const S* grad;
  const S* input;
  Sum<S>* partials;

  EVIT_HD void operator()(int64_t i) const {
    const int64_t c = i % p.channels;
    const int64_t tap = i / p.channels % (taps_of(p) + 1);
    const int64_t split = i / p.channels / (taps_of(p) + 1);
    const bool is_bias = tap == taps_of(p);
    const int64_t kw = tap % p.kernel[2], kh = tap / p.kernel[2] % p.kernel[1];
    const int64_t kt = tap / p.kernel[2] / p.kernel[1];
    const Strides in = strides_of_input(p), out = strides_of_dense(p, p.out);
    Sum<S> sum = 0;
    for (int64_t r = first_row(p, split); r < first_row(p, split + 1); ++r) {
      const int64_t oh = r % p.out[1], ot = r / p.out[1] % p.out[0], n = r / p.out[1] / p.out[0];
      const int64_t t = is_bias ? 0 : input_of(p, 0, ot, kt);
      const int64_t h = is_bias ? 0 : input_of(p, 1, oh, kh);
      if (t < 0 || h < 0) continue;
      const S* g = grad + n * out.n + c * out.c + ot * out.at[0] + oh * out.at[1];
      const S* x = input + n * in.n + c * in.c + t * in.at[0] + h * in.at[1];
      for (int64_t first = 0; first < p.out[2]; first += kProducts) {
        const int64_t end = first + kProducts < p.out[2] ? first + kProducts : p.out[2];
        Sum<S> part = 0;
        for (int64_t ow = first; ow < end; ++ow) {
          const Sum<S> slope = read(g + ow * out.at[2]);
          const int64_t w = is_bias ? 0 : input_of(p, 2, ow, kw);
          if (w >= 0) part += is_bias ? slope : slope * read(x + w * in.at[2]);
        }
        sum += part;
      }
    }
    partials[i] = sum;
  }
};

template <class S>
struct CombineWeightGradient {
  Window p;
  SplitSums<Sum<S>> sums;
  S* grad_weight;
  S* grad_bias;

  EVIT_HD void operator()(int64_t i) const {
    const int64_t c = i % p.channels, tap = i / p.channels, taps = taps_of(p);
    Sum<S> sum = 0;
    for (int64_t split = 0; split < sums.splits; ++split)
      sum += sums.values[(split * (taps + 1) + tap) * p.channels + c];
    if (tap < taps && grad_weight != nullptr) write(grad_weight + c * taps + tap, sum);
    if (tap == taps && grad_bias != nullptr) write(grad_bias + c, sum);
  }
};

int64_t outputs_in(const Window& p) {
  return p.batch * p.channels * p.out[0] * p.out[1] * p.out[2];
}

int64_t inputs_in(const Window& p) {
  return p.batch * p.channels * p.in[0] * p.in[1] * p.in[2];
}

// What the calls of one backward pass read, and where it may write in between.
template <class S>
struct Backward {
  const Window& p;
  const S* input;
  const S* weight;
  const S* bias;
  Sum<S>* partials;
  bool in_strips;
  Stream stream;

  // The gradient before the activation.
  Status differentiate_activation(const S* grad_output, S* scratch) const {
    if constexpr (kHasStrips<S>)
      if (in_strips)
        return forward_in_strips(p, input, weight, bias, grad_output, scratch, partials, stream);
    const DifferentiateActivation<S> body = {p, grad_output, input, weight, bias, scratch};
    return for_each(outputs_in(p), body, stream);
  }

  Status data_gradient(const S* grad, S* grad_input) const {
    if constexpr (kHasStrips<S>)
      if (in_strips) return data_gradient_in_strips(p, grad, weight, grad_input, partials, stream);
    const DataGradient<S> body = {p, grad, weight, grad_input};
    return for_each(inputs_in(p), body, stream);
  }

  Status weight_gradient(const S* grad, S* grad_weight, S* grad_bias) const {
    SplitSums<Sum<S>> sums = {};
    const Status status = weight_sums(grad, sums);
    if (!status.ok()) return status;
    const CombineWeightGradient<S> combine = {p, sums, grad_weight, grad_bias};
    return for_each((taps_of(p) + 1) * p.channels, combine, stream);
  }

 private:
  Status weight_sums(const S* grad, SplitSums<Sum<S>>& sums) const {
    if constexpr (kHasStrips<S>)
      if (in_strips) return weight_sums_in_strips(p, grad, input, partials, sums, stream);
    sums = {splits_of(p), partials};
    const SumWeightGradient<S> body = {p, grad, input, partials};
    return for_each(sums.splits * (taps_of(p) + 1) * p.channels, body, stream);
  }
};

}  // namespace

Status depthwise_conv3d_forward(const Window& p, const void* input, const void* weight,
                                const void* bias, void* output, void* workspace, Stream stream) {
  const OnDevice current(stream.device);
  if (!current.status().ok()) return current.status();
  return with_storage(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    const auto* x = static_cast<const S*>(input);
    const auto* w = static_cast<const S*>(weight);
    const auto* b = static_cast<const S*>(bias);
    auto* y = static_cast<S*>(output);
    if constexpr (kHasStrips<S>)
      if (strips_serve(p, {input, output}))
        return forward_in_strips(p, x, w, b, static_cast<const S*>(nullptr), y,
                                 static_cast<Sum<S>*>(workspace), stream);
    const Forward<S> body = {p, x, w, b, y};
    return for_each(outputs_in(p), body, stream);
  });
}

int64_t depthwise_conv3d_forward_workspace(const Window& p) {
  return repacked_elements(p);
}

int64_t depthwise_conv3d_workspace(const Window& p) {
  // The sums of splits, and before them, in the same place, weights for strips. Where tensors
  // begin, which decides whether strips serve, is not known here.
  const int64_t plain = splits_of(p) * (taps_of(p) + 1) * p.channels;
  return std::max(plain, weight_strips_workspace(p));
}

Status depthwise_conv3d_backward(const Window& p, const void* grad_output, const void* input,
                                 const void* weight, const void* bias, void* scratch,
                                 void* partials, void* grad_input, void* grad_weight,
                                 void* grad_bias, Stream stream) {
  const OnDevice current(stream.device);
  if (!current.status().ok()) return current.status();
  const bool in_strips = strips_serve(p, {grad_output, input, scratch, grad_input});
  return with_storage(p.dtype, [&](auto storage) -> Status {
    using S = decltype(storage);
    const Backward<S> backward = {p,
                                  static_cast<const S*>(input),
                                  static_cast<const S*>(weight),
                                  static_cast<const S*>(bias),
                                  static_cast<Sum<S>*>(partials),
                                  in_strips,
                                  stream};
    const auto* grad = static_cast<const S*>(grad_output);
    if (p.activation != Activation::kNone) {
      auto* differentiated = static_cast<S*>(scratch);
      const Status status = backward.differentiate_activation(grad, differentiated);
      if (!status.ok()) return status;
      grad = differentiated;
    }
    if (grad_input != nullptr) {
      const Status status = backward.data_gradient(grad, static_cast<S*>(grad_input));
      if (!status.ok()) return status;
    }
    if (grad_weight == nullptr && grad_bias == nullptr) return {};
    return backward.weight_gradient(grad, static_cast<S*>(grad_weight), static_cast<S*>(grad_bias));
  });
}

}  // namespace evit::cuda
