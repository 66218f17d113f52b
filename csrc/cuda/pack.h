// Vectors that a thread loads and stores at once.
#pragma once

#include <cstdint>
#include <cstring>

#include "launch.h"

namespace evit::cuda {

constexpr int kPackBytes = 16;  // the most that one instruction moves

template <class S, int N>
struct alignas(N * sizeof(S)) Pack {
  S values[N];
};

template <class S>
constexpr int kPackWidth = kPackBytes / static_cast<int>(sizeof(S));

// Stores a vector to global memory. Left to itself, nvcc takes some vectors apart.
template <class S, int N>
EVIT_HD void store(S* to, const Pack<S, N>& pack) {
#if defined(__CUDA_ARCH__)
  const auto at_once = [&](auto bits) {
    memcpy(&bits, &pack, sizeof(bits));
    __stwb(reinterpret_cast<decltype(bits)*>(to), bits);
  };
  if constexpr (sizeof(pack) == sizeof(uint4)) return at_once(uint4{});
  if constexpr (sizeof(pack) == sizeof(uint2)) return at_once(uint2{});
#endif
  *reinterpret_cast<Pack<S, N>*>(to) = pack;
}

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kPackBytes == 0;
}

}  // namespace evit::cuda
