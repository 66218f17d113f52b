// Storage types and activations, one number at a time. NaN and infinity come out as PyTorch brings
// them out.
#pragma once

#include <cmath>

#include "launch.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include "../cpu/simd.h"
#endif

namespace evit::cuda {

#if defined(__CUDACC__)
using Half = __half;
using BFloat16 = __nv_bfloat16;

EVIT_HD float read(const Half* p) {
  return __half2float(*p);
}
EVIT_HD float read(const BFloat16* p) {
  return __bfloat162float(*p);
}
EVIT_HD void write(Half* p, float x) {
  *p = __float2half_rn(x);
}
EVIT_HD void write(BFloat16* p, float x) {
  *p = __float2bfloat16_rn(x);
}
#else
using ::BFloat16;
using ::Half;

inline float read(const Half* p) {
  return ::half_to_float(p->bits);
}
inline float read(const BFloat16* p) {
  return ::load<1>(p)[0];
}
inline void write(Half* p, float x) {
  ::store<1>(p, ::broadcast<1>(x));
}
inline void write(BFloat16* p, float x) {
  ::store<1>(p, ::broadcast<1>(x));
}
#endif
EVIT_HD float read(const float* p) {
  return *p;
}
EVIT_HD double read(const double* p) {
  return *p;
}
EVIT_HD void write(float* p, float x) {
  *p = x;
}
EVIT_HD void write(double* p, double x) {
  *p = x;
}

// The type in which sums of a storage type are kept.
template <class S>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <class S>
using Sum = typename SumOf<S>::type;

// Calls f(S{}) with the storage type of a dtype code.
template <class F>
Status with_storage(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat16:
      return f(Half{});
    case DType::kBFloat16:
      return f(BFloat16{});
    case DType::kFloat64:
      return f(double{});
  }
  return {"unknown dtype"};
}

// A maximum would hide NaN; these keep it, as PyTorch does.
template <class A>
EVIT_HD A relu(A x) {
  return x < A(0) ? A(0) : x;
}
template <class A>
EVIT_HD A clamp(A x, A low, A high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// The sigmoid and its complement 1 - sigmoid, which by subtraction would lose its digits where the
// sigmoid is near 1.
template <class A>
struct Sigmoid {
  A value;
  A complement;

  EVIT_HD explicit Sigmoid(A x) {
    const A far = sizeof(A) == 4 ? A(87) : A(700);
    const A e = exp(-x);
    value = x < -far ? A(0) : A(1) / (A(1) + e);
    complement = x < -far ? A(1) : x > far ? A(0) : e * value;
  }
};

template <class A>
struct Factors {
  static constexpr A kRootHalf = A(0.70710678118654752440);   // 1 / sqrt(2)
  static constexpr A kDensity = A(0.39894228040143267794);    // 1 / sqrt(2 pi)
  static constexpr A kTanhScale = A(1.59576912160573071176);  // 2 sqrt(2 / pi)
  static constexpr A kTanhCubic = A(0.044715);
};

template <class A>
EVIT_HD A activate(A x, Activation activation) {
  using K = Factors<A>;
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return relu(x);
    case Activation::kRelu6:
      return clamp(x, A(0), A(6));
    case Activation::kHardswish:
      return x * clamp(x + A(3), A(0), A(6)) * (A(1) / A(6));
    case Activation::kGelu:
      return x * A(0.5) * (A(1) + erf(x * K::kRootHalf));
    case Activation::kGeluTanh:  // 0.5 x (1 + tanh u) = x sigmoid(2u)
      return x * Sigmoid<A>(K::kTanhScale * (x + K::kTanhCubic * x * x * x)).value;
    case Activation::kSilu:
      return x * Sigmoid<A>(x).value;
  }
  return x;
}

// `grad` times the derivative of the activation at `x`; at the kinks PyTorch's.
template <class A>
EVIT_HD A differentiate(A grad, A x, Activation activation) {
  using K = Factors<A>;
  switch (activation) {
    case Activation::kNone:
      return grad;
    case Activation::kRelu:
      return x <= A(0) ? A(0) : grad;
    case Activation::kRelu6:
      return x <= A(0) || x >= A(6) ? A(0) : grad;
    case Activation::kHardswish:
      return x <= A(-3) ? A(0) : x >= A(3) ? grad : grad * (x * (A(1) / A(3)) + A(0.5));
    case Activation::kGelu: {
      const A cdf = A(0.5) * (A(1) + erf(x * K::kRootHalf));
      return grad * (cdf + x * (K::kDensity * exp(x * x * A(-0.5))));
    }
    case Activation::kGeluTanh: {
      const A square = x * x;
      const Sigmoid<A> s(K::kTanhScale * (x + K::kTanhCubic * square * x));
      const A slope = K::kTanhScale * (A(1) + A(3) * K::kTanhCubic * square);
      // The product with the smaller one first: x * slope alone may be infinite.
      return grad * (s.value + x * s.value * s.complement * slope);
    }
    case Activation::kSilu: {
      const Sigmoid<A> s(x);
      return grad * (s.value + x * s.value * s.complement);
    }
  }
  return grad;
}

}  // namespace evit::cuda
