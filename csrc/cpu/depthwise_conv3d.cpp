// Depthwise 3-D convolution on CPUs: forward and both gradients as passes over channels-last
// tensors.
#include "evit/depthwise_conv3d.h"

#include "depthwise_conv3d_frames.h"
#include "depthwise_conv3d_march_pass.h"
#include "depthwise_conv3d_weight_gradient.h"
#include "dispatch.h"
#include "evit/pointwise_depthwise_conv3d.h"

namespace {

using evit::Status;
using Problem = evit::DepthwiseConv3dProblem;
using JoinedProblem = evit::PointwiseDepthwiseConv3dProblem;
using JoinedTensors = evit::PointwiseDepthwiseConv3dTensors;

template <class S>
Status run(const Problem& p, const Pass<S>& pass) {
  const PassPlan<S> plan(p, pass);
  if (!plan.ok()) return {kNoMemory};
  if constexpr (kMarches<S>) {
    MarchPass<S> march(plan);
    if (march.fits()) return march.run();
  }
  return FramePass<S>(plan).run();
}

template <class S>
Pass<S> forward_pass(const Problem& p, const void* input, const void* weight, const void* bias,
                     const void* multiplier, void* output) {
  Pass<S> pass = {};
  pass.source = static_cast<const S*>(input);
  for (int i = 0; i < 4; ++i) pass.source_strides[i] = p.in_strides[i];
  pass.weight = static_cast<const S*>(weight);
  pass.bias = static_cast<const S*>(bias);
  pass.multiplier = static_cast<const S*>(multiplier);
  pass.activation = p.activation;
  pass.destination = static_cast<S*>(output);
  return pass;
}

template <class S>
Status forward_as(const Problem& p, const void* input, const void* weight, const void* bias,
                  const void* multiplier, void* output) {
  return run<S>(p, forward_pass<S>(p, input, weight, bias, multiplier, output));
}

// Every group of channels converts what it reads from 16 bits anew: more often than this, two calls
// are faster.
constexpr int64_t kMostConversions = 2;

// Only the march has cheap rows: elsewhere neighbouring tiles would compute too many of them twice.
template <class S>
bool serves(const JoinedProblem& problem) {
  if constexpr (kMarches<S>) {
    const Pass<S> pass = {};
    const PassPlan<S> plan(problem.depthwise, pass);
    if (!plan.ok()) return false;
    const MarchPass<S> march(plan);
    if (!march.fits()) return false;
    if (problem.out_channels > 0) return march.projects();
    const bool converts = sizeof(S) < sizeof(Acc<S>);
    return problem.in_channels > 0 && !(converts && plan.slabs > kMostConversions * kGroup);
  }
  return false;
}

template <class S>
Status joined_forward_as([[maybe_unused]] const JoinedProblem& problem,
                         [[maybe_unused]] const JoinedTensors& t) {
  if constexpr (kMarches<S>) {
    const Problem& p = problem.depthwise;
    Pass<S> pass = forward_pass<S>(p, t.input, t.weight, t.bias, nullptr, t.output);
    const Expansion<S> expansion(static_cast<const S*>(t.pointwise_weight),
                                 static_cast<const S*>(t.pointwise_bias), problem.activation,
                                 problem.in_channels, p.channels, p.num_threads);
    const Projection<S> projection(static_cast<const S*>(t.project_weight),
                                   static_cast<const S*>(t.project_bias),
                                   static_cast<const S*>(t.residual), static_cast<S*>(t.output),
                                   p.channels, problem.out_channels, p.num_threads);
    if (problem.in_channels > 0) pass.expansion = &expansion;
    if (problem.out_channels > 0) pass.projection = &projection;
    const PassPlan<S> plan(p, pass);
    if (!plan.ok() || !expansion.ok() || !projection.ok()) return {kNoMemory};
    MarchPass<S> march(plan);
    if (march.fits() && (problem.out_channels == 0 || march.projects())) return march.run();
  }
  return {"no kernel joins the convolutions of this call"};
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
    const Status status = run<S>(p, pass);
    if (!status.ok()) return status;
  }
  if (grad_weight == nullptr && grad_bias == nullptr) return {};
  return WeightGradient<S>(p).run(grad, static_cast<const S*>(input),
                                  static_cast<Acc<S>*>(partials), static_cast<S*>(grad_weight),
                                  static_cast<S*>(grad_bias));
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
  return with_storage(
      p.dtype, [&](auto s) { return WeightGradient<typename decltype(s)::type>(p).workspace(); });
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

bool pointwise_depthwise_conv3d_serves(const JoinedProblem& problem) {
  return with_storage(problem.depthwise.dtype,
                      [&](auto s) { return serves<typename decltype(s)::type>(problem); });
}

Status pointwise_depthwise_conv3d_forward(const JoinedProblem& problem,
                                          const JoinedTensors& tensors) {
  return with_storage(problem.depthwise.dtype, [&](auto s) {
    return joined_forward_as<typename decltype(s)::type>(problem, tensors);
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

EVIT_ENTRY(bool, pointwise_depthwise_conv3d_serves,
           (const PointwiseDepthwiseConv3dProblem& problem), (problem))

EVIT_ENTRY(Status, pointwise_depthwise_conv3d_forward,
           (const PointwiseDepthwiseConv3dProblem& problem,
            const PointwiseDepthwiseConv3dTensors& tensors),
           (problem, tensors))
