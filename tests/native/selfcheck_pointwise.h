// Pointwise convolution, alone and around a depthwise one.
#pragma once

#include "evit/pointwise_conv3d.h"
#include "evit/pointwise_depthwise_conv3d.h"
#include "selfcheck.h"

namespace {

template <class S>
void check_pointwise(int64_t tokens, int64_t in, int64_t out, int64_t groups, int threads) {
  const int64_t ins = in / groups, outs = out / groups;
  const Values x = numbers(tokens * in), weight = numbers(out * ins), bias = numbers(out),
               residual = numbers(tokens * out), grad = numbers(tokens * out);
  Values y(tokens * out), dx(x.size()), dweight(weight.size()), dbias(out);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t o = 0; o < out; ++o) {
      const int64_t first = t * in + o / outs * ins;
      double sum = bias[o];
      for (int64_t i = 0; i < ins; ++i) sum += x[first + i] * weight[o * ins + i];
      const double slope = grad[t * out + o] * hardswish_slope(sum);
      y[t * out + o] = hardswish(sum) + residual[t * out + o];
      dbias[o] += slope;
      for (int64_t i = 0; i < ins; ++i) {
        dx[first + i] += slope * weight[o * ins + i];
        dweight[o * ins + i] += slope * x[first + i];
      }
    }
  const evit::PointwiseConv3dProblem p = {
      Kind<S>::dtype, Activation::kHardswish, threads, tokens, in, out, groups, in};
  const auto s_x = encoded<S>(x), s_weight = encoded<S>(weight), s_bias = encoded<S>(bias),
             s_residual = encoded<S>(residual), s_grad = encoded<S>(grad);
  auto s_y = unwritten<S>(tokens * out), scratch = unwritten<S>(tokens * out),
       s_dx = unwritten<S>(tokens * in), s_dweight = unwritten<S>(out * ins),
       s_dbias = unwritten<S>(out);
  auto partials = unwritten<typename Kind<S>::Wide>(evit::cpu::pointwise_conv3d_workspace(p));
  require(evit::cpu::pointwise_conv3d_forward(p, s_x.data(), s_weight.data(), s_bias.data(),
                                              s_residual.data(), s_y.data()),
          "pointwise_conv3d_forward");
  require(evit::cpu::pointwise_conv3d_backward(p, s_grad.data(), s_x.data(), s_weight.data(),
                                               s_bias.data(), scratch.data(), partials.data(),
                                               s_dx.data(), s_dweight.data(), s_dbias.data()),
          "pointwise_conv3d_backward");
  compare(s_y, y, Kind<S>::unit, "pointwise_conv3d");
  compare(s_dx, dx, Kind<S>::unit, "pointwise_conv3d, gradient of input");
  compare(s_dweight, dweight, Kind<S>::unit, "pointwise_conv3d, gradient of weight");
  compare(s_dbias, dbias, Kind<S>::unit, "pointwise_conv3d, gradient of bias");
}

// The bits of single calls, where there are kernels that join them.
template <class S>
void check_pointwise_depthwise(int64_t in, const Window& window, int threads) {
  evit::DepthwiseConv3dProblem p = problem_of<S>(window, threads);
  const int64_t tokens = p.batch * p.in[0] * p.in[1] * p.in[2],
                outputs = p.batch * p.out[0] * p.out[1] * p.out[2] * p.channels,
                taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
  const auto x = encoded<S>(numbers(tokens * in)), first = encoded<S>(numbers(p.channels * in)),
             shift = encoded<S>(numbers(p.channels)),
             weight = encoded<S>(numbers(p.channels * taps)),
             bias = encoded<S>(numbers(p.channels));
  auto middle = unwritten<S>(tokens * p.channels), expected = unwritten<S>(outputs);
  const evit::PointwiseConv3dProblem pointwise = {
      Kind<S>::dtype, Activation::kSilu, threads, tokens, in, p.channels, 1, in};
  require(evit::cpu::pointwise_conv3d_forward(pointwise, x.data(), first.data(), shift.data(),
                                              nullptr, middle.data()),
          "pointwise_conv3d_forward");
  require(evit::cpu::depthwise_conv3d_forward(p, middle.data(), weight.data(), bias.data(),
                                              expected.data()),
          "depthwise_conv3d_forward");
  p.in_strides[3] = in;
  for (int i = 2; i >= 0; --i) p.in_strides[i] = p.in_strides[i + 1] * p.in[i];
  const auto same_bits = [&](int64_t out, const std::vector<S>& wanted, auto... projection) {
    const evit::PointwiseDepthwiseConv3dProblem joined = {p, Activation::kSilu, in, out};
    if (!evit::cpu::pointwise_depthwise_conv3d_serves(joined)) return;
    auto got = unwritten<S>(static_cast<int64_t>(wanted.size()));
    require(evit::cpu::pointwise_depthwise_conv3d_forward(
                joined, {x.data(), first.data(), shift.data(), weight.data(), bias.data(),
                         projection..., got.data()}),
            "pointwise_depthwise_conv3d_forward");
    if (std::memcmp(got.data(), wanted.data(), wanted.size() * sizeof(S)) == 0) return;
    std::printf("FAILED pointwise_depthwise_conv3d: not the bits of single calls\n");
    ++failures;
  };
  const std::nullptr_t none = nullptr;
  same_bits(0, expected, none, none, none);

  const int64_t out = 20, rows = outputs / p.channels;
  const auto last = encoded<S>(numbers(out * p.channels)), last_shift = encoded<S>(numbers(out)),
             residual = encoded<S>(numbers(rows * out));
  auto projected = unwritten<S>(rows * out);
  const evit::PointwiseConv3dProblem projection = {
      Kind<S>::dtype, Activation::kNone, threads, rows, p.channels, out, 1, p.channels};
  require(evit::cpu::pointwise_conv3d_forward(projection, expected.data(), last.data(),
                                              last_shift.data(), residual.data(), projected.data()),
          "pointwise_conv3d_forward");
  same_bits(out, projected, last.data(), last_shift.data(), residual.data());
}

}  // namespace
