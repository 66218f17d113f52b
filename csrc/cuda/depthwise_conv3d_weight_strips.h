// The weight gradient of depthwise convolution in strips: sums over parts of the output, split by
// its shape alone, which are then added up in their order. Those of the bias ride along.
#pragma once

#include "block.h"
#include "depthwise_conv3d_strips.h"

namespace evit::cuda {

constexpr int kWeightColumns = 4;

// Channels of a thread, which keeps the sums of all taps of a frame of the window.
template <int K>
constexpr int kWeightChannels = K == 5 ? 2 : 4;

// How the strips of an output are divided into splits, each for so many threads.
struct WeightSplits {
  Strips strips;  // of one group of channels
  int64_t groups;
  int64_t units;  // strips of a group
  int64_t splits;
  bool planar;

  inline WeightSplits(const Window& p, int channels, int threads)
      : strips(p, p.out[0], p.out[1], p.out[2], channels, kWeightColumns),
        groups(strips.groups),
        planar(p.planar) {
    strips.groups = 1;
    units = strips.count();
    constexpr int64_t kEnoughThreads = int64_t{1} << 16, kMostSplits = 1024;
    const int64_t most = (units + threads - 1) / threads;
    splits = kEnoughThreads / (groups * p.kernel[0] * threads);
    splits = splits < 1 ? 1 : splits < kMostSplits ? splits : kMostSplits;
    splits = splits < most ? splits : most;
  }

  EVIT_HD int64_t first(int64_t split) const { return split * units / splits; }
  EVIT_HD Strip at(int64_t unit) const { return strip_at(strips, 0, kWeightColumns, planar, unit); }
};

// A split of one frame of taps and one group of channels, which come first.
struct WeightPart {
  int64_t group;
  int64_t kt;
  int64_t split;
};

EVIT_HD WeightPart weight_part(const Window& p, const WeightSplits& parts, int64_t i) {
  return {i % parts.groups, i / parts.groups % p.kernel[0], i / parts.groups / p.kernel[0]};
}

// The sums of a frame of taps, and of the bias, over some strips, for V channels.
template <class S, int K, int Stride, int V>
struct WeightSums {
  static constexpr int C = kWeightColumns;
  static constexpr int kColumnsRead = (C - 1) * Stride + K;
  static constexpr int kRing = (K + Stride - 1) / Stride;  // outputs that an input row belongs to
  using A = Sum<S>;

  A taps[K][K][V];
  A bias[V];

  EVIT_HD void clear() {
    EVIT_UNROLLED
    for (int i = 0; i < K * K * V; ++i) taps[i / V / K][i / V % K][i % V] = 0;
    EVIT_UNROLLED
    for (int v = 0; v < V; ++v) bias[v] = 0;
  }

  // Adds what the outputs of a strip make of the frame that tap kt reads, and to the bias what they
  // are.
  EVIT_HD void add(const Window& p, const S* grad, const S* input, const Strip& s, int64_t kt) {
    const int64_t t = input_of(p, kTime, s.t, kt);
    if (t < 0 && kt != 0) return;
    const Strides in = strides_of_input(p), out = strides_of_dense(p, p.out);
    const S* x0 = input + s.n * in.n + t * in.at[0] + s.channel * in.c;
    const S* g0 = grad + s.n * out.n + s.t * out.at[0] + s.channel * out.c;
    const int run = static_cast<int>(s.end - s.row);
    const int first = static_cast<int>(s.row * Stride - p.padding[1]);
    const int height = static_cast<int>(p.in[1]);
    const int rows = (run - 1) * Stride + K;
    A g[kRing][C][V];
    for (int base = 0; base < rows; base += kRing * Stride) {
      EVIT_UNROLLED
      for (int phase = 0; phase < kRing * Stride; ++phase) {
        const int m = base + phase;
        if (m >= rows) continue;
        if (phase % Stride == 0 && m / Stride < run) {
          A(&row)[C][V] = g[phase / Stride];
          read_row(g0 + (s.row + m / Stride) * out.at[1], s.column, p.out[2], out.at[2], row);
          EVIT_UNROLLED
          for (int j = 0; j < C * V; ++j) bias[j % V] += row[j / V][j % V];
        }
        if (t < 0 || first + m < 0 || first + m >= height) continue;
        A x[kColumnsRead][V];
        read_row(x0 + (first + m) * in.at[1], s.column * Stride - p.padding[2], p.in[2], in.at[2],
                 x);
        EVIT_UNROLLED
        for (int r = 0; r < kRing; ++r) {
          const int kh = phase % Stride + r * Stride;
          // Only outputs of the strip: what is not there must not meet infinity.
          if (kh >= K || m / Stride < r || m / Stride - r >= run) continue;
          add_row(s, p.out[2], x, g[(phase / Stride + kRing - r) % kRing], taps[kh]);
        }
      }
    }
  }

 private:
  EVIT_HD static void add_row(const Strip& s, int64_t width, const A (&x)[kColumnsRead][V],
                              const A (&g)[C][V], A (&sums)[K][V]) {
    EVIT_UNROLLED
    for (int c = 0; c < C; ++c) {
      if (s.column + c >= width) continue;
      EVIT_UNROLLED
      for (int kw = 0; kw < K; ++kw) {
        EVIT_UNROLLED
        for (int v = 0; v < V; ++v) sums[kw][v] += x[c * Stride + kw][v] * g[c][v];
      }
    }
  }
};

// Of channels-last tensors: a thread sums up a split for a vector of channels.
template <class S, int K, int Stride>
struct WeightStrip {
  static constexpr int V = kWeightChannels<K>;

  Window p;
  WeightSplits parts;
  const S* grad;
  const S* input;
  Sum<S>* partials;

  WeightStrip(const Window& window, const S* g, const S* x, Sum<S>* sums)
      : p(window), parts(window, V, 1), grad(g), input(x), partials(sums) {}

  EVIT_HD void operator()(int64_t i) const {
    const WeightPart part = weight_part(p, parts, i);
    WeightSums<S, K, Stride, V> sums;
    sums.clear();
    for (int64_t unit = parts.first(part.split); unit < parts.first(part.split + 1); ++unit) {
      Strip s = parts.at(unit);
      s.channel = part.group * V;
      sums.add(p, grad, input, s, part.kt);
    }
    Sum<S>* to = partials + part.split * (taps_of(p) + 1) * p.channels + part.group * V;
    EVIT_UNROLLED
    for (int k = 0; k < K * K; ++k) {
      EVIT_UNROLLED
      for (int v = 0; v < V; ++v)
        to[(part.kt * K * K + k) * p.channels + v] = sums.taps[k / K][k % K][v];
    }
    if (part.kt != 0) return;
    EVIT_UNROLLED
    for (int v = 0; v < V; ++v) to[taps_of(p) * p.channels + v] = sums.bias[v];
  }
};

// Of planes: a block sums up a split for a channel, and its threads' sums in their order.
template <class S, int K, int Stride>
struct WeightPlane {
  static constexpr int kSums = K * K + 1;
  static constexpr int kHelpers = kBlockThreads / kSums;  // threads that add up one of the sums
  struct Shared {
    // One float wider: a sum's helpers and its neighbour's use other banks.
    SharedFloat of_threads[kSums][kBlockThreads + 1];
    SharedFloat of_helpers[kSums][kHelpers];
  };

  Window p;
  WeightSplits parts;
  const S* grad;
  const S* input;
  float* partials;

  WeightPlane(const Window& window, const S* g, const S* x, float* sums)
      : p(window), parts(window, 1, kBlockThreads), grad(g), input(x), partials(sums) {}

  EVIT_HD void operator()(const Block& block, Shared& shared) const {
    const WeightPart part = weight_part(p, parts, block.index);
    block.each([&](int thread) {
      WeightSums<S, K, Stride, 1> sums;
      sums.clear();
      const int64_t end = parts.first(part.split + 1);
      for (int64_t unit = parts.first(part.split) + thread; unit < end; unit += kBlockThreads) {
        Strip s = parts.at(unit);
        s.channel = part.group;
        sums.add(p, grad, input, s, part.kt);
      }
      EVIT_UNROLLED
      for (int k = 0; k < K * K; ++k) shared.of_threads[k][thread] = sums.taps[k / K][k % K][0];
      shared.of_threads[K * K][thread] = sums.bias[0];
    });
    block.each([&](int thread) {
      const int which = thread / kHelpers, helper = thread % kHelpers;
      if (which >= kSums) return;
      float sum = 0.0f;
      for (int i = helper; i < kBlockThreads; i += kHelpers) sum += shared.of_threads[which][i];
      shared.of_helpers[which][helper] = sum;
    });
    block.each([&](int thread) {
      if (thread >= kSums || (thread == K * K && part.kt != 0)) return;
      float sum = 0.0f;
      for (int i = 0; i < kHelpers; ++i) sum += shared.of_helpers[thread][i];
      const int64_t tap = thread == K * K ? taps_of(p) : part.kt * K * K + thread;
      partials[(part.split * (taps_of(p) + 1) + tap) * p.channels + part.group] = sum;
    });
  }
};

// Adds up neighbouring splits, in their order, and leaves fewer.
struct AddSplits {
  static constexpr int64_t kAtOnce = 32;

  int64_t elements;  // of a split
  int64_t splits;
  const float* partials;
  float* sums;

  EVIT_HD static int64_t left(int64_t splits) { return (splits + kAtOnce - 1) / kAtOnce; }

  EVIT_HD void operator()(int64_t i) const {
    const int64_t first = i / elements * kAtOnce;
    float sum = 0.0f;
    for (int64_t split = first; split < first + kAtOnce && split < splits; ++split)
      sum += partials[split * elements + i % elements];
    sums[i] = sum;
  }
};

inline WeightSplits weight_splits(const Window& p) {
  if (p.planar) return {p, 1, kBlockThreads};
  return {p, p.kernel[1] == 5 ? kWeightChannels<5> : kWeightChannels<3>, 1};
}

// Elements that the weight gradient needs in strips.
inline int64_t weight_strips_workspace(const Window& p) {
  if (!strips_fit(p)) return 0;
  const int64_t splits = weight_splits(p).splits;
  return (splits + AddSplits::left(splits)) * (taps_of(p) + 1) * p.channels;
}

// Says in `sums` what is left to add up, which lies in the workspace.
template <class S>
Status weight_sums_in_strips(const Window& p, const S* grad, const S* input, float* workspace,
                             SplitSums<float>& sums, Stream stream) {
  const WeightSplits parts = weight_splits(p);
  const Status status = with_window(p, [&](auto kernel, auto stride) -> Status {
    const int64_t count = parts.splits * p.kernel[0] * parts.groups;
    if (p.planar) {
      const WeightPlane<S, kernel, stride> body(p, grad, input, workspace);
      return for_each_block(count, body, stream);
    }
    const WeightStrip<S, kernel, stride> body(p, grad, input, workspace);
    return for_each(count, body, stream);
  });
  if (!status.ok()) return status;
  const int64_t elements = (taps_of(p) + 1) * p.channels;
  const AddSplits add = {elements, parts.splits, workspace, workspace + parts.splits * elements};
  sums = {AddSplits::left(parts.splits), add.sums};
  return for_each(sums.splits * elements, add, stream);
}

}  // namespace evit::cuda
