// What batch normalisation sums over a tensor: the moments of every channel, and the sums of its
// gradient. Sums are kept apart by part, cut by the shape alone, and added in their order.
#pragma once

#include "batch_norm_activation_layout.h"
#include "batch_norm_activation_rows.h"
#include "buffer.h"
#include "evit/batch_norm_activation.h"

namespace {

constexpr int64_t kSerialElements = 16 * 1024;  // too little to wake other threads for

int threads_for(const evit::BatchNormActivationProblem& p, const Layout& layout) {
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
  ColumnTable(const evit::BatchNormActivationProblem& p, const Layout& layout,
              const Channels<S>& channels)
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
  Moments(const evit::BatchNormActivationProblem& p, const Layout& layout)
      : p_(p),
        layout_(layout),
        means_(layout.parts() * p.channels),
        deviations_(layout.parts() * p.channels),
        totals_(2 * p.channels) {}

  evit::Status run(const S* input, A* mean, A* variance) {
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

  const evit::BatchNormActivationProblem& p_;
  const Layout& layout_;
  Buffer<double> means_;
  Buffer<double> deviations_;
  Buffer<double> totals_;
};

// ---- sums of the gradient ----

template <class S>
class GradientSums {
 public:
  using A = Acc<S>;
  GradientSums(const evit::BatchNormActivationProblem& p, const Layout& layout)
      : p_(p),
        layout_(layout),
        sums_(layout.parts() * p.channels),
        products_(layout.parts() * p.channels) {}

  // Where `kept` is not null, the gradient before a costly activation is written there as well.
  evit::Status run(const Channels<S>& channels, const S* grad, const S* input, S* kept) {
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

  const evit::BatchNormActivationProblem& p_;
  const Layout& layout_;
  Buffer<double> sums_;
  Buffer<double> products_;
};

}  // namespace
