// Tiles of the tokens of a head in shared memory, and the two products that attention is made of:
// X^T Y, summed over the tokens of many tiles, and X M for a tile X and the matrix M of a head. On
// tensor cores for 16-bit storage, else on the units for float.
#pragma once

#include "pack.h"
#include "relu_linear_attention_index.h"
#include "scalar.h"
#include "tensor_cores.h"

namespace evit::cuda {

// Tokens of a tile. Wide heads have fewer, so that what a block shares stays below 48 KiB.
template <int D>
constexpr int kTileTokens = D == 64 ? 32 : 64;

// Rows are padded, which spreads columns over the banks: by 4 for those that are read in rows of 8
// and columns of 4 at a time, by 8 for the opposite.
template <int D, int Pad>
struct Tile {
  static constexpr int kWidth = D;
  alignas(kPackBytes) SharedFloat rows[kTileTokens<D>][D + Pad];
};

template <int D>
struct Square {
  alignas(kPackBytes) SharedFloat rows[D][D + 8];
};

// A thread's share of a tile in memory: whole vectors. It has the same features in every row that
// it touches, so that sums over tokens can be kept along the way.
template <class S, int D>
struct Share {
  static constexpr int V = kPackWidth<S>;
  static constexpr int kPerRow = D / V;
  static constexpr int kRowsAtOnce = kBlockThreads / kPerRow;
  static constexpr int kCount =
      kTileTokens<D> > kRowsAtOnce ? kTileTokens<D> / kRowsAtOnce : 1;  // rows of a thread
  using Packs = Pack<S, V>[kCount];

  int feature;
  int first;  // row

  EVIT_HD explicit Share(int thread) : feature(thread % kPerRow * V), first(thread / kPerRow) {}

  EVIT_HD int row(int i) const { return first + i * kRowsAtOnce; }

  // The rows of a tile that begins at a token and has `count` tokens; the others are left alone.
  EVIT_HD void load(const Tokens<const S>& from, int64_t token, int64_t count, Packs& packs) const {
    EVIT_UNROLLED
    for (int i = 0; i < kCount; ++i) {
      if (row(i) >= count) continue;
      const S* at = from.data + (token + row(i)) * from.stride + feature;
      packs[i] = *reinterpret_cast<const Pack<S, V>*>(at);
    }
  }

  // Calls f(row, values) for the loaded rows, and with zeros for the rest of the tile.
  template <class F>
  EVIT_HD void each(int64_t count, const Packs& packs, const F& f) const {
    EVIT_UNROLLED
    for (int i = 0; i < kCount; ++i) {
      if (row(i) >= kTileTokens<D>) continue;
      float values[V];
      EVIT_UNROLLED
      for (int v = 0; v < V; ++v) values[v] = row(i) < count ? read(packs[i].values + v) : 0.0f;
      f(row(i), values);
    }
  }

  // Stores what f(row, values) writes into `values`, for the first `count` rows; if nobody wants
  // it, f is called all the same.
  template <class F>
  EVIT_HD void store(bool wanted, const Tokens<S>& to, int64_t token, int64_t count,
                     const F& f) const {
    EVIT_UNROLLED
    for (int i = 0; i < kCount; ++i) {
      if (row(i) >= count) continue;
      float values[V];
      f(row(i), values);
      if (!wanted) continue;
      Pack<S, V> pack;
      EVIT_UNROLLED
      for (int v = 0; v < V; ++v) write(pack.values + v, values[v]);
      *reinterpret_cast<Pack<S, V>*>(to.data + (token + row(i)) * to.stride + feature) = pack;
    }
  }
};

// Floats of shared memory, four at once.
EVIT_HD Pack<float, 4> four(const SharedFloat* from) {
#if defined(__CUDACC__)
  return *reinterpret_cast<const Pack<float, 4>*>(from);
#else
  return {from[0], from[1], from[2], from[3]};
#endif
}
template <int N>
EVIT_HD void put(SharedFloat* to, const float (&values)[N]) {
  EVIT_UNROLLED
  for (int i = 0; i < N; i += 4) {
#if defined(__CUDACC__)
    *reinterpret_cast<Pack<float, 4>*>(to + i) = {values[i], values[i + 1], values[i + 2],
                                                  values[i + 3]};
#else
    for (int j = i; j < i + 4; ++j) to[j] = values[j];
#endif
  }
}

// Both products on the units for float: 4x4 results of a thread at a time.
template <int D>
struct FloatProducts {
  static constexpr int kAcross = D / 4;
  static constexpr int kSquares = kAcross * kAcross;  // of 4x4 in a D x D matrix
  // Small matrices are summed by several groups of threads, each over its part of the tokens.
  static constexpr int kGroups = kSquares < kBlockThreads ? kBlockThreads / kSquares : 1;
  static constexpr int kMine = kSquares > kBlockThreads ? kSquares / kBlockThreads : 1;
  static constexpr int kRows = kTileTokens<D> * kAcross / kBlockThreads;  // of X M, of a thread

  struct Sums {
    float values[kMine][4][4];
  };
  struct Matrix {};

  EVIT_HD static void clear(Sums& sums) {
    EVIT_UNROLLED
    for (int m = 0; m < kMine; ++m) {
      EVIT_UNROLLED
      for (int i = 0; i < 16; ++i) sums.values[m][i / 4][i % 4] = 0.0f;
    }
  }

  // sums += X^T Y.
  template <bool kExact, class X, class Y>
  EVIT_HD static void add(const Block& block, PerThread<Sums>& sums, const X& x, const Y& y) {
    block.apart([&](int thread) {
      Sums& mine = sums[thread];
      const int square = thread % (kBlockThreads / kGroups);
      for (int token = thread / (kBlockThreads / kGroups); token < kTileTokens<D>;
           token += kGroups) {
        EVIT_UNROLLED
        for (int m = 0; m < kMine; ++m) {
          const int index = square + m * kBlockThreads;
          const auto a = four(x.rows[token] + index / kAcross * 4);
          const auto b = four(y.rows[token] + index % kAcross * 4);
          EVIT_UNROLLED
          for (int i = 0; i < 16; ++i)
            mine.values[m][i / 4][i % 4] += a.values[i / 4] * b.values[i % 4];
        }
      }
    });
  }

  // Adds up what the groups have, in their order.
  EVIT_HD static void collect(const Block& block, PerThread<Sums>& sums, Square<D>& total) {
    for (int group = 0; group < kGroups; ++group) {
      block.each([&](int thread) {
        if (thread / (kBlockThreads / kGroups) != group) return;
        EVIT_UNROLLED
        for (int m = 0; m < kMine; ++m) {
          const int index = thread % (kBlockThreads / kGroups) + m * kBlockThreads;
          EVIT_UNROLLED
          for (int i = 0; i < 16; ++i) {
            SharedFloat& entry =
                total.rows[index / kAcross * 4 + i / 4][index % kAcross * 4 + i % 4];
            const float mine = sums[thread].values[m][i / 4][i % 4];
            entry = group == 0 ? mine : entry + mine;
          }
        }
      });
    }
  }

  EVIT_HD static void hold(const Block&, PerThread<Matrix>&, const Square<D>&) {}

  // out = X M.
  template <bool kExact, class X, class Out>
  EVIT_HD static void product(const Block& block, const X& x, const PerThread<Matrix>&,
                              const Square<D>& matrix, Out& out) {
    block.each([&](int thread) {
      const int column = thread % kAcross * 4, row = thread / kAcross * kRows;
      float sums[kRows][4] = {};
      for (int c = 0; c < D; c += 4) {
        Pack<float, 4> m[4];
        EVIT_UNROLLED
        for (int i = 0; i < 4; ++i) m[i] = four(matrix.rows[c + i] + column);
        EVIT_UNROLLED
        for (int r = 0; r < kRows; ++r) {
          const auto a = four(x.rows[row + r] + c);
          EVIT_UNROLLED
          for (int i = 0; i < 16; ++i) sums[r][i % 4] += a.values[i / 4] * m[i / 4].values[i % 4];
        }
      }
      EVIT_UNROLLED
      for (int r = 0; r < kRows; ++r) {
        EVIT_UNROLLED
        for (int i = 0; i < 4; ++i) out.rows[row + r][column + i] = sums[r][i];
      }
    });
  }
};

// Both products on tensor cores. X is of 16-bit numbers; of two tokens' or a matrix' floats the
// rest beyond TF32 is multiplied too.
template <int D>
struct TensorProducts {
  // Wide matrices are divided over the warps by their columns, else warps have tokens of their own.
  static constexpr int kColumnWarps = D == 64 ? 4 : 1;
  static constexpr int kTokenWarps = kWarps / kColumnWarps;
  static constexpr int kColumns = D / 8 / kColumnWarps;  // blocks of 8 columns of a warp
  static constexpr int kHeights = D / 16;                // blocks of 16 rows of X^T Y
  static constexpr int kSteps = D / 8;                   // over the features, for X M

  struct Sums {
    SumFragment values[kHeights][kColumns];
  };
  struct Matrix {
    RightFragment coarse[kSteps][kColumns];
    RightFragment rest[kSteps][kColumns];
  };

  EVIT_HD static int token_warp(int thread) { return thread / kWarpThreads / kColumnWarps; }
  EVIT_HD static int first_column(int thread) {
    return thread / kWarpThreads % kColumnWarps * kColumns * 8;
  }

  EVIT_HD static void clear(Sums& sums) {
    EVIT_UNROLLED
    for (int h = 0; h < kHeights; ++h) {
      EVIT_UNROLLED
      for (int c = 0; c < kColumns; ++c) sums.values[h][c] = SumFragment{};
    }
  }

  // sums += X^T Y, Y of floats.
  template <bool kExact, class X, class Y>
  EVIT_HD static void add(const Block& block, PerThread<Sums>& sums, const X& x, const Y& y) {
    constexpr int kTokenSteps = kTileTokens<D> / 8 / kTokenWarps;
    EVIT_UNROLLED
    for (int step = 0; step < kTokenSteps; ++step) {
      PerThread<LeftFragment[kHeights]> left;
      PerThread<RightFragment[kColumns]> right;
      PerThread<RightFragment[kColumns]> rests;
      block.apart([&](int thread) {
        const Lane lane(thread);
        const int token = (step * kTokenWarps + token_warp(thread)) * 8 + lane.member;
        EVIT_UNROLLED
        for (int h = 0; h < kHeights; ++h) {
          EVIT_UNROLLED
          for (int i = 0; i < 4; ++i)
            left[thread][h].values[i] = x.rows[token + i / 2 * 4][h * 16 + lane.group + i % 2 * 8];
        }
        EVIT_UNROLLED
        for (int c = 0; c < kColumns; ++c) {
          EVIT_UNROLLED
          for (int i = 0; i < 2; ++i) {
            const float value = y.rows[token + i * 4][first_column(thread) + c * 8 + lane.group];
            right[thread][c].values[i] = value;
            if (!kExact) rests[thread][c].values[i] = rest(value);
          }
        }
      });
      EVIT_UNROLLED
      for (int h = 0; h < kHeights; ++h) {
        EVIT_UNROLLED
        for (int c = 0; c < kColumns; ++c) {
          const auto sum = [&](int t) -> SumFragment& { return sums[t].values[h][c]; };
          const auto a = [&](int t) { return left[t][h]; };
          if (!kExact) multiply(block, sum, a, [&](int t) { return rests[t][c]; });
          multiply(block, sum, a, [&](int t) { return right[t][c]; });
        }
      }
    }
  }

  EVIT_HD static void collect(const Block& block, PerThread<Sums>& sums, Square<D>& total) {
    for (int warp = 0; warp < kTokenWarps; ++warp) {
      block.each([&](int thread) {
        if (token_warp(thread) != warp) return;
        const Lane lane(thread);
        EVIT_UNROLLED
        for (int h = 0; h < kHeights; ++h) {
          EVIT_UNROLLED
          for (int c = 0; c < kColumns; ++c) {
            EVIT_UNROLLED
            for (int i = 0; i < 4; ++i) {
              SharedFloat& entry = total.rows[h * 16 + sum_row(lane, i)]
                                             [first_column(thread) + c * 8 + sum_column(lane, i)];
              const float mine = sums[thread].values[h][c].values[i];
              entry = warp == 0 ? mine : entry + mine;
            }
          }
        }
      });
    }
  }

  // Reads a matrix into registers, where it stays for all tiles.
  EVIT_HD static void hold(const Block& block, PerThread<Matrix>& matrix, const Square<D>& from) {
    block.apart([&](int thread) {
      const Lane lane(thread);
      EVIT_UNROLLED
      for (int s = 0; s < kSteps; ++s) {
        EVIT_UNROLLED
        for (int c = 0; c < kColumns; ++c) {
          EVIT_UNROLLED
          for (int i = 0; i < 2; ++i) {
            const float value =
                from.rows[s * 8 + lane.member + i * 4][first_column(thread) + c * 8 + lane.group];
            matrix[thread].coarse[s][c].values[i] = value;
            matrix[thread].rest[s][c].values[i] = rest(value);
          }
        }
      }
    });
  }

  // out = X M; kExact: X consists of 16-bit numbers.
  template <bool kExact, class X, class Out>
  EVIT_HD static void product(const Block& block, const X& x, PerThread<Matrix>& matrix,
                              const Square<D>&, Out& out) {
    constexpr int kRowSteps = kTileTokens<D> / 16 / kTokenWarps;
    static_assert(kRowSteps > 0, "every warp has rows");
    for (int step = 0; step < kRowSteps; ++step) {
      PerThread<SumFragment[kColumns]> sums;
      block.apart([&](int thread) {
        EVIT_UNROLLED
        for (int c = 0; c < kColumns; ++c) sums[thread][c] = SumFragment{};
      });
      EVIT_UNROLLED
      for (int s = 0; s < kSteps; ++s) {
        PerThread<LeftFragment> left;
        PerThread<LeftFragment> rests;
        block.apart([&](int thread) {
          const Lane lane(thread);
          const int row = (step * kTokenWarps + token_warp(thread)) * 16 + lane.group;
          EVIT_UNROLLED
          for (int i = 0; i < 4; ++i) {
            const float value = x.rows[row + i % 2 * 8][s * 8 + lane.member + i / 2 * 4];
            left[thread].values[i] = value;
            if (!kExact) rests[thread].values[i] = rest(value);
          }
        });
        EVIT_UNROLLED
        for (int c = 0; c < kColumns; ++c) {
          const auto sum = [&](int t) -> SumFragment& { return sums[t][c]; };
          const auto a = [&](int t) { return left[t]; };
          const auto b = [&](int t) { return matrix[t].coarse[s][c]; };
          if (!kExact) multiply(block, sum, [&](int t) { return rests[t]; }, b);
          multiply(block, sum, a, [&](int t) { return matrix[t].rest[s][c]; });
          multiply(block, sum, a, b);
        }
      }
      block.apart([&](int thread) {
        const Lane lane(thread);
        const int row = (step * kTokenWarps + token_warp(thread)) * 16;
        EVIT_UNROLLED
        for (int c = 0; c < kColumns; ++c) {
          EVIT_UNROLLED
          for (int i = 0; i < 4; ++i)
            out.rows[row + sum_row(lane, i)][first_column(thread) + c * 8 + sum_column(lane, i)] =
                sums[thread][c].values[i];
        }
      });
    }
    block.wait();
  }
};

}  // namespace evit::cuda
