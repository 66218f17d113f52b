// The only file of the core that knows Python. Pointers come as integers, sizes as tuples; a failed
// status becomes a RuntimeError. The GIL is released while a kernel runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "evit/batch_norm_activation.h"
#include "evit/cpu.h"
#include "evit/dense_conv3d.h"
#include "evit/depthwise_conv3d.h"
#include "evit/layout.h"
#include "evit/pointwise_conv3d.h"
#include "evit/relu_linear_attention.h"

namespace py = pybind11;

namespace {

using Triple = std::array<int64_t, 3>;

template <class T = void>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void check(evit::Status status) {
  if (!status.ok()) throw std::runtime_error(std::string("evit core: ") + status.message);
}

evit::DepthwiseConv3dProblem depthwise_problem(const py::tuple& t) {
  evit::DepthwiseConv3dProblem p;
  p.dtype = static_cast<evit::DType>(t[0].cast<int>());
  p.activation = static_cast<evit::Activation>(t[1].cast<int>());
  p.clamp_time = t[2].cast<bool>();
  p.num_threads = t[3].cast<int>();
  p.batch = t[4].cast<int64_t>();
  p.channels = t[5].cast<int64_t>();
  int64_t* const triples[] = {p.in, p.out, p.kernel, p.stride, p.padding, p.dilation};
  for (int i = 0; i < 6; ++i) {
    const auto values = t[6 + i].cast<Triple>();
    for (int axis = 0; axis < 3; ++axis) triples[i][axis] = values[axis];
  }
  const auto strides = t[12].cast<std::array<int64_t, 4>>();
  for (int axis = 0; axis < 4; ++axis) p.in_strides[axis] = strides[axis];
  return p;
}

void bind_depthwise_conv3d(py::module_& m) {
  m.def("depthwise_conv3d_forward", [](const py::tuple& problem, uintptr_t input, uintptr_t weight,
                                       uintptr_t bias, uintptr_t output) {
    const auto p = depthwise_problem(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::depthwise_conv3d_forward(p, pointer(input), pointer(weight), pointer(bias),
                                              pointer(output)));
  });
  m.def("depthwise_conv3d_workspace", [](const py::tuple& problem) {
    return evit::cpu::depthwise_conv3d_workspace(depthwise_problem(problem));
  });
  m.def("depthwise_conv3d_backward", [](const py::tuple& problem, uintptr_t grad_output,
                                        uintptr_t input, uintptr_t weight, uintptr_t bias,
                                        uintptr_t scratch, uintptr_t partials, uintptr_t grad_input,
                                        uintptr_t grad_weight, uintptr_t grad_bias) {
    const auto p = depthwise_problem(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::depthwise_conv3d_backward(
        p, pointer(grad_output), pointer(input), pointer(weight), pointer(bias), pointer(scratch),
        pointer(partials), pointer(grad_input), pointer(grad_weight), pointer(grad_bias)));
  });
}

evit::DenseConv3dProblem dense_problem(const py::tuple& t) {
  evit::DenseConv3dProblem p;
  p.dtype = static_cast<evit::DType>(t[0].cast<int>());
  p.activation = static_cast<evit::Activation>(t[1].cast<int>());
  p.clamp_time = t[2].cast<bool>();
  p.num_threads = t[3].cast<int>();
  p.batch = t[4].cast<int64_t>();
  p.in_channels = t[5].cast<int64_t>();
  p.out_channels = t[6].cast<int64_t>();
  int64_t* const triples[] = {p.in, p.out, p.kernel, p.stride, p.padding, p.in_strides};
  for (int i = 0; i < 6; ++i) {
    const auto values = t[7 + i].cast<Triple>();
    for (int axis = 0; axis < 3; ++axis) triples[i][axis] = values[axis];
  }
  return p;
}

void bind_dense_conv3d(py::module_& m) {
  m.def("dense_conv3d_forward", [](const py::tuple& problem, uintptr_t input, uintptr_t weight,
                                   uintptr_t bias, uintptr_t output) {
    const auto p = dense_problem(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::dense_conv3d_forward(p, pointer(input), pointer(weight), pointer(bias),
                                          pointer(output)));
  });
  m.def("dense_conv3d_workspace", [](const py::tuple& problem) {
    return evit::cpu::dense_conv3d_workspace(dense_problem(problem));
  });
  m.def("dense_conv3d_weight_gradient",
        [](const py::tuple& problem, uintptr_t grad_output, uintptr_t input, uintptr_t partials,
           uintptr_t grad_weight, uintptr_t grad_bias) {
          const auto p = dense_problem(problem);
          py::gil_scoped_release unlocked;
          check(evit::cpu::dense_conv3d_weight_gradient(p, pointer(grad_output), pointer(input),
                                                        pointer(partials), pointer(grad_weight),
                                                        pointer(grad_bias)));
        });
}

// A call of linear attention: the sources come as rows of integers, the heads and then, for each of
// the seven views of evit::AttentionSource, the pointer and three strides.
class AttentionCall {
 public:
  static constexpr size_t kViews = 7;
  using Row = std::vector<int64_t>;

  AttentionCall(int dtype, int num_threads, const Triple& batch_tokens_width, double eps,
                const std::vector<Row>& rows) {
    for (const Row& row : rows) {
      evit::AttentionSource source = {};
      source.heads = row[0];
      evit::HeadsView* const views[kViews] = {&source.q,      &source.k,      &source.v,
                                              &source.output, &source.grad_q, &source.grad_k,
                                              &source.grad_v};
      for (size_t i = 0; i < kViews && 4 * i + 4 < row.size(); ++i) {
        const int64_t* entry = row.data() + 1 + 4 * i;
        *views[i] = {pointer(static_cast<uintptr_t>(entry[0])), entry[1], entry[2], entry[3]};
      }
      sources_.push_back(source);
    }
    problem_ = {static_cast<evit::DType>(dtype),
                num_threads,
                batch_tokens_width[0],
                batch_tokens_width[1],
                batch_tokens_width[2],
                eps,
                static_cast<int64_t>(sources_.size()),
                sources_.data()};
  }
  AttentionCall(const AttentionCall&) = delete;
  AttentionCall& operator=(const AttentionCall&) = delete;

  const evit::ReluLinearAttentionProblem& problem() const { return problem_; }

 private:
  std::vector<evit::AttentionSource> sources_;
  evit::ReluLinearAttentionProblem problem_;
};

void bind_relu_linear_attention(py::module_& m) {
  m.def("relu_linear_attention_forward",
        [](int dtype, int num_threads, const Triple& sizes, double eps,
           const std::vector<AttentionCall::Row>& sources, uintptr_t state) {
          const AttentionCall call(dtype, num_threads, sizes, eps, sources);
          py::gil_scoped_release unlocked;
          check(evit::cpu::relu_linear_attention_forward(call.problem(), pointer(state)));
        });
  m.def("relu_linear_attention_backward",
        [](int dtype, int num_threads, const Triple& sizes, double eps,
           const std::vector<AttentionCall::Row>& sources, uintptr_t state) {
          const AttentionCall call(dtype, num_threads, sizes, eps, sources);
          py::gil_scoped_release unlocked;
          check(evit::cpu::relu_linear_attention_backward(call.problem(), pointer(state)));
        });
}

evit::PointwiseConv3dProblem pointwise_problem(const py::tuple& t) {
  evit::PointwiseConv3dProblem p;
  p.dtype = static_cast<evit::DType>(t[0].cast<int>());
  p.activation = static_cast<evit::Activation>(t[1].cast<int>());
  p.num_threads = t[2].cast<int>();
  p.tokens = t[3].cast<int64_t>();
  p.in_channels = t[4].cast<int64_t>();
  p.out_channels = t[5].cast<int64_t>();
  p.groups = t[6].cast<int64_t>();
  p.in_stride = t[7].cast<int64_t>();
  return p;
}

void bind_pointwise_conv3d(py::module_& m) {
  m.def("pointwise_conv3d_forward", [](const py::tuple& problem, uintptr_t input, uintptr_t weight,
                                       uintptr_t bias, uintptr_t residual, uintptr_t output) {
    const auto p = pointwise_problem(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::pointwise_conv3d_forward(p, pointer(input), pointer(weight), pointer(bias),
                                              pointer(residual), pointer(output)));
  });
  m.def("pointwise_conv3d_workspace", [](const py::tuple& problem) {
    return evit::cpu::pointwise_conv3d_workspace(pointwise_problem(problem));
  });
  m.def("pointwise_conv3d_backward", [](const py::tuple& problem, uintptr_t grad_output,
                                        uintptr_t input, uintptr_t weight, uintptr_t bias,
                                        uintptr_t scratch, uintptr_t partials, uintptr_t grad_input,
                                        uintptr_t grad_weight, uintptr_t grad_bias) {
    const auto p = pointwise_problem(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::pointwise_conv3d_backward(
        p, pointer(grad_output), pointer(input), pointer(weight), pointer(bias), pointer(scratch),
        pointer(partials), pointer(grad_input), pointer(grad_weight), pointer(grad_bias)));
  });
}

evit::BatchNormActivationProblem batch_norm_problem(const py::tuple& t) {
  evit::BatchNormActivationProblem p;
  p.dtype = static_cast<evit::DType>(t[0].cast<int>());
  p.activation = static_cast<evit::Activation>(t[1].cast<int>());
  p.num_threads = t[2].cast<int>();
  p.planar = t[3].cast<bool>();
  p.batch_moments = t[4].cast<bool>();
  p.batch = t[5].cast<int64_t>();
  p.channels = t[6].cast<int64_t>();
  const auto size = t[7].cast<Triple>();
  for (int axis = 0; axis < 3; ++axis) p.size[axis] = size[axis];
  const auto strides = t[8].cast<std::array<int64_t, 4>>();
  for (int axis = 0; axis < 4; ++axis) p.in_strides[axis] = strides[axis];
  p.eps = t[9].cast<double>();
  return p;
}

void bind_batch_norm_activation(py::module_& m) {
  m.def("batch_norm_statistics", [](const py::tuple& problem, uintptr_t input, uintptr_t mean,
                                    uintptr_t variance) {
    const auto p = batch_norm_problem(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::batch_norm_statistics(p, pointer(input), pointer(mean), pointer(variance)));
  });
  m.def("batch_norm_activation_forward",
        [](const py::tuple& problem, uintptr_t input, uintptr_t mean, uintptr_t variance,
           uintptr_t weight, uintptr_t bias, uintptr_t output) {
          const auto p = batch_norm_problem(problem);
          py::gil_scoped_release unlocked;
          check(evit::cpu::batch_norm_activation_forward(p, pointer(input), pointer(mean),
                                                         pointer(variance), pointer(weight),
                                                         pointer(bias), pointer(output)));
        });
  m.def("batch_norm_activation_backward", [](const py::tuple& problem, uintptr_t grad_output,
                                             uintptr_t input, uintptr_t mean, uintptr_t variance,
                                             uintptr_t weight, uintptr_t bias, uintptr_t grad_input,
                                             uintptr_t grad_weight, uintptr_t grad_bias) {
    const auto p = batch_norm_problem(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::batch_norm_activation_backward(
        p, pointer(grad_output), pointer(input), pointer(mean), pointer(variance), pointer(weight),
        pointer(bias), pointer(grad_input), pointer(grad_weight), pointer(grad_bias)));
  });
}

evit::LayoutProblem layout_problem(const py::tuple& t) {
  evit::LayoutProblem p;
  p.element_size = t[0].cast<int>();
  p.num_threads = t[1].cast<int>();
  p.batch = t[2].cast<int64_t>();
  p.channels = t[3].cast<int64_t>();
  const auto size = t[4].cast<Triple>();
  for (int axis = 0; axis < 3; ++axis) p.size[axis] = size[axis];
  const auto planar = t[5].cast<std::array<int64_t, 4>>();
  const auto rows = t[6].cast<std::array<int64_t, 4>>();
  for (int axis = 0; axis < 4; ++axis) {
    p.planar_strides[axis] = planar[axis];
    p.rows_strides[axis] = rows[axis];
  }
  return p;
}

void bind_layout(py::module_& m) {
  m.def("planar_to_rows", [](const py::tuple& problem, uintptr_t planar, uintptr_t rows) {
    const auto p = layout_problem(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::planar_to_rows(p, pointer(planar), pointer(rows)));
  });
  m.def("rows_to_planar", [](const py::tuple& problem, uintptr_t rows, uintptr_t planar) {
    const auto p = layout_problem(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::rows_to_planar(p, pointer(rows), pointer(planar)));
  });
}

void bind_instruction_sets(py::module_& m) {
  using evit::cpu::InstructionSet;
  m.def("instruction_set", [] { return evit::cpu::name_of(evit::cpu::instruction_set()); });
  m.def("instruction_sets", [] {
    // Every one that runs here, best first; found by trying.
    const InstructionSet before = evit::cpu::instruction_set();
    py::list names;
    for (auto set : {InstructionSet::kX86V4, InstructionSet::kX86V3, InstructionSet::kBaseline})
      if (evit::cpu::set_instruction_set(set)) names.append(evit::cpu::name_of(set));
    (void)evit::cpu::set_instruction_set(before);
    return names;
  });
  m.def("set_instruction_set", [](const std::string& name) {
    for (auto set : {InstructionSet::kX86V4, InstructionSet::kX86V3, InstructionSet::kBaseline})
      if (name == evit::cpu::name_of(set) && evit::cpu::set_instruction_set(set)) return;
    throw std::invalid_argument("evit core: instruction set '" + name + "' does not run here");
  });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of evit_kernels.";
  m.attr("compiler") = EVIT_COMPILER;
  m.attr("version") = EVIT_VERSION;
  bind_instruction_sets(m);
  m.def("advise_huge_pages", [](uintptr_t address, int64_t bytes) {
    evit::cpu::advise_huge_pages(pointer(address), bytes);
  });
  bind_batch_norm_activation(m);
  bind_dense_conv3d(m);
  bind_depthwise_conv3d(m);
  bind_layout(m);
  bind_relu_linear_attention(m);
  bind_pointwise_conv3d(m);
}
