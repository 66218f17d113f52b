// Dense 3-D convolution of few input channels on CPUs: a matrix product without the matrix.
//
// The k_w C_in values that a row of taps sees lie next to each other in a channels-last row, and
// from one output column to the next they move on by stride C_in. So each row of taps is a product
// of overlapping rows of a zero-padded source line with k_w C_in rows of weights, and a tile of
// output columns stays in registers while all rows of taps pass.
#include "evit/dense_conv3d.h"

#include "activation.h"
#include "buffer.h"
#include "dense_conv3d_window.h"
#include "dispatch.h"
#include "simd.h"

namespace {

using evit::Status;

constexpr int64_t kMaxSplits = 32;

// ---- forward ----

template <class S>
class Forward {
 public:
  using A = Acc<S>;
  static constexpr int L = kLanes<S>;
  using V = Vector<A, L>;

  Forward(const Problem& p, const S* input, const S* weight, const S* bias, S* output)
      : p_(p),
        w_(p),
        input_(input),
        output_(output),
        panel_(w_.tap_rows * w_.depth * L),
        weights_(w_.panels * panel_),
        bias_(w_.panels * L) {
    if (!weights_.ok() || !bias_.ok()) return;
    for (int64_t c = 0; c < w_.panels * L; ++c) {
      const bool there = c < p.out_channels;
      bias_[c] = there && bias != nullptr ? load<1>(bias + c)[0] : A(0);
      A* to = weights_.data() + c / L * panel_ + c % L;
      for (int64_t row = 0; row < w_.tap_rows; ++row)
        for (int64_t i = 0; i < w_.depth; ++i, to += L) {
          const int64_t channel = i % p.in_channels, tap = i / p.in_channels;
          const int64_t from =
              ((c * p.in_channels + channel) * w_.tap_rows + row) * p.kernel[2] + tap;
          *to = there ? load<1>(weight + from)[0] : A(0);
        }
    }
  }

  Status run() const {
    if (!weights_.ok() || !bias_.ok()) return {kNoMemory};
    bool failed = false;
#pragma omp parallel num_threads(p_.num_threads) if (p_.num_threads > 1)
    {
      Buffer<A> lines(w_.scratch());
      Buffer<Tap<A>> taps(w_.tap_rows);
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < w_.tiles(); ++task) {
        if (lines.ok() && taps.ok())
          tile(task, lines.data(), taps.data());
        else
          failed = true;
      }
    }
    return {failed ? kNoMemory : nullptr};
  }

 private:
  void tile(int64_t task, A* lines, Tap<A>* taps) const {
    const int64_t h0 = task % w_.row_tiles * w_.rows;
    const int64_t t = task / w_.row_tiles % p_.out[0];
    const int64_t n = task / (w_.row_tiles * p_.out[0]);
    const int64_t rows = smaller(w_.rows, p_.out[1] - h0);
    w_.fill(input_ + n * p_.in_strides[0], t, h0, rows, lines);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t count = w_.taps(t, h0, i, lines, taps);
      S* out = output_ + ((n * p_.out[0] + t) * p_.out[1] + h0 + i) * p_.out[2] * p_.out_channels;
      int64_t panel = 0;
      for (; panel + 2 <= w_.panels; panel += 2) row<2>(taps, count, panel, out);
      if (panel < w_.panels) row<1>(taps, count, panel, out);
    }
  }

  template <int N>
  void row(const Tap<A>* taps, int64_t count, int64_t panel, S* out) const {
    int64_t w = 0;
    for (; w + kTileColumns <= p_.out[2]; w += kTileColumns)
      block<kTileColumns, N>(taps, count, panel, w, out);
    for (; w + 4 <= p_.out[2]; w += 4) block<4, N>(taps, count, panel, w, out);
    for (; w < p_.out[2]; ++w) block<1, N>(taps, count, panel, w, out);
  }

  // M output columns, N vectors of output channels.
  template <int M, int N>
  EVIT_INLINE void block(const Tap<A>* taps, int64_t count, int64_t panel, int64_t w,
                         S* out) const {
    V sums[N][M];
    EVIT_UNROLL
    for (int n = 0; n < N; ++n) {
      const V bias = load<L>(bias_.data() + (panel + n) * L);
      EVIT_UNROLL
      for (int m = 0; m < M; ++m) sums[n][m] = bias;
    }
    const A* weights = weights_.data() + panel * panel_;
    for (int64_t tap = 0; tap < count; ++tap) {
      const A* x = taps[tap].line + w * w_.step;
      const A* weight = weights + taps[tap].row * w_.depth * L;
      for (int64_t k = 0; k < w_.depth; ++k) {
        V factors[N];
        EVIT_UNROLL
        for (int n = 0; n < N; ++n) factors[n] = load<L>(weight + n * panel_ + k * L);
        EVIT_UNROLL
        for (int m = 0; m < M; ++m) {
          const V value = broadcast<L>(x[m * w_.step + k]);
          EVIT_UNROLL
          for (int n = 0; n < N; ++n) sums[n][m] += value * factors[n];
        }
      }
    }
    EVIT_UNROLL
    for (int n = 0; n < N; ++n) {
      const int lanes = static_cast<int>(smaller(L, p_.out_channels - (panel + n) * L));
      S* to = out + w * p_.out_channels + (panel + n) * L;
      if (lanes == L && activate_inline<A, L>(sums[n], p_.activation)) {
        EVIT_UNROLL
        for (int m = 0; m < M; ++m) store<L>(to + m * p_.out_channels, sums[n][m]);
        continue;
      }
      // A copy: the accumulators must not be those whose address an out-of-line function sees.
      V values[M];
      for (int m = 0; m < M; ++m) values[m] = sums[n][m];
      activate<A, L>(values, M, p_.activation);
      for (int m = 0; m < M; ++m) store_part<L>(to + m * p_.out_channels, values[m], lanes);
    }
  }

  const Problem& p_;
  const Window<S> w_;
  const S* input_;
  S* output_;
  const int64_t panel_;
  Buffer<A> weights_;
  Buffer<A> bias_;
};

// ---- gradients of weight and bias ----

template <class S>
class WeightGradient {
 public:
  using A = Acc<S>;
  static constexpr int L = kLanes<S>;
  using V = Vector<A, L>;

  explicit WeightGradient(const Problem& p)
      : p_(p),
        w_(p),
        panel_((w_.tap_rows * w_.depth + 1) * L),
        splits_(larger(1, smaller(kMaxSplits, w_.tiles()))) {}

  int64_t workspace() const { return splits_ * w_.panels * panel_; }

  // A split is a run of tiles: cut by the shape alone, never by the threads.
  Status run(const S* grad, const S* input, A* partials, S* grad_weight, S* grad_bias) const {
    bool failed = false;
#pragma omp parallel num_threads(p_.num_threads) if (p_.num_threads > 1)
    {
      Buffer<A> lines(w_.scratch());
      Buffer<Tap<A>> taps(w_.tap_rows);
      Buffer<A> grads(p_.out[2] * w_.panels * L);
      const bool ready = lines.ok() && taps.ok() && grads.ok();
#pragma omp for schedule(dynamic)
      for (int64_t split = 0; split < splits_; ++split) {
        if (!ready) {
          failed = true;
          continue;
        }
        A* sums = partials + split * w_.panels * panel_;
        for (int64_t i = 0; i < w_.panels * panel_; ++i) sums[i] = 0;
        for (int64_t tile = split * w_.tiles() / splits_; tile < (split + 1) * w_.tiles() / splits_;
             ++tile)
          add(tile, grad, input, lines.data(), taps.data(), grads.data(), sums);
      }
    }
    if (failed) return {kNoMemory};
    for (int64_t split = 1; split < splits_; ++split)
      for (int64_t i = 0; i < w_.panels * panel_; ++i)
        partials[i] += partials[split * w_.panels * panel_ + i];
    give(partials, grad_weight, grad_bias);
    return {};
  }

 private:
  void add(int64_t tile, const S* grad, const S* input, A* lines, Tap<A>* taps, A* grads,
           A* sums) const {
    const int64_t h0 = tile % w_.row_tiles * w_.rows;
    const int64_t t = tile / w_.row_tiles % p_.out[0];
    const int64_t n = tile / (w_.row_tiles * p_.out[0]);
    const int64_t rows = smaller(w_.rows, p_.out[1] - h0), width = w_.panels * L;
    w_.fill(input + n * p_.in_strides[0], t, h0, rows, lines);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t count = w_.taps(t, h0, i, lines, taps);
      const S* from =
          grad + ((n * p_.out[0] + t) * p_.out[1] + h0 + i) * p_.out[2] * p_.out_channels;
      for (int64_t w = 0; w < p_.out[2]; ++w)
        for (int64_t c = 0; c < width; c += L)
          store<L>(grads + w * width + c,
                   load_part<L>(from + w * p_.out_channels + c,
                                static_cast<int>(smaller(L, p_.out_channels - c))));
      for (int64_t panel = 0; panel < w_.panels; ++panel) {
        A* to = sums + panel * panel_;
        for (int64_t tap = 0; tap < count; ++tap) {
          A* row = to + taps[tap].row * w_.depth * L;
          int64_t k = 0;
          for (; k + 9 <= w_.depth; k += 9)
            add_columns<9>(taps[tap].line + k, grads + panel * L, row + k * L);
          for (; k + 3 <= w_.depth; k += 3)
            add_columns<3>(taps[tap].line + k, grads + panel * L, row + k * L);
          for (; k < w_.depth; ++k)
            add_columns<1>(taps[tap].line + k, grads + panel * L, row + k * L);
        }
        V total[2] = {};
        for (int64_t w = 0; w < p_.out[2]; ++w)
          total[w & 1] += load<L>(grads + w * width + panel * L);
        A* bias = to + panel_ - L;
        store<L>(bias, load<L>(bias) + (total[0] + total[1]));
      }
    }
  }

  // K values of a row of taps, one vector of output channels, summed over an output row.
  template <int K>
  EVIT_INLINE void add_columns(const A* x, const A* grads, A* to) const {
    const int64_t width = w_.panels * L;
    V sums[K];
    EVIT_UNROLL
    for (int k = 0; k < K; ++k) sums[k] = V{};
    for (int64_t w = 0; w < p_.out[2]; ++w) {
      V g = load<L>(grads + w * width);
      keep(g);
      EVIT_UNROLL
      for (int k = 0; k < K; ++k) sums[k] += g * broadcast<L>(x[w * w_.step + k]);
    }
    EVIT_UNROLL
    for (int k = 0; k < K; ++k) store<L>(to + k * L, load<L>(to + k * L) + sums[k]);
  }

  void give(const A* sums, S* grad_weight, S* grad_bias) const {
    for (int64_t c = 0; c < p_.out_channels; ++c) {
      const A* from = sums + c / L * panel_ + c % L;
      for (int64_t row = 0; grad_weight != nullptr && row < w_.tap_rows; ++row)
        for (int64_t i = 0; i < w_.depth; ++i) {
          const int64_t channel = i % p_.in_channels, tap = i / p_.in_channels;
          const int64_t to =
              ((c * p_.in_channels + channel) * w_.tap_rows + row) * p_.kernel[2] + tap;
          store<1>(grad_weight + to, Vector<A, 1>{from[(row * w_.depth + i) * L]});
        }
      if (grad_bias != nullptr) store<1>(grad_bias + c, Vector<A, 1>{from[panel_ - L]});
    }
  }

  const Problem& p_;
  const Window<S> w_;
  const int64_t panel_;  // sums of one vector of output channels: all taps, then the bias
  const int64_t splits_;
};

}  // namespace

namespace evit::cpu::EVIT_ISA {

Status dense_conv3d_forward(const Problem& p, const void* input, const void* weight,
                            const void* bias, void* output) {
  return with_storage(p.dtype, [&](auto s) {
    using S = typename decltype(s)::type;
    return Forward<S>(p, static_cast<const S*>(input), static_cast<const S*>(weight),
                      static_cast<const S*>(bias), static_cast<S*>(output))
        .run();
  });
}

int64_t dense_conv3d_workspace(const Problem& p) {
  return with_storage(
      p.dtype, [&](auto s) { return WeightGradient<typename decltype(s)::type>(p).workspace(); });
}

Status dense_conv3d_weight_gradient(const Problem& p, const void* grad_output, const void* input,
                                    void* partials, void* grad_weight, void* grad_bias) {
  return with_storage(p.dtype, [&](auto s) {
    using S = typename decltype(s)::type;
    return WeightGradient<S>(p).run(static_cast<const S*>(grad_output),
                                    static_cast<const S*>(input), static_cast<Acc<S>*>(partials),
                                    static_cast<S*>(grad_weight), static_cast<S*>(grad_bias));
  });
}

}  // namespace evit::cpu::EVIT_ISA

EVIT_ENTRY(Status, dense_conv3d_forward,
           (const DenseConv3dProblem& problem, const void* input, const void* weight,
            const void* bias, void* output),
           (problem, input, weight, bias, output))

EVIT_ENTRY(int64_t, dense_conv3d_workspace, (const DenseConv3dProblem& problem), (problem))

EVIT_ENTRY(Status, dense_conv3d_weight_gradient,
           (const DenseConv3dProblem& problem, const void* grad_output, const void* input,
            void* partials, void* grad_weight, void* grad_bias),
           (problem, grad_output, input, partials, grad_weight, grad_bias))
