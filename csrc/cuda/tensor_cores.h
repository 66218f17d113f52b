// Products of small matrices by a warp on its tensor cores, in TF32: numbers with the range of
// float and 11 significant bits. Whatever float16 and bfloat16 hold is such a number, so products
// of those are exact; a float is taken as the sum of two.
#pragma once

#include <cstring>

#include "block.h"

namespace evit::cuda {

// Where the elements of a 16x8 product lie in a warp, for m16n8k8 (PTX ISA, "Matrix Fragments for
// mma.m16n8k8", .tf32): lane = 4 * group + member.
struct Lane {
  int group;
  int member;

  EVIT_HD explicit Lane(int thread) : group(thread % kWarpThreads / 4), member(thread % 4) {}
};

// Rows (group, group + 8) x columns (member, member + 4) of the left matrix, of 16x8.
struct LeftFragment {
  float values[4];
};
// Rows (member, member + 4) x column `group` of the right matrix, of 8x8.
struct RightFragment {
  float values[2];
};
// Rows (group, group + 8) x columns (2 * member, 2 * member + 1) of the sum, of 16x8.
struct SumFragment {
  float values[4];
};

EVIT_HD int sum_row(const Lane& lane, int i) {
  return lane.group + i / 2 * 8;
}
EVIT_HD int sum_column(const Lane& lane, int i) {
  return 2 * lane.member + i % 2;
}

// The part of a float that TF32 holds: its first 11 bits.
EVIT_HD float coarse(float x) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(__float_as_uint(x) & 0xffffe000u);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits &= 0xffffe000u;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
#endif
}

// What is left of it. Infinity and NaN have no rest.
EVIT_HD float rest(float x) {
  const float difference = x - coarse(x);
  return difference == difference ? difference : 0.0f;
}

// sum += left * right, for every warp of the block. The arguments give a thread's fragments.
template <class Sum, class Left, class Right>
EVIT_HD void multiply(const Block& block, const Sum& sum, const Left& left, const Right& right) {
#if defined(__CUDA_ARCH__)
  block.apart([&](int thread) {
    SumFragment& c = sum(thread);
    const LeftFragment a = left(thread);
    const RightFragment b = right(thread);
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
        : "r"(__float_as_uint(a.values[0])), "r"(__float_as_uint(a.values[1])),
          "r"(__float_as_uint(a.values[2])), "r"(__float_as_uint(a.values[3])),
          "r"(__float_as_uint(b.values[0])), "r"(__float_as_uint(b.values[1])));
  });
#elif !defined(__CUDACC__)
  for (int warp = 0; warp < kWarps; ++warp) {
    float a[16][8], b[8][8];
    for (int t = warp * kWarpThreads; t < (warp + 1) * kWarpThreads; ++t) {
      const Lane lane(t);
      const LeftFragment l = left(t);
      const RightFragment r = right(t);
      for (int i = 0; i < 4; ++i)
        a[lane.group + i % 2 * 8][lane.member + i / 2 * 4] = coarse(l.values[i]);
      for (int i = 0; i < 2; ++i) b[lane.member + i * 4][lane.group] = coarse(r.values[i]);
    }
    for (int t = warp * kWarpThreads; t < (warp + 1) * kWarpThreads; ++t) {
      const Lane lane(t);
      for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 8; ++k)
          sum(t).values[i] += a[sum_row(lane, i)][k] * b[k][sum_column(lane, i)];
    }
  }
  (void)block;
#endif
}

}  // namespace evit::cuda
