// Activations and their derivatives on vectors. NaN and infinity come out as PyTorch brings them
// out.
#pragma once

#include "simd.h"

namespace {

using evit::Activation;

// exp to about one unit in the last place: 2^n times a polynomial on |r| <= ln2 / 2 (Cephes, expf).
template <int L>
EVIT_INLINE Vector<float, L> exp_of(Vector<float, L> x) {
  using V = Vector<float, L>;
  using I = Vector<int32_t, L>;
  const V high = broadcast<L>(88.7f), low = broadcast<L>(-88.0f);  // give infinity and 0
  V clamped = x > high ? high : x;
  clamped = clamped < low ? low : clamped;
  const V magic = broadcast<L>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V n = (clamped * 1.44269504088896341f + magic) - magic;
  const V r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const I exponent = (__builtin_convertvector(n, I) + 127) << 23;
  const V result = p * load_raw<V>(&exponent);
  return x != x ? x : result;
}
template <int L>
EVIT_INLINE Vector<double, L> exp_of(Vector<double, L> x) {
  for (int i = 0; i < L; ++i) x[i] = std::exp(x[i]);
  return x;
}

// erf: the rational minimax on [-4, 4] of Eigen's generic_fast_erf_float; exact to a few units.
template <int L>
EVIT_INLINE Vector<float, L> erf_of(Vector<float, L> value) {
  using V = Vector<float, L>;
  const V high = broadcast<L>(4.0f), low = broadcast<L>(-4.0f);
  V x = value > high ? high : value;
  x = x < low ? low : x;
  const V s = x * x;
  V p = s * -2.72614225801306e-10f + 2.77068142495902e-08f;
  p = p * s + -2.10102402082508e-06f;
  p = p * s + -5.69250639462346e-05f;
  p = p * s + -7.34990630326855e-04f;
  p = p * s + -2.95459980854025e-03f;
  p = p * s + -1.60960333262415e-02f;
  V q = s * -1.45660718464996e-05f + -2.13374055278905e-04f;
  q = q * s + -1.68282697438203e-03f;
  q = q * s + -7.37332916720468e-03f;
  q = q * s + -1.42647390514189e-02f;
  // Beyond 4 it is 1 to the last bit, exactly: so that gelu(-inf) is NaN as in PyTorch.
  const V one = broadcast<L>(1.0f);
  const V result = x * p / q;
  const V upper = value >= high ? one : result;
  return value <= low ? -one : upper;
}
template <int L>
EVIT_INLINE Vector<double, L> erf_of(Vector<double, L> x) {
  for (int i = 0; i < L; ++i) x[i] = std::erf(x[i]);
  return x;
}

template <class A, int L>
EVIT_INLINE Vector<A, L> sigmoid_of(Vector<A, L> x) {
  return A(1) / (A(1) + exp_of<L>(-x));
}

// The sigmoid and its complement 1 - sigmoid, which by subtraction would lose its digits where the
// sigmoid is near 1. Far out they are 0 and 1 exactly, whatever large number multiplies them.
template <class A, int L>
struct SigmoidPair {
  Vector<A, L> value;
  Vector<A, L> complement;

  EVIT_INLINE explicit SigmoidPair(Vector<A, L> x) {
    using V = Vector<A, L>;
    constexpr A kFar = sizeof(A) == 4 ? A(87) : A(700);
    const V far = broadcast<L>(kFar), zero = {}, one = zero + A(1);
    const V e = exp_of<L>(-x);
    value = one / (one + e);
    complement = e * value;
    value = x < -far ? zero : value;
    complement = x < -far ? one : complement;
    complement = x > far ? zero : complement;
  }
};

template <class A, int L>
EVIT_INLINE Vector<A, L> clamp_of(Vector<A, L> x, A low, A high) {
  return at_most(at_least(x, broadcast<L>(low)), broadcast<L>(high));
}

template <class A>
struct Constants {
  static constexpr A kRootHalf = A(0.70710678118654752440);   // 1 / sqrt(2)
  static constexpr A kDensity = A(0.39894228040143267794);    // 1 / sqrt(2 pi)
  static constexpr A kTanhScale = A(1.59576912160573071176);  // 2 sqrt(2 / pi)
  static constexpr A kTanhCubic = A(0.044715);
};

// The activations that are a few instructions, inlined over N vectors. Returns false for the
// others.
template <class A, int L, int N>
EVIT_INLINE bool activate_inline(Vector<A, L> (&v)[N], Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return true;
    case Activation::kRelu:
      EVIT_UNROLL
      for (int i = 0; i < N; ++i) v[i] = positive_part(v[i]);
      return true;
    case Activation::kHardswish:
      EVIT_UNROLL
      for (int i = 0; i < N; ++i)
        v[i] = v[i] * clamp_of<A, L>(v[i] + A(3), A(0), A(6)) * (A(1) / A(6));
      return true;
    default:
      return false;
  }
}

// Activates `count` vectors in place. Kept out of line: one copy serves every convolution block.
template <class A, int L>
__attribute__((noinline)) void activate(Vector<A, L>* v, int count, Activation activation) {
  using V = Vector<A, L>;
  using K = Constants<A>;
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      for (int i = 0; i < count; ++i) v[i] = positive_part(v[i]);
      return;
    case Activation::kRelu6:
      for (int i = 0; i < count; ++i) v[i] = clamp_of<A, L>(v[i], A(0), A(6));
      return;
    case Activation::kHardswish:
      for (int i = 0; i < count; ++i)
        v[i] = v[i] * clamp_of<A, L>(v[i] + A(3), A(0), A(6)) * (A(1) / A(6));
      return;
    case Activation::kGelu:
      for (int i = 0; i < count; ++i)
        v[i] = v[i] * A(0.5) * (A(1) + erf_of<L>(v[i] * K::kRootHalf));
      return;
    case Activation::kGeluTanh:
      // 0.5 x (1 + tanh u) = x sigmoid(2u).
      for (int i = 0; i < count; ++i) {
        const V u = K::kTanhScale * (v[i] + K::kTanhCubic * v[i] * v[i] * v[i]);
        v[i] = v[i] * sigmoid_of<A, L>(u);
      }
      return;
    case Activation::kSilu:
      for (int i = 0; i < count; ++i) v[i] = v[i] * sigmoid_of<A, L>(v[i]);
      return;
  }
}

template <class A, int L>
EVIT_INLINE Vector<A, L> relu_gradient(Vector<A, L> grad, Vector<A, L> v) {
  return v <= Vector<A, L>{} ? Vector<A, L>{} : grad;
}

template <class A, int L>
EVIT_INLINE Vector<A, L> hardswish_gradient(Vector<A, L> grad, Vector<A, L> v) {
  using V = Vector<A, L>;
  const V three = broadcast<L>(A(3)), zero = {};
  const V inside = grad * (v * (A(1) / A(3)) + A(0.5));
  const V right = v >= three ? grad : inside;
  return v <= -three ? zero : right;
}

// The derivatives that are a few instructions, inlined over N vectors. Returns false for the
// others.
template <class A, int L, int N>
EVIT_INLINE bool differentiate_inline(Vector<A, L> (&grad)[N], const Vector<A, L> (&v)[N],
                                      Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return true;
    case Activation::kRelu:
      EVIT_UNROLL
      for (int i = 0; i < N; ++i) grad[i] = relu_gradient<A, L>(grad[i], v[i]);
      return true;
    case Activation::kHardswish:
      EVIT_UNROLL
      for (int i = 0; i < N; ++i) grad[i] = hardswish_gradient<A, L>(grad[i], v[i]);
      return true;
    default:
      return false;
  }
}

// Multiplies `grad` by the derivative of the activation at `v`, `count` vectors in place.
// At the kinks the derivative is PyTorch's: relu'(0) = 0, relu6' is 0 at 0 and 6.
template <class A, int L>
__attribute__((noinline)) void differentiate(Vector<A, L>* grad, const Vector<A, L>* v, int count,
                                             Activation activation) {
  using V = Vector<A, L>;
  using K = Constants<A>;
  const V zero = {};
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      for (int i = 0; i < count; ++i) grad[i] = relu_gradient<A, L>(grad[i], v[i]);
      return;
    case Activation::kRelu6: {
      const V six = broadcast<L>(A(6));
      for (int i = 0; i < count; ++i) {
        grad[i] = v[i] <= zero ? zero : grad[i];
        grad[i] = v[i] >= six ? zero : grad[i];
      }
      return;
    }
    case Activation::kHardswish:
      for (int i = 0; i < count; ++i) grad[i] = hardswish_gradient<A, L>(grad[i], v[i]);
      return;
    case Activation::kGelu:
      for (int i = 0; i < count; ++i) {
        const V cdf = A(0.5) * (A(1) + erf_of<L>(v[i] * K::kRootHalf));
        const V pdf = K::kDensity * exp_of<L>(v[i] * v[i] * A(-0.5));
        grad[i] = grad[i] * (cdf + v[i] * pdf);
      }
      return;
    case Activation::kGeluTanh:
      for (int i = 0; i < count; ++i) {
        const V square = v[i] * v[i];
        const SigmoidPair<A, L> s(K::kTanhScale * (v[i] + K::kTanhCubic * square * v[i]));
        const V slope = K::kTanhScale * (A(1) + A(3) * K::kTanhCubic * square);
        // The product with the smaller one first: v * slope alone may be infinite.
        grad[i] = grad[i] * (s.value + v[i] * s.value * s.complement * slope);
      }
      return;
    case Activation::kSilu:
      for (int i = 0; i < count; ++i) {
        const SigmoidPair<A, L> s(v[i]);
        grad[i] = grad[i] * (s.value + v[i] * s.value * s.complement);
      }
      return;
  }
}

}  // namespace
