// The data gradient of depthwise convolution in strips.
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

}  // namespace evit::cuda
