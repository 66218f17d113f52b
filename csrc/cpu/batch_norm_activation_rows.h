// The loops of batch normalisation over rows of one width, a whole number of vectors; each column
// of a row has its own parameters.
//
// Passes that write go straight through memory. Passes that sum take several rows at a time, so
// that a column's sums are loaded and stored once for all of them; since that is no order that
// hardware prefetches well, they ask for the rows that come next themselves, straight through
// memory.
#pragma once

#include "activation.h"

namespace {

// What a column needs, as arrays of the row's width.
template <class A>
struct Columns {
  const A* mean;
  const A* scale;  // weight / sqrt(variance + eps)
  const A* shift;  // bias
  // Backward through the moments: mean of the gradient, and its slope along x - mean.
  const A* grad_mean;
  const A* grad_slope;
};

template <class S>
struct RowJob {
  const S* input;
  int64_t input_stride;
  const S* grad;  // like those of `output`, its rows follow each other
  S* output;
  int64_t rows;
  int64_t width;
  Columns<Acc<S>> columns;
  Activation activation;
};

template <class V, int N>
EVIT_INLINE V sum_of(const V (&v)[N]) {
  if constexpr (N == 1) return v[0];
  if constexpr (N == 4) return (v[0] + v[1]) + (v[2] + v[3]);
  if constexpr (N == 8) return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

// Asks for part of `R` rows from `next` on: call it for every column, and all of them are asked
// for.
template <int L, int R, class S>
EVIT_INLINE void prefetch(const S* next, int64_t c) {
  EVIT_UNROLL
  for (int i = 0; i < R; ++i) __builtin_prefetch(next + c * R + i * L);
}

// ---- moments ----

// Sums of x - pivot and of its square over R rows, kept in registers. The first rows of a block
// choose the pivot: their mean. A pivot that is the mean of k of n values makes the rounding of the
// variance at most n / k times worse, whatever the values are; usually it costs nothing.
template <class S, int R, bool kFirst>
EVIT_INLINE void add_moments(const S* x, int64_t stride, int64_t width, Acc<S>* pivot, Acc<S>* sums,
                             Acc<S>* squares) {
  constexpr int L = kLanes<S>;
  using A = Acc<S>;
  using V = Vector<A, L>;
  const S* next = stride == width ? x + R * stride : x;
  for (int64_t c = 0; c < width; c += L) {
    V v[R], square[R];
    prefetch<L, R>(next, c);
    EVIT_UNROLL
    for (int i = 0; i < R; ++i) v[i] = load<L>(x + i * stride + c);
    V p;
    if constexpr (kFirst) {
      p = sum_of(v) * (A(1) / A(R));
      p = p - p == V{} ? p : V{};  // infinity is for the sums to find, not to be subtracted
      store<L>(pivot + c, p);
    } else {
      p = load<L>(pivot + c);
    }
    EVIT_UNROLL
    for (int i = 0; i < R; ++i) {
      v[i] = v[i] - p;
      square[i] = v[i] * v[i];
    }
    V sum = sum_of(v), squared = sum_of(square);
    if constexpr (!kFirst) {
      sum += load<L>(sums + c);
      squared += load<L>(squares + c);
    }
    store<L>(sums + c, sum);
    store<L>(squares + c, squared);
  }
}

template <class S>
__attribute__((noinline)) void block_moments(const S* x, int64_t stride, int64_t rows,
                                             int64_t width, Acc<S>* pivot, Acc<S>* sums,
                                             Acc<S>* squares) {
  int64_t row;
  if (rows >= 8) {
    add_moments<S, 8, true>(x, stride, width, pivot, sums, squares);
    row = 8;
  } else {
    add_moments<S, 1, true>(x, stride, width, pivot, sums, squares);
    row = 1;
  }
  for (; row + 8 <= rows; row += 8)
    add_moments<S, 8, false>(x + row * stride, stride, width, pivot, sums, squares);
  for (; row < rows; ++row)
    add_moments<S, 1, false>(x + row * stride, stride, width, pivot, sums, squares);
}

template <int L>
EVIT_INLINE Vector<double, L> widened(Vector<float, L> v) {
  return __builtin_convertvector(v, Vector<double, L>);
}
template <int L>
EVIT_INLINE Vector<double, L> widened(Vector<double, L> v) {
  return v;
}

// Joins the moments of a block of `rows` to those of `before` rows, kept as their sum and the sum
// of squares around their mean: Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise
// algorithm for computing sample variances", equation 1.5.
template <class S>
__attribute__((noinline)) void merge_moments(const Acc<S>* pivot, const Acc<S>* sums,
                                             const Acc<S>* squares, int64_t width, int64_t rows,
                                             int64_t before, double* total, double* deviation) {
  constexpr int L = kLanes<S>;
  using D = Vector<double, L>;
  const double count = static_cast<double>(rows);
  const double inverse = 1.0 / count;
  const double inverse_before = before > 0 ? 1.0 / static_cast<double>(before) : 0.0;
  const double weight = static_cast<double>(before) * count / static_cast<double>(before + rows);
  for (int64_t c = 0; c < width; c += L) {
    const D sum = widened<L>(load<L>(sums + c));
    const D offset = sum * inverse;
    const D centre = widened<L>(load<L>(pivot + c));
    const D old = load_raw<D>(total + c);
    const D difference = centre + offset - old * inverse_before;
    const D joined = old + (centre * count + sum);
    const D spread = load_raw<D>(deviation + c) +
                     (widened<L>(load<L>(squares + c)) - sum * offset) +
                     difference * difference * weight;
    std::memcpy(total + c, &joined, sizeof joined);
    std::memcpy(deviation + c, &spread, sizeof spread);
  }
}

// ---- forward ----

// kAct is the activation where it is a few instructions, and any other value for the rest.
template <class S, Activation kAct, int N>
EVIT_INLINE void normalise(const RowJob<S>& job, const S* x, S* y, int64_t c) {
  constexpr int L = kLanes<S>;
  const Columns<Acc<S>>& columns = job.columns;
  Vector<Acc<S>, L> v[N];
  EVIT_UNROLL
  for (int i = 0; i < N; ++i) {
    const int64_t column = c + i * L;
    v[i] =
        (load<L>(x + column) - load<L>(columns.mean + column)) * load<L>(columns.scale + column) +
        load<L>(columns.shift + column);
  }
  if (!activate_inline<Acc<S>, L>(v, kAct)) activate<Acc<S>, L>(v, N, job.activation);
  EVIT_UNROLL
  for (int i = 0; i < N; ++i) store<L>(y + c + i * L, v[i]);
}

// ---- backward ----

// x - mean, and the gradient before the activation, of N vectors whose parameters stand at
// `columns`.
template <class S, Activation kAct, int N>
EVIT_INLINE void before_activation(const RowJob<S>& job, const S* const (&x)[N],
                                   const S* const (&dy)[N], const int64_t (&columns)[N],
                                   Vector<Acc<S>, kLanes<S>> (&centred)[N],
                                   Vector<Acc<S>, kLanes<S>> (&grad)[N]) {
  constexpr int L = kLanes<S>;
  Vector<Acc<S>, L> v[N];
  EVIT_UNROLL
  for (int i = 0; i < N; ++i) {
    centred[i] = load<L>(x[i]) - load<L>(job.columns.mean + columns[i]);
    v[i] = centred[i] * load<L>(job.columns.scale + columns[i]) +
           load<L>(job.columns.shift + columns[i]);
    grad[i] = load<L>(dy[i]);
  }
  if (!differentiate_inline<Acc<S>, L>(grad, v, kAct))
    differentiate<Acc<S>, L>(grad, v, N, job.activation);
}

// Adds the gradient before the activation, and its product with x - mean, to `sums` and `products`.
// Where the job has an output, that gradient is kept there.
template <class S, Activation kAct, int R>
EVIT_INLINE void add_gradient(const RowJob<S>& job, int64_t row, Acc<S>* sums, Acc<S>* products) {
  constexpr int L = kLanes<S>;
  using V = Vector<Acc<S>, L>;
  const S* x = job.input + row * job.input_stride;
  const S* dy = job.grad + row * job.width;
  const S* next_x = job.input_stride == job.width ? x + 2 * R * job.width : x;
  const S* next_dy = dy + 2 * R * job.width;
  for (int64_t c = 0; c < job.width; c += L) {
    prefetch<L, R>(next_x, c);
    prefetch<L, R>(next_dy, c);
    V centred[R], grad[R], product[R];
    const S *inputs[R], *grads[R];
    int64_t columns[R];
    EVIT_UNROLL
    for (int i = 0; i < R; ++i) {
      inputs[i] = x + i * job.input_stride + c;
      grads[i] = dy + i * job.width + c;
      columns[i] = c;
    }
    before_activation<S, kAct>(job, inputs, grads, columns, centred, grad);
    if constexpr (kAct == Activation::kSilu) {
      for (int i = 0; i < R && job.output != nullptr; ++i)
        store<L>(job.output + (row + i) * job.width + c, grad[i]);
    }
    EVIT_UNROLL
    for (int i = 0; i < R; ++i) product[i] = grad[i] * centred[i];
    store<L>(sums + c, load<L>(sums + c) + sum_of(grad));
    store<L>(products + c, load<L>(products + c) + sum_of(product));
  }
}

template <class S, Activation kAct, bool kMoments, int N>
EVIT_INLINE void input_gradient(const RowJob<S>& job, const S* x, const S* dy, S* dx, int64_t c) {
  constexpr int L = kLanes<S>;
  Vector<Acc<S>, L> centred[N], grad[N];
  const S *inputs[N], *grads[N];
  int64_t columns[N];
  EVIT_UNROLL
  for (int i = 0; i < N; ++i) {
    columns[i] = c + i * L;
    inputs[i] = x + columns[i];
    grads[i] = dy + columns[i];
  }
  before_activation<S, kAct>(job, inputs, grads, columns, centred, grad);
  EVIT_UNROLL
  for (int i = 0; i < N; ++i) {
    if constexpr (kMoments)
      grad[i] = (grad[i] - load<L>(job.columns.grad_mean + columns[i])) -
                centred[i] * load<L>(job.columns.grad_slope + columns[i]);
    store<L>(dx + columns[i], grad[i] * load<L>(job.columns.scale + columns[i]));
  }
}

// ---- all rows of a job ----

// Calls f(Known<activation>{}), with kSilu standing for every activation that is not inlined.
template <Activation kAct>
struct Known {
  static constexpr Activation value = kAct;
};

template <class F>
EVIT_INLINE void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kNone:
      return f(Known<Activation::kNone>{});
    case Activation::kRelu:
      return f(Known<Activation::kRelu>{});
    case Activation::kHardswish:
      return f(Known<Activation::kHardswish>{});
    default:
      return f(Known<Activation::kSilu>{});
  }
}

// Calls f(Width<N>{}, c) along a row: four vectors at a time, then one.
template <int L, class F>
EVIT_INLINE void for_each_column(int64_t width, F&& f) {
  int64_t c = 0;
  for (; c + 4 * L <= width; c += 4 * L) f(Width<4>{}, c);
  for (; c < width; c += L) f(Width<1>{}, c);
}

template <class S>
__attribute__((noinline)) void normalise_rows(const RowJob<S>& job) {
  with_activation(job.activation, [&](auto act) {
    for (int64_t row = 0; row < job.rows; ++row) {
      const S* x = job.input + row * job.input_stride;
      S* y = job.output + row * job.width;
      for_each_column<kLanes<S>>(job.width, [&](auto n, int64_t c) {
        normalise<S, decltype(act)::value, decltype(n)::value>(job, x, y, c);
      });
    }
  });
}

template <class S>
__attribute__((noinline)) void add_gradient_rows(const RowJob<S>& job, Acc<S>* sums,
                                                 Acc<S>* products) {
  with_activation(job.activation, [&](auto act) {
    int64_t row = 0;
    for (; row + 4 <= job.rows; row += 4)
      add_gradient<S, decltype(act)::value, 4>(job, row, sums, products);
    for (; row < job.rows; ++row)
      add_gradient<S, decltype(act)::value, 1>(job, row, sums, products);
  });
}

template <class S, bool kMoments>
__attribute__((noinline)) void input_gradient_rows(const RowJob<S>& job) {
  with_activation(job.activation, [&](auto act) {
    for (int64_t row = 0; row < job.rows; ++row) {
      const S* x = job.input + row * job.input_stride;
      const S* dy = job.grad + row * job.width;
      S* dx = job.output + row * job.width;
      for_each_column<kLanes<S>>(job.width, [&](auto n, int64_t c) {
        input_gradient<S, decltype(act)::value, kMoments, decltype(n)::value>(job, x, dy, dx, c);
      });
    }
  });
}

}  // namespace
