// The fast paths of depthwise convolution: square windows of 3 or 5 in height and width, strides of
// 1 or 2 there, anything in time.
//
// A thread computes a strip: one vector of channels (of 16 bytes for windows of 3), a few columns,
// a run of rows. It walks down the rows that it reads and keeps in registers all that the current
// row belongs to, so that an element is loaded and converted once per frame of the window, not once
// per tap. In planes (N, C, T, H, W) the vector is a single channel.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "depthwise_conv3d_index.h"
#include "pack.h"
#include "scalar.h"

namespace evit::cuda {

template <class S>
constexpr bool kHasStrips = sizeof(S) <= sizeof(float);

// Channels of a strip. Windows of 5 need their registers for rows and are bound by arithmetic.
template <class S, int K, bool kPlanar>
constexpr int kStripChannels = kPlanar  ? 1
                               : K == 5 ? 4
                                        : kPackWidth<S>;

// Columns of a strip: the more, the fewer loads of weights and of the columns beside it. With these
// nothing is spilled (resources.txt); how fast they are was not measured on a GPU yet.
template <class S, int K, bool kPlanar>
constexpr int kStripColumns = kPlanar ? 4 : (K == 3 ? 16 : 8) / kStripChannels<S, K, kPlanar>;

// How a tensor is divided into strips.
struct Strips {
  int64_t groups;   // of channels
  int64_t columns;  // strips side by side
  int64_t chunks;   // runs of rows
  int64_t rows;     // of a run, even
  int64_t frames;
  int64_t height;  // all rows
  int64_t batch;

  EVIT_HD Strips(const Window& p, int64_t frames_, int64_t height_, int64_t width, int channels,
                 int step)
      : groups(p.channels / channels),
        columns((width + step - 1) / step),
        rows(16),
        frames(frames_),
        height(height_),
        batch(p.batch) {
    // Long runs read less twice; short ones keep a large device busy with a small clip.
    constexpr int64_t kEnoughThreads = int64_t{1} << 17;
    const int64_t lines = batch * frames * columns * groups;
    while (rows > 2 && lines * ((height + rows - 1) / rows) < kEnoughThreads) rows /= 2;
    chunks = (height + rows - 1) / rows;
  }

  EVIT_HD int64_t count() const { return batch * frames * chunks * columns * groups; }
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

// Neighbours read neighbours: channels come first, or in planes columns. Then frames, so that the
// threads of a block share those of the window: the first level of cache serves what would
// otherwise come kernel[0] times from the second, whose bandwidth is not that many times the
// memory's.
EVIT_HD Strip strip_at(const Strips& s, int channels, int step, bool planar, int64_t i) {
  const auto next = [&i](int64_t size) {
    const int64_t place = i % size;
    i /= size;
    return place;
  };
  Strip strip;
  if (!planar) strip.channel = next(s.groups) * channels;
  if (planar) strip.column = next(s.columns) * step;
  strip.t = next(s.frames);
  if (!planar) strip.column = next(s.columns) * step;
  strip.row = next(s.chunks) * s.rows;
  if (planar) strip.channel = next(s.groups) * channels;
  strip.n = i;
  strip.end = strip.row + s.rows < s.height ? strip.row + s.rows : s.height;
  return strip;
}

// Weights as strips read them: (taps, channels), in the type of sums. One thread per weight.
template <class S>
struct RepackWeights {
  Window p;
  const S* weight;
  Sum<S>* repacked;

  EVIT_HD void operator()(int64_t i) const {
    repacked[i] = read(weight + i % p.channels * taps_of(p) + i / p.channels);
  }
};

// Elements of the type of sums that strips need for repacked weights.
inline int64_t repacked_elements(const Window& p) {
  return taps_of(p) * p.channels;
}

// V values that lie next to each other, in vectors of at most 16 bytes.
template <int V, class S>
EVIT_HD void read_vector(const S* from, Sum<S> (&values)[V]) {
  constexpr int kPart = V < kPackWidth<S> ? V : kPackWidth<S>;
  EVIT_UNROLLED
  for (int v = 0; v < V; v += kPart) {
    const auto pack = *reinterpret_cast<const Pack<S, kPart>*>(from + v);
    EVIT_UNROLLED
    for (int j = 0; j < kPart; ++j) values[v + j] = read(pack.values + j);
  }
}

// The columns of a row from `left` on; those outside are zeros.
template <int N, int V, class S>
EVIT_HD void read_row(const S* row, int64_t left, int64_t width, int64_t step,
                      Sum<S> (&values)[N][V]) {
  const int first = static_cast<int>(left), end = static_cast<int>(width);
  const int distance = static_cast<int>(step);
  const S* at = row + left * step;
  EVIT_UNROLLED
  for (int c = 0; c < N; ++c) {
    if (first + c >= 0 && first + c < end) {
      read_vector<V>(at + c * distance, values[c]);
    } else {
      EVIT_UNROLLED
      for (int v = 0; v < V; ++v) values[c][v] = 0;
    }
  }
}

// Adds to the outputs of a row what an input row contributes by one row of taps; `position` says
// which input column an output column meets at a tap, or -1. Many taps are summed row by row: the
// error of a sum grows with its length.
template <int K, int C, int V, int N, class A, class F>
EVIT_HD void add_taps(const A* taps, int channels, const A (&x)[N][V], A (&target)[C][V],
                      const F& position) {
  A part[C][V] = {};
  A(&sums)[C][V] = K > 3 ? part : target;
  EVIT_UNROLLED
  for (int kw = 0; kw < K; ++kw) {
    A factors[V];
    read_vector<V>(taps + kw * channels, factors);
    EVIT_UNROLLED
    for (int c = 0; c < C; ++c) {
      if (position(c, kw) < 0) continue;
      EVIT_UNROLLED
      for (int v = 0; v < V; ++v) sums[c][v] += x[position(c, kw)][v] * factors[v];
    }
  }
  if (K <= 3) return;
  EVIT_UNROLLED
  for (int c = 0; c < C; ++c) {
    EVIT_UNROLLED
    for (int v = 0; v < V; ++v) target[c][v] += part[c][v];
  }
}

template <int V, class S>
EVIT_HD void write_vector(S* to, const Sum<S> (&values)[V]) {
  Pack<S, V> pack;
  EVIT_UNROLLED
  for (int v = 0; v < V; ++v) write(pack.values + v, values[v]);
  store(to, pack);
}

// Whether strips serve a window: what they need of sizes and strides.
inline bool strips_fit(const Window& p) {
  if (p.kernel[1] != p.kernel[2] || p.stride[1] != p.stride[2]) return false;
  if (p.kernel[1] != 3 && p.kernel[1] != 5) return false;
  if (p.stride[1] > 2 || p.dilation[1] != 1 || p.dilation[2] != 1) return false;
  if (p.dtype == DType::kFloat64) return false;
  // Within a strip, 32 bits count.
  constexpr int64_t kMost = int64_t{1} << 24;
  for (int64_t size : {p.channels, p.in[1], p.in[2], p.out[1], p.out[2], p.in_strides[3]})
    if (size > kMost) return false;
  if (p.planar) return true;
  const int64_t channels = kPackBytes / size_of(p.dtype);
  for (int64_t stride : p.in_strides)
    if (stride % channels != 0) return false;
  return p.channels % channels == 0;
}

// The same, of tensors at certain addresses.
inline bool strips_serve(const Window& p, std::initializer_list<const void*> addresses) {
  for (const void* address : addresses)
    if (!p.planar && !is_aligned(address)) return false;
  return strips_fit(p);
}

// Calls f(kernel, stride) with the constants of a window that strips serve.
template <class F>
Status with_window(const Window& p, F&& f) {
  const auto with_stride = [&](auto kernel) -> Status {
    if (p.stride[1] == 1) return f(kernel, std::integral_constant<int, 1>{});
    return f(kernel, std::integral_constant<int, 2>{});
  };
  if (p.kernel[1] == 3) return with_stride(std::integral_constant<int, 3>{});
  return with_stride(std::integral_constant<int, 5>{});
}

}  // namespace evit::cuda
