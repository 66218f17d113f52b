// Depthwise 3-D convolution on CPUs: walks tiles of rows, hands each row to a row kernel.
#include "evit/depthwise_conv3d.h"

#include "depthwise_conv3d_plan.h"
#include "depthwise_conv3d_rows.h"
#include "depthwise_conv3d_weight_rows.h"
#include "dispatch.h"

namespace {

using evit::Activation;
using evit::DType;
using evit::Status;
using Problem = evit::DepthwiseConv3dProblem;

constexpr int64_t kTileBytes = 384 * 1024;  // of source rows, to stay in a core's L2 cache
constexpr int kMaxTaps = kMaxKernel * kMaxKernel;
constexpr int64_t kChannelGroup = 64;  // channels of one weight-gradient task
constexpr int64_t kMaxSplits = 32;
constexpr int64_t kMaxPartialBytes = 8 << 20;

// Rows of the destination whose source rows, over k_t frames, fit the cache. From shapes only.
int64_t tile_rows(const Problem& p, int64_t rows, int64_t row_bytes, int64_t source_per_row) {
  const int64_t budget = kTileBytes / larger(1, row_bytes * p.kernel[0]);
  return larger(1, smaller(rows, (budget - p.kernel[1]) / larger(1, source_per_row)));
}

// Weights as (plane, k_h, k_w, C) in the accumulation type; reversed along k_w where asked.
template <class S>
void pack_weights(const Problem& p, const Planes& planes, const S* weight, bool reverse,
                  Acc<S>* packed) {
  const int64_t kt = p.kernel[0], kh = p.kernel[1], kw = p.kernel[2];
  for (int plane = 0; plane < planes.count(); ++plane)
    for (int64_t h = 0; h < kh; ++h)
      for (int64_t w = 0; w < kw; ++w) {
        Acc<S>* row = packed + ((plane * kh + h) * kw + (reverse ? kw - 1 - w : w)) * p.channels;
        for (int64_t c = 0; c < p.channels; ++c) {
          const S* source = weight + ((c * kt) * kh + h) * kw + w;
          Acc<S> sum = 0;
          for (int t = planes.first(plane); t <= planes.last(plane); ++t)
            sum += load<1>(source + t * kh * kw)[0];
          row[c] = sum;
        }
      }
}

// What a pass reads and writes; `transposed` is the data gradient.
template <class S>
struct Pass {
  const S* source;
  int64_t source_strides[4];
  const S* weight;
  const S* bias;
  const S* multiplier;
  Activation activation;
  S* destination;
  bool transposed;
};

template <class S>
Status convolve(const Problem& p, const Pass<S>& pass) {
  const int64_t* size = pass.transposed ? p.in : p.out;
  const int64_t* source_size = pass.transposed ? p.out : p.in;
  const bool mirrored = pass.transposed && gradient_is_gather(sizeof(S) == 8, p.kernel[2],
                                                              p.stride[2], p.dilation[2]);
  const Plan time(p, 0, pass.transposed);
  const Plan height(p, 1, pass.transposed);
  const Planes planes(p, time, size[0]);
  const int64_t row_weights = p.kernel[2] * p.channels;
  Buffer<Acc<S>> packed(planes.count() * p.kernel[1] * row_weights);
  Buffer<Acc<S>> bias(pass.bias != nullptr ? p.channels : 0);
  if (!packed.ok() || !bias.ok()) return {"out of memory for packed weights"};
  pack_weights(p, planes, pass.weight, mirrored, packed.data());
  for (int64_t c = 0; pass.bias != nullptr && c < p.channels; ++c) bias[c] = load<1>(pass.bias + c)[0];

  RowJob<S> job = {};
  job.channels = p.channels;
  job.column_stride = pass.source_strides[3];
  job.source_width = source_size[2];
  job.width = size[2];
  job.kernel = p.kernel[2];
  job.stride = p.stride[2];
  job.dilation = p.dilation[2];
  job.padding = mirrored ? p.kernel[2] - 1 - p.padding[2] : p.padding[2];
  job.bias = pass.bias != nullptr ? bias.data() : nullptr;
  job.activation = pass.activation;
  const RowFunction<S> row =
      row_function<S>(p.kernel[2], p.stride[2], p.dilation[2], pass.transposed);

  const int64_t row_bytes = source_size[2] * p.channels * static_cast<int64_t>(sizeof(S));
  const int64_t rows = tile_rows(p, size[1], row_bytes, pass.transposed ? 1 : p.stride[1]);
  const int64_t row_tiles = ceil_div(size[1], rows);
  // Time runs inside a tile, so that frames are read from cache; it is cut only to occupy all threads.
  const int64_t wanted = 4 * static_cast<int64_t>(p.num_threads);
  const int64_t time_tiles =
      smaller(size[0], larger(1, ceil_div(wanted, larger(1, p.batch * row_tiles))));
  const int64_t frames = ceil_div(size[0], time_tiles);
  const int64_t tasks = p.batch * row_tiles * time_tiles;
  const int64_t row_elements = size[2] * p.channels;
  // Not k_t * k_h: with a repeated border, one input frame can belong to any number of outputs.
  const int64_t most_taps = time.most_links(size[0]) * height.most_links(size[1]);

#pragma omp parallel for schedule(dynamic) num_threads(p.num_threads) if (p.num_threads > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t n = task / (row_tiles * time_tiles);
    const int64_t h0 = task / time_tiles % row_tiles * rows;
    const int64_t t0 = task % time_tiles * frames;
    RowJob<S> mine = job;
    Buffer<Tap<S>> taps(most_taps);
    mine.taps = taps.data();
    for (int64_t t = t0; t < smaller(t0 + frames, size[0]); ++t)
      for (int64_t h = h0; h < smaller(h0 + rows, size[1]); ++h) {
        mine.num_taps = 0;
        for (const Link* f = time.begin(t); f != time.end(t); ++f)
          for (const Link* r = height.begin(h); r != height.end(h); ++r) {
            const S* source_row = pass.source + n * pass.source_strides[0] +
                                  f->source * pass.source_strides[1] +
                                  r->source * pass.source_strides[2];
            const int64_t plane = planes.of(*f) * p.kernel[1] + r->first;
            taps[mine.num_taps++] = {source_row, packed.data() + plane * row_weights};
          }
        const int64_t offset = ((n * size[0] + t) * size[1] + h) * row_elements;
        mine.multiplier = pass.multiplier != nullptr ? pass.multiplier + offset : nullptr;
        mine.destination = pass.destination + offset;
        row(mine);
      }
  }
  return {};
}

// Sizes of the weight gradient's partial sums; functions of the shape alone, never of the threads.
struct Splits {
  int64_t rows;       // of the output in one tile
  int64_t row_tiles;  // per sample
  int64_t splits;
  int64_t taps;      // (plane, k_h, k_w) per channel
  int64_t elements;  // of one split: the taps, then the bias
};

Splits splits_of(const Problem& p, const Planes& planes, int64_t element_bytes) {
  Splits s;
  s.taps = planes.count() * p.kernel[1] * p.kernel[2];
  s.elements = (s.taps + 1) * p.channels;
  s.rows = tile_rows(p, p.out[1], p.in[2] * p.channels * element_bytes, p.stride[1]);
  // Small maps are cut further, to leave work for several cores.
  s.rows = larger(1, smaller(s.rows, ceil_div(p.out[1] * p.batch, kMaxSplits / 2)));
  s.row_tiles = ceil_div(p.out[1], s.rows);
  const int64_t affordable = larger(4, kMaxPartialBytes / (s.elements * 4));
  s.splits = smaller(smaller(kMaxSplits, affordable), p.batch * s.row_tiles);
  return s;
}

template <class S>
Status weight_gradient(const Problem& p, const S* grad, const S* input, Acc<S>* partials,
                       S* grad_weight, S* grad_bias) {
  const Plan time(p, 0, false);
  const Plan height(p, 1, false);
  const Planes planes(p, time, p.out[0]);
  const Splits s = splits_of(p, planes, sizeof(S));
  const int64_t groups = ceil_div(p.channels, kChannelGroup);
  const int64_t tiles = p.batch * s.row_tiles;
  const int64_t kh = p.kernel[1], kw = p.kernel[2];
  const WeightFunction<S> row = weight_function<S>(kw, p.stride[2], p.dilation[2]);

  WeightJob<S> job = {};
  job.channels = p.channels;
  job.column_stride = p.in_strides[3];
  job.source_width = p.in[2];
  job.width = p.out[2];
  job.kernel = kw;
  job.stride = p.stride[2];
  job.dilation = p.dilation[2];
  job.padding = p.padding[2];

#pragma omp parallel for schedule(dynamic) num_threads(p.num_threads) if (p.num_threads > 1)
  for (int64_t task = 0; task < s.splits * groups; ++task) {
    const int64_t split = task / groups;
    WeightJob<S> mine = job;
    WeightTap<S> taps[kMaxTaps];
    mine.taps = taps;
    mine.channel_begin = task % groups * kChannelGroup;
    mine.channel_end = smaller(p.channels, mine.channel_begin + kChannelGroup);
    Acc<S>* partial = partials + split * s.elements;
    for (int64_t tap = 0; tap <= s.taps; ++tap)
      for (int64_t c = mine.channel_begin; c < mine.channel_end; ++c)
        partial[tap * p.channels + c] = 0;
    mine.bias_partial = grad_bias != nullptr ? partial + s.taps * p.channels : nullptr;

    for (int64_t tile = split * tiles / s.splits; tile < (split + 1) * tiles / s.splits; ++tile) {
      const int64_t n = tile / s.row_tiles;
      const int64_t h0 = tile % s.row_tiles * s.rows;
      for (int64_t t = 0; t < p.out[0]; ++t)
        for (int64_t h = h0; h < smaller(h0 + s.rows, p.out[1]); ++h) {
          mine.num_taps = 0;
          for (const Link* f = time.begin(t); grad_weight != nullptr && f != time.end(t); ++f)
            for (const Link* r = height.begin(h); r != height.end(h); ++r)
              taps[mine.num_taps++] = {
                  input + n * p.in_strides[0] + f->source * p.in_strides[1] +
                      r->source * p.in_strides[2],
                  partial + (planes.of(*f) * kh + r->first) * kw * p.channels};
          mine.grad = grad + ((n * p.out[0] + t) * p.out[1] + h) * p.out[2] * p.channels;
          row(mine);
        }
    }
  }

  // Splits are added in their order, so the result has the same bits on any number of threads.
  // A merged plane's sum belongs to each of its taps.
#pragma omp parallel for schedule(static) num_threads(p.num_threads) if (p.num_threads > 1)
  for (int64_t group = 0; group < groups; ++group)
    for (int64_t c = group * kChannelGroup; c < smaller(p.channels, (group + 1) * kChannelGroup);
         ++c) {
      const auto total = [&](int64_t tap) {
        Acc<S> sum = 0;
        for (int64_t split = 0; split < s.splits; ++split)
          sum += partials[split * s.elements + tap * p.channels + c];
        return sum;
      };
      if (grad_bias != nullptr) store<1>(grad_bias + c, Vector<Acc<S>, 1>{total(s.taps)});
      if (grad_weight == nullptr) continue;
      for (int64_t t = 0; t < p.kernel[0]; ++t)
        for (int64_t hw = 0; hw < kh * kw; ++hw) {
          Acc<S> sum = 0;
          for (int plane = 0; plane < planes.count(); ++plane)
            if (planes.first(plane) <= t && t <= planes.last(plane)) sum += total(plane * kh * kw + hw);
          store<1>(grad_weight + (c * p.kernel[0] + t) * kh * kw + hw, Vector<Acc<S>, 1>{sum});
        }
    }
  return {};
}

void dense_strides(const int64_t* size, int64_t channels, int64_t* strides) {
  strides[3] = channels;
  strides[2] = strides[3] * size[2];
  strides[1] = strides[2] * size[1];
  strides[0] = strides[1] * size[0];
}

template <class S>
Status forward_as(const Problem& p, const void* input, const void* weight, const void* bias,
                  const void* multiplier, void* output) {
  Pass<S> pass = {};
  pass.source = static_cast<const S*>(input);
  for (int i = 0; i < 4; ++i) pass.source_strides[i] = p.in_strides[i];
  pass.weight = static_cast<const S*>(weight);
  pass.bias = static_cast<const S*>(bias);
  pass.multiplier = static_cast<const S*>(multiplier);
  pass.activation = p.activation;
  pass.destination = static_cast<S*>(output);
  return convolve<S>(p, pass);
}

template <class S>
Status backward_as(const Problem& p, const void* grad_output, const void* input, const void* weight,
                   const void* bias, void* scratch, void* partials, void* grad_input,
                   void* grad_weight, void* grad_bias) {
  const S* grad = static_cast<const S*>(grad_output);
  if (p.activation != Activation::kNone) {
    // The activation's input is computed again rather than kept: a convolution costs about as much
    // as reading it back would, and the memory is the caller's.
    const Status status = forward_as<S>(p, input, weight, bias, grad_output, scratch);
    if (!status.ok()) return status;
    grad = static_cast<const S*>(scratch);
  }
  if (grad_input != nullptr) {
    Pass<S> pass = {};
    pass.source = grad;
    dense_strides(p.out, p.channels, pass.source_strides);
    pass.weight = static_cast<const S*>(weight);
    pass.activation = Activation::kNone;
    pass.destination = static_cast<S*>(grad_input);
    pass.transposed = true;
    const Status status = convolve<S>(p, pass);
    if (!status.ok()) return status;
  }
  if (grad_weight == nullptr && grad_bias == nullptr) return {};
  return weight_gradient<S>(p, grad, static_cast<const S*>(input), static_cast<Acc<S>*>(partials),
                            static_cast<S*>(grad_weight), static_cast<S*>(grad_bias));
}

}  // namespace

namespace evit::cpu::EVIT_ISA {

Status depthwise_conv3d_forward(const Problem& p, const void* input, const void* weight,
                                const void* bias, void* output) {
  return with_storage(p.dtype, [&](auto s) {
    return forward_as<typename decltype(s)::type>(p, input, weight, bias, nullptr, output);
  });
}

int64_t depthwise_conv3d_workspace(const Problem& p) {
  const Planes planes(p, Plan(p, 0, false), p.out[0]);
  const Splits s = splits_of(p, planes, storage_bytes(p.dtype));
  return s.splits * s.elements;
}

Status depthwise_conv3d_backward(const Problem& p, const void* grad_output, const void* input,
                                 const void* weight, const void* bias, void* scratch,
                                 void* partials, void* grad_input, void* grad_weight,
                                 void* grad_bias) {
  return with_storage(p.dtype, [&](auto s) {
    return backward_as<typename decltype(s)::type>(p, grad_output, input, weight, bias, scratch,
                                                   partials, grad_input, grad_weight, grad_bias);
  });
}

}  // namespace evit::cpu::EVIT_ISA

EVIT_ENTRY(Status, depthwise_conv3d_forward,
           (const DepthwiseConv3dProblem& problem, const void* input, const void* weight,
            const void* bias, void* output),
           (problem, input, weight, bias, output))

EVIT_ENTRY(int64_t, depthwise_conv3d_workspace, (const DepthwiseConv3dProblem& problem), (problem))

EVIT_ENTRY(Status, depthwise_conv3d_backward,
           (const DepthwiseConv3dProblem& problem, const void* grad_output, const void* input,
            const void* weight, const void* bias, void* scratch, void* partials, void* grad_input,
            void* grad_weight, void* grad_bias),
           (problem, grad_output, input, weight, bias, scratch, partials, grad_input, grad_weight,
            grad_bias))
