// Compares every operator of the core with plain loops in double, without Python and without torch:
// for machines where those are not at hand, such as an emulator.
#include "selfcheck.h"

#include <cstdio>
#include <cstdlib>
#include <functional>

#include "evit/batch_norm_activation.h"
#include "evit/cpu.h"
#include "evit/dense_conv3d.h"
#include "evit/depthwise_conv3d.h"
#include "evit/relu_linear_attention.h"
#include "selfcheck_pointwise.h"

namespace {

// ---- depthwise convolution ----

// Calls visit(output element, input element, weight element) for every product; channels innermost.
void each_product(const evit::DepthwiseConv3dProblem& p,
                  const std::function<void(int64_t, int64_t, int64_t)>& visit) {
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t t = 0; t < p.out[0]; ++t)
      for (int64_t h = 0; h < p.out[1]; ++h)
        for (int64_t w = 0; w < p.out[2]; ++w)
          for (int64_t i = 0; i < p.kernel[0] * p.kernel[1] * p.kernel[2]; ++i) {
            int64_t x[3] = {t * p.stride[0] - p.padding[0] + i / (p.kernel[1] * p.kernel[2]),
                            h * p.stride[1] - p.padding[1] + i / p.kernel[2] % p.kernel[1],
                            w * p.stride[2] - p.padding[2] + i % p.kernel[2]};
            if (p.clamp_time) x[0] = x[0] < 0 ? 0 : x[0] >= p.in[0] ? p.in[0] - 1 : x[0];
            bool inside = true;
            for (int axis = 0; axis < 3; ++axis)
              inside = inside && x[axis] >= 0 && x[axis] < p.in[axis];
            if (!inside) continue;
            const int64_t out = ((n * p.out[0] + t) * p.out[1] + h) * p.out[2] + w;
            const int64_t in = ((n * p.in[0] + x[0]) * p.in[1] + x[1]) * p.in[2] + x[2];
            for (int64_t c = 0; c < p.channels; ++c)
              visit(out * p.channels + c, in * p.channels + c,
                    c * p.kernel[0] * p.kernel[1] * p.kernel[2] + i);
          }
}

template <class S>
void check_depthwise(const Window& window, int threads) {
  const evit::DepthwiseConv3dProblem p = problem_of<S>(window, threads);
  const int64_t inputs = p.batch * p.in[0] * p.in[1] * p.in[2] * p.channels,
                outputs = p.batch * p.out[0] * p.out[1] * p.out[2] * p.channels,
                taps = p.kernel[0] * p.kernel[1] * p.kernel[2];

  const Values x = numbers(inputs), weight = numbers(p.channels * taps), bias = numbers(p.channels),
               grad = numbers(outputs);
  Values sums(outputs), slopes(outputs), dx(inputs), dweight(weight.size()), dbias(p.channels);
  for (int64_t i = 0; i < outputs; ++i) sums[i] = bias[i % p.channels];
  each_product(p, [&](int64_t o, int64_t i, int64_t w) { sums[o] += x[i] * weight[w]; });
  for (int64_t i = 0; i < outputs; ++i) {
    slopes[i] = grad[i] * hardswish_slope(sums[i]);
    dbias[i % p.channels] += slopes[i];
  }
  each_product(p, [&](int64_t o, int64_t i, int64_t w) {
    dx[i] += slopes[o] * weight[w];
    dweight[w] += slopes[o] * x[i];
  });
  for (double& sum : sums) sum = hardswish(sum);

  using A = typename Kind<S>::Wide;
  const auto s_x = encoded<S>(x), s_weight = encoded<S>(weight), s_bias = encoded<S>(bias),
             s_grad = encoded<S>(grad);
  auto out = unwritten<S>(outputs), scratch = unwritten<S>(outputs), s_dx = unwritten<S>(inputs),
       s_dweight = unwritten<S>(static_cast<int64_t>(weight.size())),
       s_dbias = unwritten<S>(p.channels);
  auto partials = unwritten<A>(evit::cpu::depthwise_conv3d_workspace(p));
  require(evit::cpu::depthwise_conv3d_forward(p, s_x.data(), s_weight.data(), s_bias.data(),
                                              out.data()),
          "depthwise_conv3d_forward");
  require(evit::cpu::depthwise_conv3d_backward(p, s_grad.data(), s_x.data(), s_weight.data(),
                                               s_bias.data(), scratch.data(), partials.data(),
                                               s_dx.data(), s_dweight.data(), s_dbias.data()),
          "depthwise_conv3d_backward");
  compare(out, sums, Kind<S>::unit, "depthwise_conv3d");
  compare(s_dx, dx, Kind<S>::unit, "depthwise_conv3d, gradient of input");
  compare(s_dweight, dweight, Kind<S>::unit, "depthwise_conv3d, gradient of weight");
  compare(s_dbias, dbias, Kind<S>::unit, "depthwise_conv3d, gradient of bias");
}

// ---- dense convolution ----

template <class S>
void check_dense(int64_t in_channels, int64_t out_channels, const Window& window, int threads) {
  evit::DenseConv3dProblem p = {};
  evit::DepthwiseConv3dProblem positions = {};  // of one channel, for each_product
  p.dtype = Kind<S>::dtype;
  p.activation = Activation::kHardswish;
  p.clamp_time = positions.clamp_time = window.clamp;
  p.num_threads = threads;
  p.batch = positions.batch = 2;
  p.in_channels = in_channels;
  p.out_channels = out_channels;
  positions.channels = 1;
  int64_t inputs = p.batch, outputs = p.batch, taps = 1;
  for (int axis = 0; axis < 3; ++axis) {
    p.in[axis] = positions.in[axis] = window.in[axis];
    p.kernel[axis] = positions.kernel[axis] = window.kernel[axis];
    p.stride[axis] = positions.stride[axis] = window.stride[axis];
    p.padding[axis] = positions.padding[axis] = window.kernel[axis] / 2;
    p.out[axis] = positions.out[axis] =
        (p.in[axis] + 2 * p.padding[axis] - p.kernel[axis]) / p.stride[axis] + 1;
    inputs *= p.in[axis];
    outputs *= p.out[axis];
    taps *= p.kernel[axis];
  }
  p.in_strides[2] = p.in[2] * in_channels;
  for (int i = 1; i >= 0; --i) p.in_strides[i] = p.in_strides[i + 1] * p.in[i];

  const Values x = numbers(inputs * in_channels), bias = numbers(out_channels),
               weight = numbers(out_channels * in_channels * taps),
               grad = numbers(outputs * out_channels);
  Values sums(grad.size()), dweight(weight.size()), dbias(bias.size());
  for (size_t i = 0; i < sums.size(); ++i) {
    sums[i] = bias[i % bias.size()];
    dbias[i % bias.size()] += grad[i];
  }
  each_product(positions, [&](int64_t out, int64_t in, int64_t tap) {
    for (int64_t o = 0; o < out_channels; ++o)
      for (int64_t i = 0; i < in_channels; ++i) {
        const int64_t w = (o * in_channels + i) * taps + tap;
        sums[out * out_channels + o] += x[in * in_channels + i] * weight[w];
        dweight[w] += x[in * in_channels + i] * grad[out * out_channels + o];
      }
  });
  for (double& sum : sums) sum = hardswish(sum);

  const auto s_x = encoded<S>(x), s_weight = encoded<S>(weight), s_bias = encoded<S>(bias),
             s_grad = encoded<S>(grad);
  auto out = unwritten<S>(static_cast<int64_t>(sums.size())),
       s_dweight = unwritten<S>(static_cast<int64_t>(weight.size())),
       s_dbias = unwritten<S>(out_channels);
  auto partials = unwritten<typename Kind<S>::Wide>(evit::cpu::dense_conv3d_workspace(p));
  require(
      evit::cpu::dense_conv3d_forward(p, s_x.data(), s_weight.data(), s_bias.data(), out.data()),
      "dense_conv3d_forward");
  require(evit::cpu::dense_conv3d_weight_gradient(p, s_grad.data(), s_x.data(), partials.data(),
                                                  s_dweight.data(), s_dbias.data()),
          "dense_conv3d_weight_gradient");
  compare(out, sums, Kind<S>::unit, "dense_conv3d");
  compare(s_dweight, dweight, Kind<S>::unit, "dense_conv3d, gradient of weight");
  compare(s_dbias, dbias, Kind<S>::unit, "dense_conv3d, gradient of bias");
}

// ---- linear attention ----

template <class S>
void check_attention(int64_t tokens, int64_t width, int threads) {
  const int64_t batch = 2, heads = 3, row = heads * 3 * width, features = heads * width;
  const Values qkv = numbers(batch * tokens * row), grad = numbers(batch * tokens * features);
  Values out(grad.size()), dqkv(qkv.size());
  const auto relu = [](double x) { return x > 0 ? x : 0; };
  for (int64_t n = 0; n < batch; ++n)
    for (int64_t h = 0; h < heads; ++h) {
      const auto at = [&](int part, int64_t t, int64_t i) {
        return (n * tokens + t) * row + (h * 3 + part) * width + i;
      };
      const auto o_at = [&](int64_t t, int64_t i) {
        return (n * tokens + t) * features + h * width + i;
      };
      Values m(width * width), z(width), dm(width * width), dz(width);
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t i = 0; i < width; ++i) {
          z[i] += relu(qkv[at(1, t, i)]);
          for (int64_t j = 0; j < width; ++j)
            m[i * width + j] += relu(qkv[at(1, t, i)]) * qkv[at(2, t, j)];
        }
      for (int64_t t = 0; t < tokens; ++t) {
        double normaliser = 1e-15, slope = 0;
        for (int64_t i = 0; i < width; ++i) normaliser += relu(qkv[at(0, t, i)]) * z[i];
        for (int64_t j = 0; j < width; ++j) {
          double sum = 0;
          for (int64_t i = 0; i < width; ++i) sum += relu(qkv[at(0, t, i)]) * m[i * width + j];
          out[o_at(t, j)] = sum / normaliser;
          slope -= grad[o_at(t, j)] * sum / normaliser / normaliser;
        }
        for (int64_t i = 0; i < width; ++i) {
          const double q = qkv[at(0, t, i)];
          double sum = slope * z[i];
          for (int64_t j = 0; j < width; ++j) {
            sum += grad[o_at(t, j)] / normaliser * m[i * width + j];
            dm[i * width + j] += relu(q) * grad[o_at(t, j)] / normaliser;
          }
          dz[i] += relu(q) * slope;
          dqkv[at(0, t, i)] = q > 0 ? sum : 0;
        }
      }
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t i = 0; i < width; ++i) {
          double key = dz[i], value = 0;
          for (int64_t j = 0; j < width; ++j) {
            key += dm[i * width + j] * qkv[at(2, t, j)];
            value += dm[j * width + i] * relu(qkv[at(1, t, j)]);
          }
          dqkv[at(1, t, i)] = qkv[at(1, t, i)] > 0 ? key : 0;
          dqkv[at(2, t, i)] = value;
        }
    }

  auto s_qkv = encoded<S>(qkv), s_grad = encoded<S>(grad);
  auto s_out = unwritten<S>(static_cast<int64_t>(out.size())),
       s_dqkv = unwritten<S>(static_cast<int64_t>(dqkv.size()));
  auto state = unwritten<typename Kind<S>::Wide>(batch * heads * (width + 1) * width);
  const auto packed = [&](std::vector<S>& tensor, int part) {
    return evit::HeadsView{tensor.data() + part * width, tokens * row, 3 * width, row};
  };
  evit::AttentionSource source = {};
  source.heads = heads;
  source.q = packed(s_qkv, 0);
  source.k = packed(s_qkv, 1);
  source.v = packed(s_qkv, 2);
  source.output = {s_out.data(), tokens * features, width, features};
  evit::ReluLinearAttentionProblem p = {Kind<S>::dtype, threads, batch, tokens,
                                        width,          1e-15,   1,     &source};
  require(evit::cpu::relu_linear_attention_forward(p, state.data()), "attention forward");
  source.output.data = s_grad.data();
  source.grad_q = packed(s_dqkv, 0);
  source.grad_k = packed(s_dqkv, 1);
  source.grad_v = packed(s_dqkv, 2);
  require(evit::cpu::relu_linear_attention_backward(p, state.data()), "attention backward");
  compare(s_out, out, Kind<S>::unit, "relu_linear_attention");
  compare(s_dqkv, dqkv, 4 * Kind<S>::unit, "relu_linear_attention, gradient");
}

// ---- batch norm ----

template <class S>
void check_batch_norm(bool planar, int64_t channels, int threads) {
  using A = typename Kind<S>::Wide;
  evit::BatchNormActivationProblem p = {};
  p.dtype = Kind<S>::dtype;
  p.activation = Activation::kHardswish;
  p.num_threads = threads;
  p.planar = planar;
  p.batch_moments = true;
  p.batch = 2;
  p.channels = channels;
  const int64_t size[3] = {3, 5, 7}, positions = 3 * 5 * 7, rows = p.batch * positions;
  p.in_strides[3] = channels;
  for (int i = 2; i >= 0; --i) p.in_strides[i] = p.in_strides[i + 1] * size[i];
  for (int i = 0; i < 3; ++i) p.size[i] = size[i];
  p.eps = 1e-5;
  const auto channel = [&](int64_t i) { return planar ? i / positions % channels : i % channels; };

  const Values x = numbers(rows * channels), grad = numbers(rows * channels),
               weight = numbers(channels), bias = numbers(channels);
  Values mean(channels), variance(channels), dweight(channels), dbias(channels), y(x.size()),
      slopes(x.size()), dx(x.size());
  const int64_t count = static_cast<int64_t>(x.size());
  for (int64_t i = 0; i < count; ++i) mean[channel(i)] += x[i] / static_cast<double>(rows);
  for (int64_t i = 0; i < count; ++i)
    variance[channel(i)] += std::pow(x[i] - mean[channel(i)], 2) / static_cast<double>(rows);
  const auto normal = [&](int64_t i) {
    return (x[i] - mean[channel(i)]) / std::sqrt(variance[channel(i)] + p.eps);
  };
  for (int64_t i = 0; i < count; ++i) {
    const double sum = normal(i) * weight[channel(i)] + bias[channel(i)];
    y[i] = hardswish(sum);
    slopes[i] = grad[i] * hardswish_slope(sum);
    dbias[channel(i)] += slopes[i];
    dweight[channel(i)] += slopes[i] * normal(i);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t c = channel(i);
    dx[i] = weight[c] / std::sqrt(variance[c] + p.eps) *
            (slopes[i] - (dbias[c] + normal(i) * dweight[c]) / static_cast<double>(rows));
  }
  const auto s_x = encoded<S>(x), s_grad = encoded<S>(grad);
  const auto a_weight = encoded<A>(weight), a_bias = encoded<A>(bias);
  auto a_mean = unwritten<A>(channels), a_variance = unwritten<A>(channels),
       a_dweight = unwritten<A>(channels), a_dbias = unwritten<A>(channels);
  auto s_y = unwritten<S>(count), s_dx = unwritten<S>(count);
  require(evit::cpu::batch_norm_statistics(p, s_x.data(), a_mean.data(), a_variance.data()),
          "batch_norm_statistics");
  require(evit::cpu::batch_norm_activation_forward(p, s_x.data(), a_mean.data(), a_variance.data(),
                                                   a_weight.data(), a_bias.data(), s_y.data()),
          "batch_norm_activation_forward");
  require(evit::cpu::batch_norm_activation_backward(
              p, s_grad.data(), s_x.data(), a_mean.data(), a_variance.data(), a_weight.data(),
              a_bias.data(), s_dx.data(), a_dweight.data(), a_dbias.data()),
          "batch_norm_activation_backward");
  compare(a_variance, variance, Kind<A>::unit, "batch_norm_activation, variance");
  compare(s_y, y, Kind<S>::unit, "batch_norm_activation");
  compare(s_dx, dx, Kind<S>::unit, "batch_norm_activation, gradient of input");
  compare(a_dweight, dweight, 4 * Kind<A>::unit, "batch_norm_activation, gradient of weight");
  compare(a_dbias, dbias, 4 * Kind<A>::unit, "batch_norm_activation, gradient of bias");
}

template <class S>
void check_all() {
  const Window windows[] = {
      {16, {4, 9, 11}, {3, 3, 3}, {1, 1, 1}, false}, {21, {5, 8, 7}, {5, 5, 5}, {1, 1, 1}, true},
      {32, {3, 7, 16}, {3, 3, 3}, {1, 2, 2}, true},  {8, {6, 6, 6}, {3, 3, 3}, {2, 2, 2}, false},
      {5, {1, 3, 3}, {3, 1, 1}, {1, 1, 1}, false},   {24, {2, 6, 10}, {1, 3, 3}, {1, 1, 1}, false},
  };
  for (int threads : {1, 3}) {
    for (const Window& window : windows) {
      check_depthwise<S>(window, threads);
      check_dense<S>(3, window.channels, window, threads);
      check_pointwise_depthwise<S>(12, window, threads);
    }
    for (int64_t width : {16, 32, 7})
      for (int64_t tokens : {1, 70, 700}) check_attention<S>(tokens, width, threads);
    check_pointwise<S>(50, 32, 48, 1, threads);
    check_pointwise<S>(131, 24, 16, 2, threads);
    check_pointwise<S>(9, 7, 5, 1, threads);
    for (bool planar : {false, true})
      for (int64_t channels : {16, 21}) check_batch_norm<S>(planar, channels, threads);
  }
  std::printf("  %s\n", Kind<S>::name);
}

}  // namespace

int main() {
  using evit::cpu::InstructionSet;
  for (auto set : {InstructionSet::kBaseline, InstructionSet::kX86V3, InstructionSet::kX86V4}) {
    if (!evit::cpu::set_instruction_set(set)) continue;
    std::printf("%s\n", evit::cpu::name_of(set));
    check_all<float>();
    check_all<double>();
    check_all<Half>();
    check_all<BFloat16>();
  }
  if (failures) std::printf("%d comparisons failed\n", failures);
  return failures ? 1 : 0;
}
