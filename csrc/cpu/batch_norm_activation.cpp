// Batch normalisation and activation on CPUs. It is bound by memory, so every pass reads each
// tensor once: moments read x; forward reads x and writes y; backward reads x and dy for the sums
// of the parameters, then again to write dx. Nothing else is stored: what backward needs is
// recomputed.
#include "evit/batch_norm_activation.h"

#include "batch_norm_activation_layout.h"
#include "batch_norm_activation_rows.h"
#include "dispatch.h"

namespace {

using evit::Status;
using Problem = evit::BatchNormActivationProblem;

constexpr int64_t kTaskElements = 64 * 1024;
constexpr int64_t kSerialElements = 16 * 1024;  // too little to wake other threads for
constexpr char kNoMemory[] = "out of memory for scratch buffers";
constexpr char kStrides[] =
    "channels-last input that is not dense needs channels in multiples of 16";

int threads_for(const Problem& p, const Layout& layout) {
  return layout.values() * p.channels < kSerialElements ? 1 : p.num_threads;
}

// Per-channel arrays and the two that backward computes, in the accumulation type.
template <class S>
struct Channels {
  const Acc<S>* mean;
  const Acc<S>* variance;
  const Acc<S>* weight;
  const Acc<S>* bias;
  const Acc<S>* grad_mean;
  const Acc<S>* grad_slope;
};

// One thread's copy of the parameters for the columns of a row; refilled when the channel changes.
template <class S>
class ColumnTable {
 public:
  using A = Acc<S>;
  ColumnTable(const Problem& p, const Layout& layout, const Channels<S>& channels)
      : eps_(p.eps), layout_(layout), channels_(channels), table_(5 * layout.width()) {}

  bool ok() const { return table_.ok(); }

  Columns<A> at(int64_t sheet) {
    const int64_t first = layout_.first_channel(sheet), width = layout_.width();
    A* const table = table_.data();
    if (first != filled_) {
      filled_ = first;
      const int64_t columns = layout_.columns();
      for (int64_t i = 0; i < columns; ++i) {
        const int64_t c = first + i;
        const double weight = channels_.weight != nullptr ? channels_.weight[c] : 1.0;
        table[i] = channels_.mean[c];
        table[width + i] = static_cast<A>(weight / std::sqrt(channels_.variance[c] + eps_));
        table[2 * width + i] = channels_.bias != nullptr ? channels_.bias[c] : A(0);
        table[3 * width + i] = channels_.grad_mean != nullptr ? channels_.grad_mean[c] : A(0);
        table[4 * width + i] = channels_.grad_slope != nullptr ? channels_.grad_slope[c] : A(0);
      }
      for (int row = 0; row < 5; ++row) repeat(table + row * width, columns, width);
    }
    return {table, table + width, table + 2 * width, table + 3 * width, table + 4 * width};
  }

 private:
  static void repeat(A* row, int64_t columns, int64_t width) {
    if (columns == 1) {
      const A value = row[0];
      for (int64_t i = 1; i < width; ++i) row[i] = value;
    } else {
      for (int64_t i = columns; i < width; ++i) row[i] = row[i - columns];
    }
  }

  const double eps_;
  const Layout& layout_;
  const Channels<S>& channels_;
  Buffer<A> table_;
  int64_t filled_ = -1;
};

// The tokens after the last whole row of a sheet, as a row of zeros that begins with them.
template <class S>
class LeftoverRow {
 public:
  explicit LeftoverRow(const Layout& layout)
      : count_(layout.leftover() * layout.columns()),
        width_(ceil_div(count_, kLanes<S>) * kLanes<S>),
        row_(width_) {
    if (row_.ok()) std::memset(row_.data(), 0, static_cast<size_t>(width_) * sizeof(S));
  }
  bool ok() const { return row_.ok(); }
  int64_t width() const { return width_; }
  S* data() { return row_.data(); }
  const S* read(const S* from) {
    std::memcpy(row_.data(), from, static_cast<size_t>(count_) * sizeof(S));
    return row_.data();
  }
  void write(S* to) const { std::memcpy(to, row_.data(), static_cast<size_t>(count_) * sizeof(S)); }

 private:
  const int64_t count_;
  const int64_t width_;
  Buffer<S> row_;
};

// ---- moments ----

template <class S>
class Moments {
 public:
  using A = Acc<S>;
  Moments(const Problem& p, const Layout& layout)
      : p_(p),
        layout_(layout),
        means_(layout.parts() * p.channels),
        deviations_(layout.parts() * p.channels),
        totals_(2 * p.channels) {}

  Status run(const S* input, A* mean, A* variance) {
    if (!means_.ok() || !deviations_.ok() || !totals_.ok()) return {kNoMemory};
    bool failed = false;
#pragma omp parallel num_threads(threads_for(p_, layout_))
    {
      Buffer<A> block(3 * layout_.width());
      Buffer<double> sums(2 * layout_.width());
      const bool ready = block.ok() && sums.ok();
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < layout_.tasks(); ++task) {
        if (ready)
          part(task, input, block.data(), sums.data());
        else
          failed = true;
      }
    }
    if (failed) return {kNoMemory};
    combine(mean, variance);
    return {};
  }

 private:
  void part(int64_t task, const S* input, A* block, double* sums) {
    const int64_t sheet = task / layout_.sheet_parts();
    double* mean = means_.data() + layout_.part_offset(task);
    double* deviation = deviations_.data() + layout_.part_offset(task);
    if (layout_.is_leftover(task)) {
      leftover(input + layout_.leftover_offset(sheet), mean, deviation);
      return;
    }
    const int64_t width = layout_.width();
    for (int64_t i = 0; i < 2 * width; ++i) sums[i] = 0;
    int64_t before = 0;
    for (int64_t b = layout_.first_block(task); b < layout_.last_block(task); ++b) {
      const int64_t rows = layout_.block_rows(b);
      block_moments<S>(input + layout_.input_offset(sheet, b), layout_.row_stride(), rows, width,
                       block, block + width, block + 2 * width);
      merge_moments<S>(block, block + width, block + 2 * width, width, rows, before, sums,
                       sums + width);
      before += rows;
    }
    join_copies(sums, sums + width, static_cast<double>(before), mean, deviation);
  }

  // The same channel stands in several columns, each with the moments of as many values.
  void join_copies(const double* totals, const double* deviations, double rows, double* mean,
                   double* deviation) const {
    const int64_t columns = layout_.columns(), width = layout_.width();
    const double inverse = 1.0 / rows;
    const double share = inverse / static_cast<double>(layout_.copies());
    for (int64_t c = 0; c < columns; ++c) {
      double sum = 0;
      for (int64_t i = c; i < width; i += columns) sum += totals[i];
      mean[c] = sum * share;
      double spread = 0;
      for (int64_t i = c; i < width; i += columns) {
        const double difference = totals[i] * inverse - mean[c];
        spread += deviations[i] + rows * difference * difference;
      }
      deviation[c] = spread;
    }
  }

  void leftover(const S* x, double* mean, double* deviation) const {
    const int64_t columns = layout_.columns(), tokens = layout_.leftover();
    for (int64_t c = 0; c < columns; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < tokens; ++i) sum += load<1>(x + i * columns + c)[0];
      mean[c] = sum / static_cast<double>(tokens);
      double total = 0;
      for (int64_t i = 0; i < tokens; ++i) {
        const double difference = load<1>(x + i * columns + c)[0] - mean[c];
        total += difference * difference;
      }
      deviation[c] = total;
    }
  }

  // Parts in their order, whoever computed them: first the mean, then the squares around it.
  void combine(A* mean, A* variance) {
    const int64_t channels = p_.channels;
    double* const centre = totals_.data();
    double* const spread = totals_.data() + channels;
    for (int64_t c = 0; c < 2 * channels; ++c) totals_[c] = 0;
    const double share = 1.0 / static_cast<double>(layout_.values());
    for (int64_t part = 0; part < layout_.parts(); ++part) {
      const double weight = static_cast<double>(layout_.part_values(part)) * share;
      const double* means = means_.data() + part * channels;
      for (int64_t c = 0; c < channels; ++c) centre[c] += means[c] * weight;
    }
    for (int64_t part = 0; part < layout_.parts(); ++part) {
      const double weight = static_cast<double>(layout_.part_values(part));
      const double* means = means_.data() + part * channels;
      const double* deviations = deviations_.data() + part * channels;
      for (int64_t c = 0; c < channels; ++c) {
        const double difference = means[c] - centre[c];
        spread[c] += deviations[c] + weight * difference * difference;
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      mean[c] = static_cast<A>(centre[c]);
      // Rounding may leave less than nothing; NaN stays.
      variance[c] = static_cast<A>(spread[c] < 0 ? 0 : spread[c] * share);
    }
  }

  const Problem& p_;
  const Layout& layout_;
  Buffer<double> means_;
  Buffer<double> deviations_;
  Buffer<double> totals_;
};

// ---- elementwise passes ----

// Calls f(job) for the rows of every block. Tasks begin with the last: what the pass before this
// one read last may still be in cache. Within a task memory is read forwards, which is much faster.
template <class S, class F>
Status for_each_job(const Problem& p, const Layout& layout, const Channels<S>& channels,
                    const S* input, const S* grad, S* output, F&& f) {
  const int64_t step = larger(1, kTaskElements / (kBlockRows * layout.width()));
  const int64_t steps = larger(1, ceil_div(layout.blocks(), step));
  const int64_t tasks = layout.sheets() * steps;
  bool failed = false;
#pragma omp parallel num_threads(threads_for(p, layout))
  {
    ColumnTable<S> table(p, layout, channels);
    LeftoverRow<S> x(layout), dy(layout), y(layout);
    const bool ready = table.ok() && x.ok() && dy.ok() && y.ok();
#pragma omp for schedule(dynamic)
    for (int64_t task = tasks - 1; task >= 0; --task) {
      if (!ready) {
        failed = true;
        continue;
      }
      const int64_t sheet = task / steps, first = task % steps * step;
      RowJob<S> job = {};
      job.columns = table.at(sheet);
      job.activation = p.activation;
      job.input_stride = layout.row_stride();
      job.width = layout.width();
      for (int64_t b = first; b < smaller(first + step, layout.blocks()); ++b) {
        const int64_t offset = layout.dense_offset(sheet, b);
        job.input = input + layout.input_offset(sheet, b);
        job.grad = grad != nullptr ? grad + offset : nullptr;
        job.output = output + offset;
        job.rows = layout.block_rows(b);
        f(job);
      }
      if (first + step >= layout.blocks() && layout.leftover() > 0) {
        const int64_t offset = layout.leftover_offset(sheet);
        job.input = x.read(input + offset);
        job.grad = grad != nullptr ? dy.read(grad + offset) : nullptr;
        job.output = y.data();
        job.rows = 1;
        job.width = x.width();
        f(job);
        y.write(output + offset);
      }
    }
  }
  return {failed ? kNoMemory : nullptr};
}

// ---- sums of the gradient ----

template <class S>
class GradientSums {
 public:
  using A = Acc<S>;
  GradientSums(const Problem& p, const Layout& layout)
      : p_(p),
        layout_(layout),
        sums_(layout.parts() * p.channels),
        products_(layout.parts() * p.channels) {}

  // Where `kept` is not null, the gradient before a costly activation is written there as well.
  Status run(const Channels<S>& channels, const S* grad, const S* input, S* kept) {
    if (!sums_.ok() || !products_.ok()) return {kNoMemory};
    bool failed = false;
#pragma omp parallel num_threads(threads_for(p_, layout_))
    {
      ColumnTable<S> table(p_, layout_, channels);
      LeftoverRow<S> x(layout_), dy(layout_);
      Buffer<A> block(2 * layout_.width());
      Buffer<double> sums(2 * layout_.width());
      const bool ready = table.ok() && x.ok() && dy.ok() && block.ok() && sums.ok();
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < layout_.tasks(); ++task) {
        if (!ready) {
          failed = true;
          continue;
        }
        RowJob<S> job = {};
        job.columns = table.at(task / layout_.sheet_parts());
        job.activation = p_.activation;
        part(task, grad, input, kept, x, dy, job, block.data(), sums.data());
      }
    }
    if (failed) return {kNoMemory};
    add_parts(sums_);
    add_parts(products_);
    return {};
  }

  // Per channel: the sum of the gradient before the activation, and of its product with x - mean.
  const double* sums() const { return sums_.data(); }
  const double* products() const { return products_.data(); }

 private:
  void part(int64_t task, const S* grad, const S* input, S* kept, LeftoverRow<S>& x,
            LeftoverRow<S>& dy, RowJob<S>& job, A* block, double* sums) {
    const int64_t sheet = task / layout_.sheet_parts(), width = layout_.width();
    for (int64_t i = 0; i < 2 * width; ++i) sums[i] = 0;
    if (layout_.is_leftover(task)) {
      const int64_t offset = layout_.leftover_offset(sheet);
      job.input = x.read(input + offset);
      job.grad = dy.read(grad + offset);
      job.output = kept != nullptr ? dy.data() : nullptr;
      job.rows = 1;
      job.width = x.width();
      add(job, block, sums);
      if (kept != nullptr) dy.write(kept + offset);
    } else {
      job.input_stride = layout_.row_stride();
      job.width = width;
      for (int64_t b = layout_.first_block(task); b < layout_.last_block(task); ++b) {
        job.input = input + layout_.input_offset(sheet, b);
        job.grad = grad + layout_.dense_offset(sheet, b);
        job.output = kept != nullptr ? kept + layout_.dense_offset(sheet, b) : nullptr;
        job.rows = layout_.block_rows(b);
        add(job, block, sums);
      }
    }
    join_copies(sums, sums_.data() + layout_.part_offset(task));
    join_copies(sums + width, products_.data() + layout_.part_offset(task));
  }

  void add(const RowJob<S>& job, A* block, double* sums) const {
    const int64_t width = layout_.width();
    for (int64_t i = 0; i < 2 * width; ++i) block[i] = 0;
    add_gradient_rows<S>(job, block, block + width);
    for (int64_t i = 0; i < 2 * width; ++i) sums[i] += block[i];
  }

  void join_copies(const double* sums, double* joined) const {
    const int64_t columns = layout_.columns();
    for (int64_t c = 0; c < columns; ++c) {
      joined[c] = 0;
      for (int64_t i = c; i < layout_.width(); i += columns) joined[c] += sums[i];
    }
  }

  void add_parts(Buffer<double>& parts) const {
    for (int64_t part = 1; part < layout_.parts(); ++part)
      for (int64_t c = 0; c < p_.channels; ++c) parts[c] += parts[part * p_.channels + c];
  }

  const Problem& p_;
  const Layout& layout_;
  Buffer<double> sums_;
  Buffer<double> products_;
};

template <class S>
Status statistics_as(const Problem& p, const void* input, void* mean, void* variance) {
  const Layout layout(p, kLanes<S>, Use::kSums);
  if (!layout.supported()) return {kStrides};
  return Moments<S>(p, layout).run(static_cast<const S*>(input), static_cast<Acc<S>*>(mean),
                                   static_cast<Acc<S>*>(variance));
}

template <class S>
Channels<S> channels_from(const void* mean, const void* variance, const void* weight,
                          const void* bias) {
  using A = Acc<S>;
  return {static_cast<const A*>(mean),
          static_cast<const A*>(variance),
          static_cast<const A*>(weight),
          static_cast<const A*>(bias),
          nullptr,
          nullptr};
}

template <class S>
Status forward_as(const Problem& p, const void* input, const void* mean, const void* variance,
                  const void* weight, const void* bias, void* output) {
  const Layout layout(p, kLanes<S>, Use::kElements);
  if (!layout.supported()) return {kStrides};
  return for_each_job<S>(p, layout, channels_from<S>(mean, variance, weight, bias),
                         static_cast<const S*>(input), nullptr, static_cast<S*>(output),
                         [](const RowJob<S>& job) { normalise_rows<S>(job); });
}

// Those whose derivative costs more than writing and reading it would.
bool is_costly(Activation activation) {
  return activation == Activation::kGelu || activation == Activation::kGeluTanh ||
         activation == Activation::kSilu;
}

template <class S>
Status backward_as(const Problem& p, const void* grad_output, const void* input, const void* mean,
                   const void* variance, const void* weight, const void* bias, void* grad_input,
                   void* grad_weight, void* grad_bias) {
  using A = Acc<S>;
  const Layout layout(p, kLanes<S>, Use::kElements);
  if (!layout.supported()) return {kStrides};
  const S* x = static_cast<const S*>(input);
  const S* dy = static_cast<const S*>(grad_output);
  S* dx = static_cast<S*>(grad_input);
  Channels<S> channels = channels_from<S>(mean, variance, weight, bias);
  Problem last = p;
  const bool through_moments = p.batch_moments && dx != nullptr;
  Buffer<A> grads(2 * p.channels);
  if (through_moments || grad_weight != nullptr || grad_bias != nullptr) {
    const Layout layout_of_sums(p, kLanes<S>, Use::kSums);
    GradientSums<S> sums(p, layout_of_sums);
    if (!grads.ok()) return {kNoMemory};
    // Kept where storage does not round it; then the last pass has no activation left to undo.
    const bool keep = dx != nullptr && sizeof(S) == sizeof(A) && is_costly(p.activation);
    const Status status = sums.run(channels, dy, x, keep ? dx : nullptr);
    if (!status.ok()) return status;
    if (keep) {
      dy = dx;
      last.activation = Activation::kNone;
    }
    const double share = 1.0 / static_cast<double>(layout.values());
    for (int64_t c = 0; c < p.channels; ++c) {
      const double inverse = 1.0 / (channels.variance[c] + p.eps);
      const double product = sums.products()[c];
      grads[c] = static_cast<A>(sums.sums()[c] * share);
      grads[p.channels + c] = static_cast<A>(product * share * inverse);
      if (grad_weight != nullptr)
        static_cast<A*>(grad_weight)[c] = static_cast<A>(product * std::sqrt(inverse));
      if (grad_bias != nullptr) static_cast<A*>(grad_bias)[c] = static_cast<A>(sums.sums()[c]);
    }
    channels.grad_mean = grads.data();
    channels.grad_slope = grads.data() + p.channels;
  }
  if (dx == nullptr) return {};
  return for_each_job<S>(last, layout, channels, x, dy, dx, [&](const RowJob<S>& job) {
    if (through_moments)
      input_gradient_rows<S, true>(job);
    else
      input_gradient_rows<S, false>(job);
  });
}

}  // namespace

namespace evit::cpu::EVIT_ISA {

Status batch_norm_statistics(const Problem& p, const void* input, void* mean, void* variance) {
  return with_storage(p.dtype, [&](auto s) {
    return statistics_as<typename decltype(s)::type>(p, input, mean, variance);
  });
}

Status batch_norm_activation_forward(const Problem& p, const void* input, const void* mean,
                                     const void* variance, const void* weight, const void* bias,
                                     void* output) {
  return with_storage(p.dtype, [&](auto s) {
    return forward_as<typename decltype(s)::type>(p, input, mean, variance, weight, bias, output);
  });
}

Status batch_norm_activation_backward(const Problem& p, const void* grad_output, const void* input,
                                      const void* mean, const void* variance, const void* weight,
                                      const void* bias, void* grad_input, void* grad_weight,
                                      void* grad_bias) {
  return with_storage(p.dtype, [&](auto s) {
    return backward_as<typename decltype(s)::type>(p, grad_output, input, mean, variance, weight,
                                                   bias, grad_input, grad_weight, grad_bias);
  });
}

}  // namespace evit::cpu::EVIT_ISA

EVIT_ENTRY(Status, batch_norm_statistics,
           (const BatchNormActivationProblem& problem, const void* input, void* mean,
            void* variance),
           (problem, input, mean, variance))

EVIT_ENTRY(Status, batch_norm_activation_forward,
           (const BatchNormActivationProblem& problem, const void* input, const void* mean,
            const void* variance, const void* weight, const void* bias, void* output),
           (problem, input, mean, variance, weight, bias, output))

EVIT_ENTRY(Status, batch_norm_activation_backward,
           (const BatchNormActivationProblem& problem, const void* grad_output, const void* input,
            const void* mean, const void* variance, const void* weight, const void* bias,
            void* grad_input, void* grad_weight, void* grad_bias),
           (problem, grad_output, input, mean, variance, weight, bias, grad_input, grad_weight,
            grad_bias))
