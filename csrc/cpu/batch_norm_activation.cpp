// Batch normalisation and activation on CPUs. It is bound by memory, so every pass reads each
// tensor once: moments read x; forward reads x and writes y; backward reads x and dy for the sums
// of the parameters, then again to write dx. Nothing else is stored: what backward needs is
// recomputed.
#include "evit/batch_norm_activation.h"

#include "batch_norm_activation_layout.h"
#include "batch_norm_activation_rows.h"
#include "batch_norm_activation_sums.h"
#include "dispatch.h"

namespace {

using evit::Status;
using Problem = evit::BatchNormActivationProblem;

constexpr int64_t kTaskElements = 64 * 1024;
constexpr char kStrides[] =
    "channels-last input that is not dense needs channels in multiples of 16";

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
