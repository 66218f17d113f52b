// The CUDA kernels in Python: a module of its own, so that the core loads without a driver. It
// takes the problems that the core makes; a stream is its device's index and its handle.
#include "bindings.h"
#include "evit/depthwise_conv3d.h"

namespace {

evit::cuda::Stream stream_of(int device, uintptr_t handle) {
  return {device, pointer(handle)};
}

void bind_depthwise_conv3d(py::module_& m) {
  using Problem = evit::DepthwiseConv3dProblem;
  m.def("depthwise_conv3d_forward_workspace", [](const py::bytes& problem) {
    return evit::cuda::depthwise_conv3d_forward_workspace(unpacked<Problem>(problem));
  });
  m.def("depthwise_conv3d_forward",
        [](const py::bytes& problem, uintptr_t input, uintptr_t weight, uintptr_t bias,
           uintptr_t output, uintptr_t workspace, int device, uintptr_t stream) {
          check(evit::cuda::depthwise_conv3d_forward(unpacked<Problem>(problem), memory(input),
                                                     memory(weight), pointer(bias), memory(output),
                                                     memory(workspace), stream_of(device, stream)));
        });
  m.def("depthwise_conv3d_workspace", [](const py::bytes& problem) {
    return evit::cuda::depthwise_conv3d_workspace(unpacked<Problem>(problem));
  });
  m.def("depthwise_conv3d_backward",
        [](const py::bytes& problem, uintptr_t grad_output, uintptr_t input, uintptr_t weight,
           uintptr_t bias, uintptr_t scratch, uintptr_t partials, uintptr_t grad_input,
           uintptr_t grad_weight, uintptr_t grad_bias, int device, uintptr_t stream) {
          check(evit::cuda::depthwise_conv3d_backward(
              unpacked<Problem>(problem), memory(grad_output), memory(input), memory(weight),
              pointer(bias), pointer(scratch), pointer(partials), pointer(grad_input),
              pointer(grad_weight), pointer(grad_bias), stream_of(device, stream)));
        });
}

void bind_relu_linear_attention(py::module_& m) {
  using Addresses = std::vector<uintptr_t>;
  m.def("relu_linear_attention_forward_workspace",
        [](const py::bytes& problem, const Addresses& addresses) {
          const AttentionCall call(problem, addresses);
          return evit::cuda::relu_linear_attention_forward_workspace(call.problem());
        });
  m.def("relu_linear_attention_backward_workspace",
        [](const py::bytes& problem, const Addresses& addresses) {
          const AttentionCall call(problem, addresses);
          return evit::cuda::relu_linear_attention_backward_workspace(call.problem());
        });
  m.def("relu_linear_attention_forward",
        [](const py::bytes& problem, const Addresses& addresses, uintptr_t state,
           uintptr_t workspace, int device, uintptr_t stream) {
          const AttentionCall call(problem, addresses);
          check(evit::cuda::relu_linear_attention_forward(
              call.problem(), memory(state), memory(workspace), stream_of(device, stream)));
        });
  m.def("relu_linear_attention_backward",
        [](const py::bytes& problem, const Addresses& addresses, uintptr_t state,
           uintptr_t workspace, int device, uintptr_t stream) {
          const AttentionCall call(problem, addresses);
          check(evit::cuda::relu_linear_attention_backward(
              call.problem(), memory(state), memory(workspace), stream_of(device, stream)));
        });
}

}  // namespace

PYBIND11_MODULE(EVIT_CUDA_MODULE, m) {
  m.doc() = "The CUDA kernels of evit_kernels.";
  m.attr("architectures") = EVIT_CUDA_ARCHITECTURES;
  m.attr("compiler") = EVIT_CUDA_COMPILER;
  bind_depthwise_conv3d(m);
  bind_relu_linear_attention(m);
}
