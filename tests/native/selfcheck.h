// What all checks share: comparisons, and windows of convolutions.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "evit/depthwise_conv3d.h"
#include "storage.h"

namespace {

using namespace selfcheck;
using evit::Activation;
using Values = std::vector<double>;

int failures = 0;

void require(evit::Status status, const char* what) {
  if (status.ok()) return;
  std::printf("%s: %s\n", what, status.message);
  std::exit(1);
}

// The norm of the difference, relative to that of the expected values, in units of the type.
template <class T>
void compare(const std::vector<T>& got, const Values& expected, double unit, const char* what) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(decode(got[i]) - expected[i], 2);
    size += expected[i] * expected[i];
  }
  const double units = std::sqrt(difference / size) / unit;
  if (units <= 16) return;  // false for NaN too
  std::printf("FAILED %s: %.3g units in the last place\n", what, units);
  ++failures;
}

double hardswish(double x) {
  return x * std::fmin(std::fmax(x + 3, 0.0), 6.0) / 6;
}

double hardswish_slope(double x) {
  return x <= -3 ? 0 : x >= 3 ? 1 : x / 3 + 0.5;
}

struct Window {
  int64_t channels, in[3], kernel[3], stride[3];
  bool clamp;
};

// Two clips in channels-last order, padded so that stride 1 keeps the size.
template <class S>
evit::DepthwiseConv3dProblem problem_of(const Window& window, int threads) {
  evit::DepthwiseConv3dProblem p = {};
  p.dtype = Kind<S>::dtype;
  p.activation = Activation::kHardswish;
  p.clamp_time = window.clamp;
  p.num_threads = threads;
  p.batch = 2;
  p.channels = window.channels;
  for (int axis = 0; axis < 3; ++axis) {
    p.in[axis] = window.in[axis];
    p.kernel[axis] = window.kernel[axis];
    p.stride[axis] = window.stride[axis];
    p.padding[axis] = window.kernel[axis] / 2;
    p.dilation[axis] = 1;
    p.out[axis] = (p.in[axis] + 2 * p.padding[axis] - p.kernel[axis]) / p.stride[axis] + 1;
  }
  p.in_strides[3] = p.channels;
  for (int i = 2; i >= 0; --i) p.in_strides[i] = p.in_strides[i + 1] * p.in[i];
  return p;
}

}  // namespace
