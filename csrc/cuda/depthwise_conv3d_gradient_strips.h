// The gradients of depthwise convolution in strips.
#pragma once

#include "depthwise_conv3d_strips.h"

namespace evit::cuda {

// The data gradient. Rows and columns of the input are counted from the padding on, from a multiple
// of the stride before the first that exists: input u = output * Stride + tap, so whether a tap
// belongs to a column is known when this is compiled.
template <class S, int K, int Stride, bool kPlanar>
struct DataStrip {
  static constexpr int V = kStripChannels<S, K, kPlanar>;
  static constexpr int C = kStripColumns<S, K, kPlanar>;
  static_assert(C % Stride == 0, "strips begin at multiples of the stride");
  static constexpr int kBack = (K - 1) / Stride;  // outputs before its own that an input belongs to
  static constexpr int kColumnsRead = C / Stride + kBack;
  static constexpr int kPhases = (K + Stride - 1) / Stride;
  static constexpr int kRing = kPhases * Stride;  // input rows that an output row belongs to
  using A = Sum<S>;

  Window p;
  Strips strips;
  const S* grad;
  const A* weight;  // repacked
  S* grad_input;

  DataStrip(const Window& window, const S* g, const A* w, S* dx)
      : p(window),
        strips(window, window.in[0], window.in[1] + window.padding[1] % Stride,
               window.in[2] + window.padding[2] % Stride, V, C),
        grad(g),
        weight(w),
        grad_input(dx) {}

  EVIT_HD void operator()(int64_t i) const {
    const Strip s = strip_at(strips, V, C, kPlanar, i);
    A sums[kRing][C][V] = {};
    const int run = static_cast<int>(s.end - s.row);
    const int first = static_cast<int>((s.row + p.padding[1]) / Stride) - kBack;
    const int height = static_cast<int>(p.out[1]);
    const int rows = (run + Stride - 1) / Stride + kBack;
    for (int base = 0; base < rows; base += kPhases) {
      EVIT_UNROLLED
      for (int phase = 0; phase < kPhases; ++phase) {
        const int m = base + phase;
        if (m >= rows) continue;
        // Input rows begin here, and take the places of those that are finished.
        EVIT_UNROLLED
        for (int j = K - Stride; j < K; ++j) clear(sums[(phase * Stride + j) % kRing]);
        if (first + m >= 0 && first + m < height) add_row(s, first + m, phase, sums);
        // The first ones of this output end here.
        EVIT_UNROLLED
        for (int j = 0; j < Stride; ++j) {
          const int row = (m - kBack) * Stride + j;
          if (row >= 0 && row < run) finish(s, s.row + row, sums[(phase * Stride + j) % kRing]);
        }
      }
    }
  }

 private:
  EVIT_HD static void clear(A (&sums)[C][V]) {
    EVIT_UNROLLED
    for (int c = 0; c < C; ++c) {
      EVIT_UNROLLED
      for (int v = 0; v < V; ++v) sums[c][v] = 0;
    }
  }

  // Adds a row of the gradient, of all frames that the strip's frame belongs to.
  EVIT_HD void add_row(const Strip& s, int64_t h, int phase, A (&sums)[kRing][C][V]) const {
    const Strides out = strides_of_dense(p, p.out);
    const int channels = static_cast<int>(p.channels);
    const int64_t left = (s.column + p.padding[2]) / Stride - kBack;
    for (int64_t kt = 0; kt < p.kernel[0]; ++kt) {
      const Outputs frames = outputs_of(p, kTime, s.t, kt);
      for (int64_t t = frames.first; t < frames.end; ++t) {
        const S* row = grad + s.n * out.n + s.channel * out.c + t * out.at[0] + h * out.at[1];
        A g[kColumnsRead][V];
        read_row(row, left, p.out[2], out.at[2], g);
        EVIT_UNROLLED
        for (int kh = 0; kh < K; ++kh) {
          const A* taps = weight + (kt * K + kh) * K * channels + s.channel;
          add_taps<K>(taps, channels, g, sums[(phase * Stride + kh) % kRing], [](int c, int kw) {
            const int distance = c + kBack * Stride - kw;
            return distance % Stride == 0 ? distance / Stride : -1;
          });
        }
      }
    }
  }

  EVIT_HD void finish(const Strip& s, int64_t row, const A (&sums)[C][V]) const {
    const Strides in = strides_of_dense(p, p.in);
    const int64_t h = row - p.padding[1] % Stride;
    if (h < 0) return;
    const int64_t start = s.n * in.n + s.channel * in.c + s.t * in.at[0] + h * in.at[1];
    EVIT_UNROLLED
    for (int c = 0; c < C; ++c) {
      const int64_t w = s.column + c - p.padding[2] % Stride;
      if (w >= 0 && w < p.in[2]) write_vector(grad_input + start + w * in.at[2], sums[c]);
    }
  }
};

template <class S>
Status data_gradient_in_strips(const Window& p, const S* grad, const S* weight, S* grad_input,
                               Sum<S>* workspace, Stream stream) {
  const RepackWeights<S> repack = {p, weight, workspace};
  const Status status = for_each(repacked_elements(p), repack, stream);
  if (!status.ok()) return status;
  return with_window(p, [&](auto kernel, auto stride) -> Status {
    const auto run = [&](auto planar) {
      const DataStrip<S, kernel, stride, planar> body(p, grad, workspace, grad_input);
      return for_each(body.strips.count(), body, stream);
    };
    return p.planar ? run(std::true_type{}) : run(std::false_type{});
  });
}

// ---- the weight gradient, of channels-last tensors

// Channels and columns of a strip of the weight gradient, which keeps all taps of a frame.
template <int K>
constexpr int kWeightChannels = K == 5 ? 2 : 4;
constexpr int kWeightColumns = 4;

// How the strips of an output are divided into sums: a function of the shape alone. Frames come
// first: neighbours in time read the same frames.
struct WeightSplits {
  Strips strips;  // of one group of channels
  int64_t groups;
  int64_t units;  // strips of a group
  int64_t splits;

  inline WeightSplits(const Window& p, int channels)
      : strips(p, p.out[0], p.out[1], p.out[2], static_cast<int>(p.channels), kWeightColumns),
        groups(p.channels / channels),
        units(strips.count()) {
    constexpr int64_t kEnoughThreads = int64_t{1} << 16, kMostSplits = 1024;
    splits = kEnoughThreads / (groups * p.kernel[0]);
    splits = splits < 1 ? 1 : splits < kMostSplits ? splits : kMostSplits;
    splits = splits < units ? splits : units;
  }

  EVIT_HD int64_t first(int64_t split) const { return split * units / splits; }

  EVIT_HD Strip at(int64_t unit) const {
    const int64_t t = unit % strips.frames, rest = unit / strips.frames;
    const int64_t column = rest % strips.columns, above = rest / strips.columns;
    const int64_t row = above % strips.chunks * strips.rows;
    const int64_t end = row + strips.rows;
    return {above / strips.chunks,   t, row, end < strips.height ? end : strips.height,
            column * kWeightColumns, 0};
  }
};

// The sums of one split, for all taps of a frame of the window, of a vector of channels; those of
// the bias ride along with the first frame. `partials` are (split, tap, channel), the bias behind
// the last tap.
template <class S, int K, int Stride>
struct WeightStrip {
  static constexpr int V = kWeightChannels<K>;
  static constexpr int C = kWeightColumns;
  static constexpr int kColumnsRead = (C - 1) * Stride + K;
  static constexpr int kRing = (K + Stride - 1) / Stride;  // outputs that an input row belongs to
  using A = Sum<S>;

  Window p;
  WeightSplits parts;
  const S* grad;
  const S* input;
  A* partials;

  WeightStrip(const Window& window, const S* g, const S* x, A* sums)
      : p(window), parts(window, V), grad(g), input(x), partials(sums) {}

  EVIT_HD int64_t count() const { return parts.splits * p.kernel[0] * parts.groups; }

  EVIT_HD void operator()(int64_t i) const {
    const int64_t channel = i % parts.groups * V;
    const int64_t kt = i / parts.groups % p.kernel[0];
    const int64_t split = i / parts.groups / p.kernel[0];
    A sums[K][K][V] = {};
    A bias[V] = {};
    for (int64_t unit = parts.first(split); unit < parts.first(split + 1); ++unit) {
      Strip s = parts.at(unit);
      s.channel = channel;
      const int64_t t = input_of(p, kTime, s.t, kt);
      if (t >= 0 || kt == 0) add_strip(s, t, sums, bias);
    }
    A* to = partials + split * (taps_of(p) + 1) * p.channels + channel;
    EVIT_UNROLLED
    for (int k = 0; k < K * K; ++k)
      write_sums(to + (kt * K * K + k) * p.channels, sums[k / K][k % K]);
    if (kt == 0) write_sums(to + taps_of(p) * p.channels, bias);
  }

 private:
  // Adds what the outputs of a strip make of frame t of the input, and to the bias what they are.
  EVIT_HD void add_strip(const Strip& s, int64_t t, A (&sums)[K][K][V], A (&bias)[V]) const {
    const Strides in = strides_of_input(p), out = strides_of_dense(p, p.out);
    const S* x0 = input + s.n * in.n + t * in.at[0] + s.channel;
    const S* g0 = grad + s.n * out.n + s.t * out.at[0] + s.channel;
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
          add_row(s, x, g[(phase / Stride + kRing - r) % kRing], sums[kh]);
        }
      }
    }
  }

  EVIT_HD void add_row(const Strip& s, const A (&x)[kColumnsRead][V], const A (&g)[C][V],
                       A (&sums)[K][V]) const {
    EVIT_UNROLLED
    for (int c = 0; c < C; ++c) {
      if (s.column + c >= p.out[2]) continue;
      EVIT_UNROLLED
      for (int kw = 0; kw < K; ++kw) {
        EVIT_UNROLLED
        for (int v = 0; v < V; ++v) sums[kw][v] += x[c * Stride + kw][v] * g[c][v];
      }
    }
  }

  EVIT_HD static void write_sums(A* to, const A (&values)[V]) {
    EVIT_UNROLLED
    for (int v = 0; v < V; ++v) to[v] = values[v];
  }
};

// Adds up neighbouring splits, in their order, and leaves fewer.
template <class A>
struct AddSplits {
  static constexpr int64_t kAtOnce = 32;

  int64_t elements;  // of a split
  int64_t splits;
  const A* partials;
  A* sums;

  EVIT_HD static int64_t left(int64_t splits) { return (splits + kAtOnce - 1) / kAtOnce; }

  EVIT_HD void operator()(int64_t i) const {
    const int64_t first = i / elements * kAtOnce;
    A sum = 0;
    for (int64_t split = first; split < first + kAtOnce && split < splits; ++split)
      sum += partials[split * elements + i % elements];
    sums[i] = sum;
  }
};

// Elements of the type of sums that the weight gradient needs in strips.
inline int64_t weight_strips_workspace(const Window& p) {
  if (p.planar || !strips_fit(p)) return 0;
  const WeightSplits parts(p, p.kernel[1] == 5 ? kWeightChannels<5> : kWeightChannels<3>);
  return (parts.splits + AddSplits<float>::left(parts.splits)) * (taps_of(p) + 1) * p.channels;
}

// Says in `sums` what is left to add up, which lies in the workspace.
template <class S>
Status weight_sums_in_strips(const Window& p, const S* grad, const S* input, Sum<S>* workspace,
                             SplitSums<Sum<S>>& sums, Stream stream) {
  using Add = AddSplits<Sum<S>>;
  const int64_t elements = (taps_of(p) + 1) * p.channels;
  Add add = {elements, 0, workspace, nullptr};
  const Status status = with_window(p, [&](auto kernel, auto stride) -> Status {
    const WeightStrip<S, kernel, stride> body(p, grad, input, workspace);
    add.splits = body.parts.splits;
    return for_each(body.count(), body, stream);
  });
  if (!status.ok()) return status;
  add.sums = workspace + add.splits * elements;
  sums = {Add::left(add.splits), add.sums};
  return for_each(sums.splits * elements, add, stream);
}

}  // namespace evit::cuda
