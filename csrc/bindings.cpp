// The core in Python. Problems are made here, from tuples, for the CUDA kernels too. The GIL is
// released while a kernel runs.
#include "bindings.h"

#include "evit/batch_norm_activation.h"
#include "evit/cpu.h"
#include "evit/dense_conv3d.h"
#include "evit/depthwise_conv3d.h"
#include "evit/layout.h"
#include "evit/pointwise_conv3d.h"
#include "evit/pointwise_depthwise_conv3d.h"
#include "evit/relu_linear_attention.h"
#include "prepared.h"

namespace {

using evit::bindings::Addresses;
using evit::bindings::Prepared;

// A prepared call of `count` tensors; compute(problem, tensors, output) with the GIL released.
template <class Problem, class F>
std::shared_ptr<Prepared> prepared(const py::bytes& bytes, py::object make_output, size_t count,
                                   F compute) {
  const auto compute_unlocked = [p = unpacked<Problem>(bytes), compute](
                                    const Addresses& t, uintptr_t output, uintptr_t) {
    py::gil_scoped_release unlocked;
    check(compute(p, t, memory(output)));
  };
  return std::make_shared<Prepared>(count, std::move(make_output), compute_unlocked);
}

evit::DepthwiseConv3dProblem depthwise_problem(const py::args& t) {
  evit::DepthwiseConv3dProblem p;
  p.dtype = static_cast<evit::DType>(t[0].cast<int>());
  p.activation = static_cast<evit::Activation>(t[1].cast<int>());
  p.planar = t[2].cast<bool>();
  p.clamp_time = t[3].cast<bool>();
  p.num_threads = t[4].cast<int>();
  p.batch = t[5].cast<int64_t>();
  p.channels = t[6].cast<int64_t>();
  int64_t* const triples[] = {p.in, p.out, p.kernel, p.stride, p.padding, p.dilation};
  for (int i = 0; i < 6; ++i) {
    const auto values = t[7 + i].cast<Triple>();
    for (int axis = 0; axis < 3; ++axis) triples[i][axis] = values[axis];
  }
  const auto strides = t[13].cast<std::array<int64_t, 4>>();
  for (int axis = 0; axis < 4; ++axis) p.in_strides[axis] = strides[axis];
  return p;
}

void bind_depthwise_conv3d(py::module_& m) {
  using Problem = evit::DepthwiseConv3dProblem;
  m.def("depthwise_conv3d_problem", [](const py::args& t) { return packed(depthwise_problem(t)); });
  m.def("depthwise_conv3d_forward", [](const py::bytes& problem, uintptr_t input, uintptr_t weight,
                                       uintptr_t bias, uintptr_t output) {
    const auto p = unpacked<Problem>(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::depthwise_conv3d_forward(p, memory(input), memory(weight), pointer(bias),
                                              memory(output)));
  });
  m.def("depthwise_conv3d_prepared", [](const py::bytes& problem, py::object make_output) {
    return prepared<Problem>(problem, std::move(make_output), 3,
                             [](const Problem& p, const Addresses& t, void* output) {
                               return evit::cpu::depthwise_conv3d_forward(
                                   p, memory(t[0]), memory(t[1]), pointer(t[2]), output);
                             });
  });
  m.def("depthwise_conv3d_workspace", [](const py::bytes& problem) {
    return evit::cpu::depthwise_conv3d_workspace(unpacked<Problem>(problem));
  });
  m.def("depthwise_conv3d_backward", [](const py::bytes& problem, uintptr_t grad_output,
                                        uintptr_t input, uintptr_t weight, uintptr_t bias,
                                        uintptr_t scratch, uintptr_t partials, uintptr_t grad_input,
                                        uintptr_t grad_weight, uintptr_t grad_bias) {
    const auto p = unpacked<Problem>(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::depthwise_conv3d_backward(
        p, memory(grad_output), memory(input), memory(weight), pointer(bias), pointer(scratch),
        pointer(partials), pointer(grad_input), pointer(grad_weight), pointer(grad_bias)));
  });
}

// The tensors in the order of the operator's arguments.
evit::Status joined_convolutions(const evit::PointwiseDepthwiseConv3dProblem& p, const Addresses& t,
                                 void* output) {
  const auto parameter = [](uintptr_t address, int64_t channels) {
    return channels > 0 ? memory(address) : nullptr;
  };
  return evit::cpu::pointwise_depthwise_conv3d_forward(
      p, {memory(t[0]), parameter(t[1], p.in_channels), pointer(t[2]), memory(t[3]), pointer(t[4]),
          parameter(t[5], p.out_channels), pointer(t[6]), pointer(t[7]), output});
}

void bind_pointwise_depthwise_conv3d(py::module_& m) {
  using Problem = evit::PointwiseDepthwiseConv3dProblem;
  m.def("pointwise_depthwise_conv3d_problem", [](const py::bytes& depthwise, int activation,
                                                 int64_t in_channels, int64_t out_channels) {
    return packed(Problem{unpacked<evit::DepthwiseConv3dProblem>(depthwise),
                          static_cast<evit::Activation>(activation), in_channels, out_channels});
  });
  m.def("pointwise_depthwise_conv3d_serves", [](const py::bytes& problem) {
    return evit::cpu::pointwise_depthwise_conv3d_serves(unpacked<Problem>(problem));
  });
  m.def("pointwise_depthwise_conv3d_prepared",
        [](const py::bytes& problem, py::object make_output) {
          return prepared<Problem>(problem, std::move(make_output), 8, &joined_convolutions);
        });
}

evit::DenseConv3dProblem dense_problem(const py::args& t) {
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
  using Problem = evit::DenseConv3dProblem;
  m.def("dense_conv3d_problem", [](const py::args& t) { return packed(dense_problem(t)); });
  m.def("dense_conv3d_forward", [](const py::bytes& problem, uintptr_t input, uintptr_t weight,
                                   uintptr_t bias, uintptr_t output) {
    const auto p = unpacked<Problem>(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::dense_conv3d_forward(p, memory(input), memory(weight), pointer(bias),
                                          memory(output)));
  });
  m.def("dense_conv3d_workspace", [](const py::bytes& problem) {
    return evit::cpu::dense_conv3d_workspace(unpacked<Problem>(problem));
  });
  m.def("dense_conv3d_weight_gradient",
        [](const py::bytes& problem, uintptr_t grad_output, uintptr_t input, uintptr_t partials,
           uintptr_t grad_weight, uintptr_t grad_bias) {
          const auto p = unpacked<Problem>(problem);
          py::gil_scoped_release unlocked;
          check(evit::cpu::dense_conv3d_weight_gradient(p, memory(grad_output), memory(input),
                                                        pointer(partials), pointer(grad_weight),
                                                        pointer(grad_bias)));
        });
}

// A row holds the heads of a source and, for every view, its offset and three strides in elements.
py::bytes attention_problem(int dtype, int num_threads, const Triple& batch_tokens_width,
                            double eps, const std::vector<std::vector<int64_t>>& rows) {
  const auto type = static_cast<evit::DType>(dtype);
  const evit::ReluLinearAttentionProblem problem = {type,
                                                    num_threads,
                                                    batch_tokens_width[0],
                                                    batch_tokens_width[1],
                                                    batch_tokens_width[2],
                                                    eps,
                                                    static_cast<int64_t>(rows.size()),
                                                    nullptr};
  std::string bytes(reinterpret_cast<const char*>(&problem), sizeof problem);
  for (const auto& row : rows) {
    evit::AttentionSource source = {};
    source.heads = row[0];
    const auto views = views_of(source);
    for (size_t i = 0; i < kAttentionViews && 4 * i + 4 < row.size(); ++i) {
      const int64_t* entry = row.data() + 1 + 4 * i;
      const auto offset = static_cast<uintptr_t>(entry[0] * evit::size_of(type));
      *views[i] = {pointer(offset), entry[1], entry[2], entry[3]};
    }
    bytes.append(reinterpret_cast<const char*>(&source), sizeof source);
  }
  return bytes;
}

// Each tensor holds the queries, keys and values of a source.
std::shared_ptr<Prepared> prepared_attention(const py::bytes& problem, py::object make_output,
                                             size_t count) {
  const auto compute = [problem](const Addresses& tensors, uintptr_t output, uintptr_t state) {
    Addresses addresses;
    addresses.reserve(kAttentionInputs * tensors.size());
    for (const uintptr_t x : tensors) addresses.insert(addresses.end(), {x, x, x, output});
    const AttentionCall call(problem, addresses);
    py::gil_scoped_release unlocked;
    check(evit::cpu::relu_linear_attention_forward(call.problem(), pointer(state)));
  };
  return std::make_shared<Prepared>(count, std::move(make_output), compute);
}

void bind_relu_linear_attention(py::module_& m) {
  m.def("relu_linear_attention_prepared", &prepared_attention);
  m.def("relu_linear_attention_problem", &attention_problem);
  m.def("relu_linear_attention_forward",
        [](const py::bytes& problem, const Addresses& addresses, uintptr_t state) {
          const AttentionCall call(problem, addresses);
          py::gil_scoped_release unlocked;
          check(evit::cpu::relu_linear_attention_forward(call.problem(), pointer(state)));
        });
  m.def("relu_linear_attention_backward",
        [](const py::bytes& problem, const Addresses& addresses, uintptr_t state) {
          const AttentionCall call(problem, addresses);
          py::gil_scoped_release unlocked;
          check(evit::cpu::relu_linear_attention_backward(call.problem(), pointer(state)));
        });
}

evit::PointwiseConv3dProblem pointwise_problem(const py::args& t) {
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
  using Problem = evit::PointwiseConv3dProblem;
  m.def("pointwise_conv3d_problem", [](const py::args& t) { return packed(pointwise_problem(t)); });
  m.def("pointwise_conv3d_forward", [](const py::bytes& problem, uintptr_t input, uintptr_t weight,
                                       uintptr_t bias, uintptr_t residual, uintptr_t output) {
    const auto p = unpacked<Problem>(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::pointwise_conv3d_forward(p, memory(input), memory(weight), pointer(bias),
                                              pointer(residual), memory(output)));
  });
  m.def("pointwise_conv3d_prepared", [](const py::bytes& problem, py::object make_output) {
    return prepared<Problem>(
        problem, std::move(make_output), 4, [](const Problem& p, const Addresses& t, void* output) {
          return evit::cpu::pointwise_conv3d_forward(p, memory(t[0]), memory(t[1]), pointer(t[2]),
                                                     pointer(t[3]), output);
        });
  });
  m.def("pointwise_conv3d_workspace", [](const py::bytes& problem) {
    return evit::cpu::pointwise_conv3d_workspace(unpacked<Problem>(problem));
  });
  m.def("pointwise_conv3d_backward", [](const py::bytes& problem, uintptr_t grad_output,
                                        uintptr_t input, uintptr_t weight, uintptr_t bias,
                                        uintptr_t scratch, uintptr_t partials, uintptr_t grad_input,
                                        uintptr_t grad_weight, uintptr_t grad_bias) {
    const auto p = unpacked<Problem>(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::pointwise_conv3d_backward(
        p, memory(grad_output), memory(input), memory(weight), pointer(bias), pointer(scratch),
        pointer(partials), pointer(grad_input), pointer(grad_weight), pointer(grad_bias)));
  });
}

evit::BatchNormActivationProblem batch_norm_problem(const py::args& t) {
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
  using Problem = evit::BatchNormActivationProblem;
  m.def("batch_norm_activation_problem",
        [](const py::args& t) { return packed(batch_norm_problem(t)); });
  m.def("batch_norm_statistics",
        [](const py::bytes& problem, uintptr_t input, uintptr_t mean, uintptr_t variance) {
          const auto p = unpacked<Problem>(problem);
          py::gil_scoped_release unlocked;
          check(evit::cpu::batch_norm_statistics(p, memory(input), memory(mean), memory(variance)));
        });
  m.def("batch_norm_activation_forward", [](const py::bytes& problem, uintptr_t input,
                                            uintptr_t mean, uintptr_t variance, uintptr_t weight,
                                            uintptr_t bias, uintptr_t output) {
    const auto p = unpacked<Problem>(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::batch_norm_activation_forward(p, memory(input), memory(mean), memory(variance),
                                                   pointer(weight), pointer(bias), memory(output)));
  });
  m.def("batch_norm_activation_backward", [](const py::bytes& problem, uintptr_t grad_output,
                                             uintptr_t input, uintptr_t mean, uintptr_t variance,
                                             uintptr_t weight, uintptr_t bias, uintptr_t grad_input,
                                             uintptr_t grad_weight, uintptr_t grad_bias) {
    const auto p = unpacked<Problem>(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::batch_norm_activation_backward(
        p, memory(grad_output), memory(input), memory(mean), memory(variance), pointer(weight),
        pointer(bias), pointer(grad_input), pointer(grad_weight), pointer(grad_bias)));
  });
}

evit::LayoutProblem layout_problem(const py::args& t) {
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
  using Problem = evit::LayoutProblem;
  m.def("layout_problem", [](const py::args& t) { return packed(layout_problem(t)); });
  m.def("planar_to_rows", [](const py::bytes& problem, uintptr_t planar, uintptr_t rows) {
    const auto p = unpacked<Problem>(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::planar_to_rows(p, memory(planar), memory(rows)));
  });
  m.def("rows_to_planar", [](const py::bytes& problem, uintptr_t rows, uintptr_t planar) {
    const auto p = unpacked<Problem>(problem);
    py::gil_scoped_release unlocked;
    check(evit::cpu::rows_to_planar(p, memory(rows), memory(planar)));
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

void bind_calls(py::module_& m);  // bindings_calls.cpp

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
  bind_pointwise_depthwise_conv3d(m);
  bind_calls(m);
}
