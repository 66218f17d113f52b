// The forward pass of depthwise convolution in strips, and the derivative of its activation.
#pragma once

#include "depthwise_conv3d_strips.h"

namespace evit::cuda {

template <class S, int K, int Stride, bool kPlanar>
struct ForwardStrip {
  static constexpr int V = kStripChannels<S, K, kPlanar>;
  static constexpr int C = kStripColumns<S, K, kPlanar>;
  static constexpr int kColumnsRead = (C - 1) * Stride + K;
  static constexpr int kRing = (K + Stride - 1) / Stride;  // outputs that an input row belongs to
  using A = Sum<S>;

  Window p;
  Strips strips;
  const S* input;
  const A* weight;  // repacked
  const S* bias;
  const S* grad;  // of the output, or null: instead of the output, its gradient before activation
  S* output;

  ForwardStrip(const Window& window, const S* x, const A* w, const S* b, const S* g, S* y)
      : p(window),
        strips(window, window.out[0], window.out[1], window.out[2], V, C),
        input(x),
        weight(w),
        bias(b),
        grad(g),
        output(y) {}

  EVIT_HD void operator()(int64_t i) const {
    const Strip s = strip_at(strips, V, C, kPlanar, i);
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
    const Strides in = strides_of_input(p);
    const int channels = static_cast<int>(p.channels);
    for (int64_t kt = 0; kt < p.kernel[0]; ++kt) {
      const int64_t t = input_of(p, kTime, s.t, kt);
      if (t < 0) continue;
      const S* row = input + s.n * in.n + s.channel * in.c + t * in.at[0] + h * in.at[1];
      const A* taps = weight + kt * K * K * channels + s.channel;
      A x[kColumnsRead][V];
      read_row(row, s.column * Stride - p.padding[2], p.in[2], in.at[2], x);
      EVIT_UNROLLED
      for (int r = 0; r < kRing; ++r) {
        // The tap of the output that began r outputs ago.
        const int kh = phase % Stride + r * Stride;
        if (kh >= K) continue;
        add_taps<K>(taps + kh * K * channels, channels, x,
                    sums[(phase / Stride + kRing - r) % kRing],
                    [](int c, int kw) { return c * Stride + kw; });
      }
    }
  }

  EVIT_HD void finish(const Strip& s, int64_t h, const A (&sums)[C][V]) const {
    const Strides out = strides_of_dense(p, p.out);
    const int64_t row = s.n * out.n + s.channel * out.c + s.t * out.at[0] + h * out.at[1];
    EVIT_UNROLLED
    for (int c = 0; c < C; ++c) {
      if (s.column + c >= p.out[2]) continue;
      const int64_t at = row + (s.column + c) * out.at[2];
      A values[V];
      if (grad != nullptr) {
        read_vector<V>(grad + at, values);
        EVIT_UNROLLED
        for (int v = 0; v < V; ++v) values[v] = differentiate(values[v], sums[c][v], p.activation);
      } else {
        EVIT_UNROLLED
        for (int v = 0; v < V; ++v) values[v] = activate(sums[c][v], p.activation);
      }
      write_vector(output + at, values);
    }
  }
};

// `workspace` receives the repacked weights; `grad` as in ForwardStrip.
template <class S>
Status forward_in_strips(const Window& p, const S* input, const S* weight, const S* bias,
                         const S* grad, S* output, Sum<S>* workspace, Stream stream) {
  const RepackWeights<S> repack = {p, weight, workspace};
  const Status status = for_each(repacked_elements(p), repack, stream);
  if (!status.ok()) return status;
  return with_window(p, [&](auto kernel, auto stride) -> Status {
    const auto run = [&](auto planar) {
      const ForwardStrip<S, kernel, stride, planar> body(p, input, workspace, bias, grad, output);
      return for_each(body.strips.count(), body, stream);
    };
    return p.planar ? run(std::true_type{}) : run(std::false_type{});
  });
}

}  // namespace evit::cuda
