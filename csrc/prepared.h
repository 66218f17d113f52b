// Calls of an operator that are alike, prepared: all but the addresses of their tensors.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "bindings.h"

namespace evit::bindings {

using Addresses = std::vector<uintptr_t>;  // of tensors; 0 for None

inline uintptr_t address_of(py::handle tensor) {
  static const auto* const name = new py::str("data_ptr");  // never freed: Python may be gone then
  const auto address =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor.ptr(), name->ptr()));
  if (!address) throw py::error_already_set();
  return address.cast<uintptr_t>();
}

class Prepared {
 public:
  // Takes the tensors, the output and, where the caller wants them, what backward needs besides.
  // Releases the GIL.
  using Compute = std::function<void(const Addresses& tensors, uintptr_t output, uintptr_t state)>;

  // count: of the tensors. make_output: makes what a call returns.
  Prepared(size_t count, py::object make_output, Compute compute)
      : count_(count), make_output_(std::move(make_output)), compute_(std::move(compute)) {}

  py::object run(const Addresses& tensors, uintptr_t state) const {
    if (tensors.size() != count_)
      throw std::invalid_argument("evit core: a prepared call of other tensors");
    py::object output = make_output_();
    compute_(tensors, address_of(output), state);
    return output;
  }

 private:
  size_t count_;
  py::object make_output_;
  Compute compute_;
};

}  // namespace evit::bindings
