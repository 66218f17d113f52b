// The fast path of channels-last tensors: square windows of 3 or 5 in height and width, strides of
// 1 or 2 there, anything in time.
//
// A thread computes a strip: one vector of channels (of 16 bytes for windows of 3), a few columns,
// a run of rows. It walks down the rows of its input and keeps the sums of all outputs that the
// current row belongs to, so that an input is loaded and converted once per frame of the window,
// not once per tap.
#pragma once

#include "depthwise_conv3d_index.h"
#include "pack.h"
#include "scalar.h"

namespace evit::cuda {

// Channels of a strip. Windows of 5 need their registers for rows and are bound by arithmetic.
template <class S, int K>
constexpr int kStripChannels = K == 5 ? 4 : kPackWidth<S>;

// Columns of a strip: the more, the fewer loads of weights and of the columns beside it. With these
// nothing is spilled (cuda_resources.txt); how fast they are was not measured on a GPU yet.
template <class S, int K>
constexpr int kStripColumns = (K == 3 ? 16 : 8) / kStripChannels<S, K>;

// How an output is divided into strips.
struct Strips {
  int64_t groups;   // of channels
  int64_t columns;  // strips side by side
  int64_t chunks;   // runs of rows
  int64_t rows;     // of a run

  EVIT_HD Strips(const Window& p, int channels, int width) {
    groups = p.channels / channels;
    columns = (p.out[2] + width - 1) / width;
    // Long runs read less twice; short ones keep a large device busy with a small clip.
    constexpr int64_t kEnoughThreads = int64_t{1} << 17;
    const int64_t lines = p.batch * p.out[0] * columns * groups;
    rows = 16;
    while (rows > 2 && lines * ((p.out[1] + rows - 1) / rows) < kEnoughThreads) rows /= 2;
    chunks = (p.out[1] + rows - 1) / rows;
  }

  EVIT_HD int64_t count(const Window& p) const {
    return p.batch * p.out[0] * chunks * columns * groups;
  }
};

// The place where a strip begins, and the row where it ends.
struct Strip {
  int64_t n;
  int64_t t;
  int64_t row;
  int64_t end;
  int64_t column;
  int64_t channel;
};

// Channels come first: neighbours read neighbours.
EVIT_HD Strip strip_at(const Window& p, const Strips& s, int channels, int width, int64_t i) {
  Strip strip;
  strip.channel = i % s.groups * channels;
  i /= s.groups;
  strip.column = i % s.columns * width;
  i /= s.columns;
  strip.row = i % s.chunks * s.rows;
  i /= s.chunks;
  strip.t = i % p.out[0];
  strip.n = i / p.out[0];
  strip.end = strip.row + s.rows < p.out[1] ? strip.row + s.rows : p.out[1];
  return strip;
}

// Weights as strips read them: (taps, channels), in the type of sums, for the data gradient in the
// reverse order of taps. One thread per weight.
template <class S>
struct RepackWeights {
  Window p;
  const S* weight;
  Sum<S>* repacked;
  bool reversed;

  EVIT_HD void operator()(int64_t i) const {
    const int64_t tap = reversed ? taps_of(p) - 1 - i / p.channels : i / p.channels;
    repacked[i] = read(weight + i % p.channels * taps_of(p) + tap);
  }
};

template <class S, int K, int Stride>
struct ForwardStrip {
  static constexpr int V = kStripChannels<S, K>;
  static constexpr int C = kStripColumns<S, K>;
  static constexpr int kColumnsRead = (C - 1) * Stride + K;
  static constexpr int kRing = (K + Stride - 1) / Stride;  // outputs that an input row belongs to
  using A = Sum<S>;

  Window p;
  Strips strips;
  const S* input;
  const A* weight;  // repacked
  const S* bias;
  S* output;

  ForwardStrip(const Window& window, const S* x, const A* w, const S* b, S* y)
      : p(window), strips(window, V, C), input(x), weight(w), bias(b), output(y) {}

  EVIT_HD void operator()(int64_t i) const {
    const Strip s = strip_at(p, strips, V, C, i);
    A sums[kRing][C][V] = {};
    // Rows of the input, counted from the first that the first output reads. Unrolled over the
    // ring, so that all indices of sums are constants.
    const int first = static_cast<int>(s.row * Stride - p.padding[1]);
    const int height = static_cast<int>(p.in[1]);
    const int rows = static_cast<int>(s.end - 1 - s.row) * Stride + K;
    for (int base = 0; base < rows; base += kRing * Stride) {
      EVIT_UNROLLED
      for (int phase = 0; phase < kRing * Stride; ++phase) {
        const int m = base + phase;
        if (m >= rows) continue;
        // An output begins here; the one that had its place is finished.
        if (phase % Stride == 0) start(s, sums[phase / Stride]);
        if (first + m >= 0 && first + m < height) add_row(s, first + m, phase, sums);
        // An output ends here: the one that began K - 1 rows above.
        if (phase % Stride != (K - 1) % Stride || m < K - 1) continue;
        constexpr int kAbove = kRing * Stride - (K - 1);
        finish(s, s.row + (m - (K - 1)) / Stride, sums[(phase + kAbove) / Stride % kRing]);
      }
    }
  }

 private:
  EVIT_HD void start(const Strip& s, A (&sums)[C][V]) const {
    EVIT_UNROLLED
    for (int v = 0; v < V; ++v) {
      const A begin = bias == nullptr ? A(0) : A(read(bias + s.channel + v));
      EVIT_UNROLLED
      for (int c = 0; c < C; ++c) sums[c][v] = begin;
    }
  }

  // Adds an input row, of all frames of the window, to the outputs that it belongs to. Output o has
  // its first row at o * Stride, and its sums at o % kRing.
  EVIT_HD void add_row(const Strip& s, int64_t h, int phase, A (&sums)[kRing][C][V]) const {
    for (int64_t kt = 0; kt < p.kernel[0]; ++kt) {
      const int64_t t = input_of(p, kTime, s.t, kt);
      if (t < 0) continue;
      const int left = static_cast<int>(s.column * Stride - p.padding[2]);
      const int width = static_cast<int>(p.in[2]), step = static_cast<int>(p.in_strides[3]);
      const int channels = static_cast<int>(p.channels);
      const S* row = input + s.n * p.in_strides[0] + t * p.in_strides[1] + h * p.in_strides[2] +
                     int64_t{left} * step + s.channel;
      const A* taps = weight + kt * K * K * channels + s.channel;
      A x[kColumnsRead][V];
      EVIT_UNROLLED
      for (int c = 0; c < kColumnsRead; ++c) {
        if (left + c >= 0 && left + c < width) {
          const auto pack = *reinterpret_cast<const Pack<S, V>*>(row + c * step);
          EVIT_UNROLLED
          for (int v = 0; v < V; ++v) x[c][v] = read(pack.values + v);
        } else {
          EVIT_UNROLLED
          for (int v = 0; v < V; ++v) x[c][v] = 0;
        }
      }
      EVIT_UNROLLED
      for (int r = 0; r < kRing; ++r) {
        // The tap of the output that began r outputs ago.
        const int kh = phase % Stride + r * Stride;
        if (kh >= K) continue;
        A(&target)[C][V] = sums[(phase / Stride + kRing - r) % kRing];
        // Many taps are summed row by row: the error of a sum grows with its length.
        A part[C][V] = {};
        A(&row_sums)[C][V] = K > 3 ? part : target;
        EVIT_UNROLLED
        for (int kw = 0; kw < K; ++kw) {
          A factors[V];
          read_factors(taps + (kh * K + kw) * channels, factors);
          EVIT_UNROLLED
          for (int c = 0; c < C; ++c) {
            EVIT_UNROLLED
            for (int v = 0; v < V; ++v) row_sums[c][v] += x[c * Stride + kw][v] * factors[v];
          }
        }
        if (K <= 3) continue;
        EVIT_UNROLLED
        for (int c = 0; c < C; ++c) {
          EVIT_UNROLLED
          for (int v = 0; v < V; ++v) target[c][v] += part[c][v];
        }
      }
    }
  }

  EVIT_HD static void read_factors(const A* from, A (&factors)[V]) {
    constexpr int kPart = kPackWidth<A>;
    EVIT_UNROLLED
    for (int v = 0; v < V; v += kPart) {
      const auto pack = *reinterpret_cast<const Pack<A, kPart>*>(from + v);
      EVIT_UNROLLED
      for (int j = 0; j < kPart; ++j) factors[v + j] = pack.values[j];
    }
  }

  EVIT_HD void finish(const Strip& s, int64_t h, const A (&sums)[C][V]) const {
    S* row = output + (((s.n * p.out[0] + s.t) * p.out[1] + h) * p.out[2] + s.column) * p.channels +
             s.channel;
    EVIT_UNROLLED
    for (int c = 0; c < C; ++c) {
      if (s.column + c >= p.out[2]) continue;
      Pack<S, V> pack;
      EVIT_UNROLLED
      for (int v = 0; v < V; ++v) write(pack.values + v, activate(sums[c][v], p.activation));
      *reinterpret_cast<Pack<S, V>*>(row + c * p.channels) = pack;
    }
  }
};

// Whether strips serve a window: what they need of sizes, strides and addresses.
inline bool strips_serve(const Window& p, const void* input, const void* output) {
  const int64_t channels = kPackBytes / size_of(p.dtype);
  if (p.planar || p.kernel[1] != p.kernel[2] || p.stride[1] != p.stride[2]) return false;
  if (p.kernel[1] != 3 && p.kernel[1] != 5) return false;
  if (p.stride[1] > 2 || p.dilation[1] != 1 || p.dilation[2] != 1) return false;
  if (p.dtype == DType::kFloat64 || p.channels % channels != 0) return false;
  // Within a strip, 32 bits count.
  constexpr int64_t kMost = int64_t{1} << 24;
  if (p.channels > kMost || p.in[1] > kMost || p.in[2] > kMost) return false;
  if (p.in_strides[3] > kMost) return false;
  for (int64_t stride : p.in_strides)
    if (stride % channels != 0) return false;
  return is_aligned(input) && is_aligned(output);
}

// Elements of the type of sums that strips need for repacked weights.
inline int64_t strips_workspace(const Window& p) {
  return taps_of(p) * p.channels;
}

// The data gradient of a window of stride 1 as a forward pass over the gradient, with the taps in
// reverse. It knows nothing of repeated frames.
inline Window gradient_window(const Window& p) {
  Window q = p;
  q.activation = Activation::kNone;
  q.clamp_time = false;
  for (int axis = 0; axis < 3; ++axis) {
    q.in[axis] = p.out[axis];
    q.out[axis] = p.in[axis];
    q.padding[axis] = p.dilation[axis] * (p.kernel[axis] - 1) - p.padding[axis];
  }
  const Strides strides = strides_of_dense(p, p.out);
  q.in_strides[0] = strides.n;
  for (int axis = 0; axis < 3; ++axis) q.in_strides[1 + axis] = strides.at[axis];
  return q;
}

template <class S>
Status run_strips(const Window& p, const S* input, const S* weight, bool reversed, const S* bias,
                  S* output, Sum<S>* workspace, Stream stream) {
  const RepackWeights<S> repack = {p, weight, workspace, reversed};
  const Status status = for_each(strips_workspace(p), repack, stream);
  if (!status.ok()) return status;
  const auto run = [&](auto body) { return for_each(body.strips.count(p), body, stream); };
  if (p.kernel[1] == 3) {
    if (p.stride[1] == 1) return run(ForwardStrip<S, 3, 1>(p, input, workspace, bias, output));
    return run(ForwardStrip<S, 3, 2>(p, input, workspace, bias, output));
  }
  if (p.stride[1] == 1) return run(ForwardStrip<S, 5, 1>(p, input, workspace, bias, output));
  return run(ForwardStrip<S, 5, 2>(p, input, workspace, bias, output));
}

}  // namespace evit::cuda
