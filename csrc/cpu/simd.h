// Vectors of any width on the compiler's vector extensions: one source for SSE2, AVX2, AVX-512,
// NEON.
//
// Everything here has internal linkage on purpose: the same source is compiled once per instruction
// set, and a symbol shared between those objects could bring AVX-512 code to a machine without it.
// For the same reason nothing here, and nothing that includes it, instantiates standard templates.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "evit/common.h"

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define EVIT_INLINE __attribute__((always_inline)) inline
#define EVIT_UNROLL _Pragma("GCC unroll 32")

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
// Vector registers: what a kernel keeps in them is chosen by their number.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif
constexpr int64_t kLine = 64;  // bytes of a line of a cache

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T, int L>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * L)));
};
template <class T, int L>
using Vector = typename VectorOf<T, L>::type;

template <class A, class B>
constexpr bool kSame = false;
template <class A>
constexpr bool kSame<A, A> = true;

// The type in which sums are kept, and how many of them fill one register.
template <class S>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class S>
using Acc = typename Accumulator<S>::type;
template <class S>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Acc<S>));

template <class V>
EVIT_INLINE V load_raw(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

// ---- conversions between storage and accumulation ----

EVIT_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  uint32_t bits;
  if (magnitude >= 0x0f800000u) {
    bits = magnitude | 0x7f800000u;  // infinity and NaN
  } else {
    // Scaling by 2^112 moves the exponent bias from 15 to 127 and renormalises subnormals.
    float scaled;
    std::memcpy(&scaled, &magnitude, sizeof scaled);
    scaled *= 0x1p112f;
    std::memcpy(&bits, &scaled, sizeof bits);
  }
  bits |= sign;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

EVIT_INLINE uint16_t float_to_half(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more round up
  if (bits < 0x38800000u) {
    // Subnormal: adding 0.5 aligns the unit in the last place with 2^-24, rounding to even.
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    uint32_t aligned;
    std::memcpy(&aligned, &magnitude, sizeof aligned);
    return static_cast<uint16_t>(sign | (aligned - 0x3f000000u));
  }
  const uint32_t rounded = bits + 0xfffu + ((bits >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

template <int L>
EVIT_INLINE Vector<float, L> load(const float* p) {
  return load_raw<Vector<float, L>>(p);
}
template <int L>
EVIT_INLINE Vector<double, L> load(const double* p) {
  return load_raw<Vector<double, L>>(p);
}
template <int L>
EVIT_INLINE Vector<float, L> load(const BFloat16* p) {
  const auto narrow = load_raw<Vector<uint16_t, L>>(p);
  const auto wide = __builtin_convertvector(narrow, Vector<uint32_t, L>) << 16;
  return load_raw<Vector<float, L>>(&wide);
}
template <int L>
EVIT_INLINE Vector<float, L> load(const Half* p) {
  Vector<float, L> v;
#if defined(__AVX512F__)
  if constexpr (L == 16) {
    const __m512 wide = _mm512_cvtph_ps(load_raw<__m256i>(p));
    std::memcpy(&v, &wide, sizeof v);
    return v;
  }
#endif
#if defined(__F16C__) || defined(__AVX512F__)
  if constexpr (L == 8) {
    const __m256 wide = _mm256_cvtph_ps(load_raw<__m128i>(p));
    std::memcpy(&v, &wide, sizeof v);
    return v;
  }
#elif defined(__aarch64__)
  if constexpr (L == 4) {
    const float32x4_t wide = vcvt_f32_f16(load_raw<float16x4_t>(p));
    std::memcpy(&v, &wide, sizeof v);
    return v;
  }
#endif
  for (int i = 0; i < L; ++i) v[i] = half_to_float(p[i].bits);
  return v;
}

template <int L>
EVIT_INLINE void store(float* p, Vector<float, L> v) {
  std::memcpy(p, &v, sizeof v);
}
template <int L>
EVIT_INLINE void store(double* p, Vector<double, L> v) {
  std::memcpy(p, &v, sizeof v);
}
// Whether there are stores past the caches, of vectors that fill aligned lines. What they write is
// seen by others after `fence`.
#if defined(__AVX512F__)
template <class S, int L>
constexpr bool kStoresPast = sizeof(S) == 4 && L == 16;
#else
template <class S, int L>
constexpr bool kStoresPast = false;
#endif

template <class S, int L>
EVIT_INLINE void store_past([[maybe_unused]] S* p, [[maybe_unused]] Vector<Acc<S>, L> v) {
#if defined(__AVX512F__)
  if constexpr (kStoresPast<S, L>) _mm512_stream_ps(p, load_raw<__m512>(&v));
#endif
}

inline void fence() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

template <int L>
EVIT_INLINE void store(BFloat16* p, Vector<float, L> v) {
  using U32 = Vector<uint32_t, L>;
  const U32 bits = load_raw<U32>(&v);
  const U32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
  // The lowest bits of a NaN may be all that makes it one: rounding must not turn it into infinity.
  const U32 result = (bits & 0x7fffffffu) > 0x7f800000u ? ((bits >> 16) | 0x40u) : (rounded >> 16);
  const auto narrow = __builtin_convertvector(result, Vector<uint16_t, L>);
  std::memcpy(p, &narrow, sizeof narrow);
}
template <int L>
EVIT_INLINE void store(Half* p, Vector<float, L> v) {
#if defined(__AVX512F__)
  if constexpr (L == 16) {
    const __m256i narrow = _mm512_cvtps_ph(load_raw<__m512>(&v), _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(p, &narrow, sizeof narrow);
    return;
  }
#endif
#if defined(__F16C__) || defined(__AVX512F__)
  if constexpr (L == 8) {
    const __m128i narrow = _mm256_cvtps_ph(load_raw<__m256>(&v), _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(p, &narrow, sizeof narrow);
    return;
  }
#elif defined(__aarch64__)
  if constexpr (L == 4) {
    const float16x4_t narrow = vcvt_f16_f32(load_raw<float32x4_t>(&v));
    std::memcpy(p, &narrow, sizeof narrow);
    return;
  }
#endif
  for (int i = 0; i < L; ++i) p[i].bits = float_to_half(v[i]);
}

// Keeps a loaded value in a register. Compilers otherwise fold the load into each of its uses, and
// a loop that could run at the speed of its products runs at the speed of its loads.
template <class V>
EVIT_INLINE void keep(V& value) {
#if defined(__AVX2__)
  asm("" : "+v"(value));
#elif defined(__aarch64__)
  if constexpr (sizeof(V) == 16) asm("" : "+w"(value));
#else
  (void)value;
#endif
}

template <int L, class A>
EVIT_INLINE Vector<A, L> broadcast(A value) {
  return value - Vector<A, L>{};  // keeps -0: value - 0
}

// The larger of x and `low`, the smaller of x and `high`, and the positive part. NaN stays NaN, as
// with PyTorch, which a maximum as such would hide: the processor's answers its second operand
// where one is NaN, or both are zeros. As comparisons they are two instructions, in a row.
template <class V>
EVIT_INLINE V at_least(V x, V low) {
#if defined(__AVX512F__)
  if constexpr (kSame<V, Vector<float, 16>>) return _mm512_max_ps(low, x);
#endif
#if defined(__AVX2__) && defined(__F16C__)
  if constexpr (kSame<V, Vector<float, 8>>) return _mm256_max_ps(low, x);
#endif
  return x < low ? low : x;
}
template <class V>
EVIT_INLINE V at_most(V x, V high) {
#if defined(__AVX512F__)
  if constexpr (kSame<V, Vector<float, 16>>) return _mm512_min_ps(high, x);
#endif
#if defined(__AVX2__) && defined(__F16C__)
  if constexpr (kSame<V, Vector<float, 8>>) return _mm256_min_ps(high, x);
#endif
  return x > high ? high : x;
}
template <class V>
EVIT_INLINE V positive_part(V x) {
  return at_least(x, V{});
}

// Whether any lane of a is less than that of b.
template <class V>
EVIT_INLINE bool any_less(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (kSame<V, Vector<float, 16>>) return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) != 0;
#endif
  bool any = false;
  for (size_t i = 0; i < sizeof(V) / sizeof(a[0]); ++i) any |= a[i] < b[i];
  return any;
}

// Loads the first `count` of L elements, the rest 0.
template <int L, class S>
EVIT_INLINE Vector<Acc<S>, L> load_part(const S* p, int count) {
  if (count == L) return load<L>(p);
  S lanes[L] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return load<L>(static_cast<const S*>(lanes));
}

template <int L, class S>
EVIT_INLINE void store_part(S* p, Vector<Acc<S>, L> v, int count) {
  if (count == L) return store<L>(p, v);
  S lanes[L];
  store<L>(static_cast<S*>(lanes), v);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

// A number of lanes or columns as a type, for generic lambdas.
template <int N>
struct Width {
  static constexpr int value = N;
};

// The numbers 0 .. N-1 as a type.
template <int... I>
struct Lanes {};
template <int N, int... I>
struct LanesUpTo : LanesUpTo<N - 1, N - 1, I...> {};
template <int... I>
struct LanesUpTo<0, I...> {
  using type = Lanes<I...>;
};

// Calls f(Width<L>{}, offset) over [0, n) with the widest vectors that fit.
template <class S, class F>
EVIT_INLINE void for_each_slab(int64_t n, F&& f) {
  constexpr int wide = kLanes<S>, narrow = wide == 16 ? 8 : wide;
  int64_t c = 0;
  for (; c + wide <= n; c += wide) f(Width<wide>{}, c);
  if constexpr (narrow < wide)
    if (c + narrow <= n) f(Width<narrow>{}, c);
  // What is left is counted from n: a compiler that knows n sees that it is nothing, and does not
  // warn of what it would be.
  for (c = n / narrow * narrow; c < n; ++c) f(Width<1>{}, c);
}

// Calls f(Storage<S>{}) with the storage type of a dtype code.
template <class S>
struct Storage {
  using type = S;
};

template <class F>
auto with_storage(evit::DType dtype, F&& f) {
  switch (dtype) {
    case evit::DType::kFloat16:
      return f(Storage<Half>{});
    case evit::DType::kBFloat16:
      return f(Storage<BFloat16>{});
    case evit::DType::kFloat64:
      return f(Storage<double>{});
    case evit::DType::kFloat32:
      break;
  }
  return f(Storage<float>{});
}

}  // namespace
