// Vectors that a thread loads and stores at once.
#pragma once

#include <cstdint>

#include "launch.h"

namespace evit::cuda {

constexpr int kPackBytes = 16;  // the most that one instruction moves

template <class S, int N>
struct alignas(N * sizeof(S)) Pack {
  S values[N];
};

template <class S>
constexpr int kPackWidth = kPackBytes / static_cast<int>(sizeof(S));

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kPackBytes == 0;
}

}  // namespace evit::cuda
