// What the bindings of the core and of the CUDA kernels share: pointers come as integers, problems
// as bytes; a failed status becomes a RuntimeError.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "evit/relu_linear_attention.h"

namespace py = pybind11;

namespace {

using Triple = std::array<int64_t, 3>;

template <class T = void>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Of a tensor that has to be there: some of torch's have a size, strides and a dtype, but no
// memory.
void* memory(uintptr_t address) {
  if (address == 0) throw std::runtime_error("evit core: a tensor has no memory");
  return pointer(address);
}

[[maybe_unused]] void check(evit::Status status) {
  if (!status.ok()) throw std::runtime_error(std::string("evit core: ") + status.message);
}

// A problem is made once and travels as the bytes of its struct: reading a tuple takes longer than
// a small kernel where the caches are cold.
template <class Problem>
py::bytes packed(const Problem& problem) {
  static_assert(std::is_trivially_copyable_v<Problem>);
  return {reinterpret_cast<const char*>(&problem), sizeof problem};
}

template <class Problem>
Problem unpacked(const py::bytes& bytes) {
  if (static_cast<size_t>(PyBytes_GET_SIZE(bytes.ptr())) != sizeof(Problem))
    throw std::invalid_argument("evit core: these are not the bytes of this operator's problem");
  Problem problem;
  std::memcpy(&problem, PyBytes_AS_STRING(bytes.ptr()), sizeof problem);
  return problem;
}

// The problem of linear attention travels as its struct and then the structs of its sources. Their
// views hold offsets in bytes; a call brings the address of the tensor that each of them lies in.
constexpr size_t kAttentionViews = 7;
constexpr size_t kAttentionInputs = 4;  // those that every call has

std::array<evit::HeadsView*, kAttentionViews> views_of(evit::AttentionSource& s) {
  return {&s.q, &s.k, &s.v, &s.output, &s.grad_q, &s.grad_k, &s.grad_v};
}

class AttentionCall {
 public:
  AttentionCall(const py::bytes& bytes, const std::vector<uintptr_t>& addresses) {
    const char* data = PyBytes_AS_STRING(bytes.ptr());
    const auto size = static_cast<size_t>(PyBytes_GET_SIZE(bytes.ptr()));
    if (size < sizeof problem_) throw std::invalid_argument("evit core: a problem is too short");
    std::memcpy(&problem_, data, sizeof problem_);
    const auto count = static_cast<size_t>(problem_.num_sources);
    sources_.resize(count);
    if (size != sizeof problem_ + count * sizeof(evit::AttentionSource) || count == 0 ||
        addresses.size() % count != 0 || addresses.size() / count > kAttentionViews)
      throw std::invalid_argument("evit core: a problem of attention and its tensors differ");
    std::memcpy(sources_.data(), data + sizeof problem_, count * sizeof(evit::AttentionSource));
    const uintptr_t* address = addresses.data();
    for (auto& source : sources_) {
      const auto views = views_of(source);
      for (size_t i = 0; i < addresses.size() / count; ++i, ++address)
        views[i]->data =
            *address || i < kAttentionInputs
                ? static_cast<char*>(memory(*address)) + reinterpret_cast<uintptr_t>(views[i]->data)
                : nullptr;
    }
    problem_.sources = sources_.data();
  }
  AttentionCall(const AttentionCall&) = delete;
  AttentionCall& operator=(const AttentionCall&) = delete;

  const evit::ReluLinearAttentionProblem& problem() const { return problem_; }

 private:
  std::vector<evit::AttentionSource> sources_;
  evit::ReluLinearAttentionProblem problem_;
};

}  // namespace
