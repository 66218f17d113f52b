// The product of a pointwise convolution: rows of source channels times a packed matrix, with bias,
// activation and residual in the store.
#pragma once

#include "pointwise_conv3d_ahead.h"
#include "pointwise_conv3d_tiles.h"

namespace {

// destination = activation(source matrix + bias) + residual, or multiplier * activation'(...).
// Every group of `depth` source channels has a matrix of its own and `width` destination channels.
template <class S>
struct Product {
  const S* source;
  int64_t tokens, groups, depth, width, source_stride;
  const S* weight;
  int64_t weight_group, weight_row, weight_column;  // strides along groups, width and depth
  const S* bias;
  const S* residual;
  const S* multiplier;
  Activation activation;
  S* destination;
  int32_t num_threads;
};

// Where a tile of results goes: destination channels from `channel` on, of which `lanes` exist.
template <class A>
struct Place {
  int64_t token;
  int64_t channel;
  int64_t left;   // channels of the group from here on
  const A* bias;  // of the first channel, or null
};

// Stores one vector of each of M tokens.
template <class S, int M>
EVIT_INLINE void finish(const Product<S>& p, const Place<Acc<S>>& to, int64_t c,
                        Vector<Acc<S>, kLanes<S>> (&sums)[M]) {
  constexpr int L = kLanes<S>;
  using V = Vector<Acc<S>, L>;
  const int lanes = static_cast<int>(smaller(L, to.left - c));
  const int64_t width = p.groups * p.width;
  if (to.bias != nullptr) {
    const V shift = load<L>(to.bias + c);
    EVIT_UNROLL
    for (int m = 0; m < M; ++m) sums[m] += shift;
  }
  const int64_t offset = to.token * width + to.channel + c;
  if (p.multiplier == nullptr && lanes == L && activate_inline<Acc<S>, L>(sums, p.activation)) {
    if (p.residual != nullptr) {
      EVIT_UNROLL
      for (int m = 0; m < M; ++m) sums[m] += load<L>(p.residual + offset + m * width);
    }
    EVIT_UNROLL
    for (int m = 0; m < M; ++m) store<L>(p.destination + offset + m * width, sums[m]);
    return;
  }
  V values[M];
  for (int m = 0; m < M; ++m) values[m] = sums[m];
  if (p.multiplier != nullptr) {
    V grads[M];
    for (int m = 0; m < M; ++m) grads[m] = load_part<L>(p.multiplier + offset + m * width, lanes);
    differentiate<Acc<S>, L>(grads, values, M, p.activation);
    for (int m = 0; m < M; ++m) values[m] = grads[m];
  } else {
    activate<Acc<S>, L>(values, M, p.activation);
  }
  for (int m = 0; m < M; ++m) {
    if (p.residual != nullptr) values[m] += load_part<L>(p.residual + offset + m * width, lanes);
    store_part<L>(p.destination + offset + m * width, values[m], lanes);
  }
}

template <class S, int M, int N>
EVIT_INLINE void tile(const Product<S>& p, const Acc<S>* a, int64_t stride, const Acc<S>* panel,
                      Place<Acc<S>> to, int64_t first) {
  constexpr int L = kLanes<S>;
  Vector<Acc<S>, L> sums[M][N];
  product_tile<Acc<S>, M, N>(a + first * stride, stride, panel, p.depth, sums);
  to.token += first;
  EVIT_UNROLL
  for (int n = 0; n < N; ++n) {
    Vector<Acc<S>, L> column[M];
    EVIT_UNROLL
    for (int m = 0; m < M; ++m) column[m] = sums[m][n];
    finish<S, M>(p, to, n * L, column);
  }
}

// `count` tokens, all channels of one panel.
template <class S, int N>
void panel_of_tokens(const Product<S>& p, const Acc<S>* a, int64_t stride, const Acc<S>* panel,
                     const Place<Acc<S>>& to, int64_t count, RowsAhead& ahead) {
  const int64_t width = p.groups * p.width;
  for_each_tile(count, [&](auto tokens, int64_t first) {
    constexpr int M = tokens.value;
    ahead.fetch();
    if (const int64_t next = first + 2 * M; ahead.streams() && next + M <= count) {
      const int64_t offset = (to.token + next) * width + to.channel;
      fetch_tile<M, 1>(p.destination + offset, width, N * kLanes<S>);
      if (p.residual != nullptr) fetch_tile<M, 0>(p.residual + offset, width, N * kLanes<S>);
      if (p.multiplier != nullptr) fetch_tile<M, 0>(p.multiplier + offset, width, N * kLanes<S>);
    }
    tile<S, M, N>(p, a, stride, panel, to, first);
  });
}

// The matrix and the bias of a product, packed for its tiles.
template <class S>
class Panels {
 public:
  explicit Panels(const Product<S>& p)
      : p_(p),
        of_group_(ceil_div(p.width, W)),
        packed_(count() * p.depth * W),
        bias_(p.bias != nullptr ? count() * W : 0) {}

  bool ok() const { return packed_.ok() && bias_.ok(); }
  int64_t count() const { return p_.groups * of_group_; }

  // To be called by all threads of a team.
  void pack() {
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < count(); ++panel) {
      const int64_t group = panel / of_group_, first = channel(panel);
      pack_panel(p_.weight + group * p_.weight_group + first * p_.weight_row, p_.weight_row,
                 p_.weight_column, p_.depth, p_.width - first,
                 packed_.data() + panel * p_.depth * W);
      for (int64_t i = 0; p_.bias != nullptr && i < W; ++i)
        bias_[panel * W + i] =
            first + i < p_.width ? load<1>(p_.bias + group * p_.width + first + i)[0] : 0;
    }
  }

  // Destination tokens [token, token + count) of the panels [panel, end); `rows`, `stride` elements
  // apart, are their sources; `ahead` is fetched meanwhile.
  void multiply(const Acc<S>* rows, int64_t stride, int64_t token, int64_t count, int64_t panel,
                int64_t end, RowsAhead ahead = {}) const {
    for (; panel < end; ++panel) {
      const int64_t group = panel / of_group_, c = channel(panel);
      const Place<Acc<S>> to = {token, group * p_.width + c, p_.width - c,
                                p_.bias != nullptr ? bias_.data() + panel * W : nullptr};
      const Acc<S>* a = rows + group * p_.depth;
      const Acc<S>* b = packed_.data() + panel * p_.depth * W;
      if (to.left > kLanes<S>)
        panel_of_tokens<S, kPanel>(p_, a, stride, b, to, count, ahead);
      else
        panel_of_tokens<S, 1>(p_, a, stride, b, to, count, ahead);
    }
  }

 private:
  static constexpr int64_t W = kPanel * kLanes<S>;

  // The first channel of a panel in its group.
  int64_t channel(int64_t panel) const { return panel % of_group_ * W; }

  const Product<S>& p_;
  const int64_t of_group_;
  Buffer<Acc<S>> packed_;  // (panel, depth, W)
  Buffer<Acc<S>> bias_;
};

}  // namespace
