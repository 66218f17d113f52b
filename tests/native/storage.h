// Storage types as the self-check sees them: numbers written exactly, results read back as double.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "evit/common.h"

namespace selfcheck {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline double decode(float x) {
  return x;
}
inline double decode(double x) {
  return x;
}
inline double decode(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline double decode(Half x) {
  const int exponent = x.bits >> 10 & 31;
  const double fraction = (x.bits & 1023) / 1024.0;
  double value =
      exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15);
  if (exponent == 31) value = fraction == 0 ? INFINITY : NAN;
  return x.bits & 0x8000 ? -value : value;
}

// For numbers that the type holds exactly.
inline void encode(double x, float* to) {
  *to = static_cast<float>(x);
}
inline void encode(double x, double* to) {
  *to = x;
}
inline void encode(double x, BFloat16* to) {
  const float value = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  to->bits = static_cast<uint16_t>(bits >> 16);
}
inline void encode(double x, Half* to) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (x == 0) {
    to->bits = sign;
    return;
  }
  int exponent;
  const double fraction = std::frexp(std::fabs(x), &exponent);  // in [0.5, 1)
  to->bits = static_cast<uint16_t>(sign | (exponent + 14) << 10 |
                                   static_cast<int>((2 * fraction - 1) * 1024));
}

template <class S>
struct Kind;
template <>
struct Kind<float> {
  using Wide = float;
  static constexpr evit::DType dtype = evit::DType::kFloat32;
  static constexpr double unit = 0x1p-23;
  static constexpr const char* name = "float32";
};
template <>
struct Kind<double> {
  using Wide = double;
  static constexpr evit::DType dtype = evit::DType::kFloat64;
  static constexpr double unit = 0x1p-52;
  static constexpr const char* name = "float64";
};
template <>
struct Kind<Half> {
  using Wide = float;
  static constexpr evit::DType dtype = evit::DType::kFloat16;
  static constexpr double unit = 0x1p-10;
  static constexpr const char* name = "float16";
};
template <>
struct Kind<BFloat16> {
  using Wide = float;
  static constexpr evit::DType dtype = evit::DType::kBFloat16;
  static constexpr double unit = 0x1p-7;
  static constexpr const char* name = "bfloat16";
};

// Multiples of 1/32 in [-2, 2): every storage type holds them exactly.
inline std::vector<double> numbers(int64_t count) {
  static std::mt19937 generator(7);
  std::vector<double> values(static_cast<size_t>(count));
  for (double& value : values) value = static_cast<int>(generator() % 128 - 64u) / 32.0;
  return values;
}

template <class S>
std::vector<S> encoded(const std::vector<double>& values) {
  std::vector<S> result(values.size());
  for (size_t i = 0; i < values.size(); ++i) encode(values[i], &result[i]);
  return result;
}

// Memory that nobody has written yet reads as NaN in every type.
template <class S>
std::vector<S> unwritten(int64_t count) {
  std::vector<S> result(static_cast<size_t>(count));
  std::memset(static_cast<void*>(result.data()), 0xff, result.size() * sizeof(S));
  return result;
}

}  // namespace selfcheck
