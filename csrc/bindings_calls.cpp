// What is known of calls that were made before, by their keys: all that checks, plans and backends
// depend on.
//
// In Python a key takes a dozen objects for each tensor, and between two large kernels the caches
// hold little of what makes them. Here it is a string of bytes, and what a tensor is comes from
// DLPack, without a library of torch to link with.
#include <cstdlib>
#include <memory>
#include <string>
#include <unordered_map>

#include "bindings.h"
#include "evit/dlpack.h"
#include "prepared.h"

namespace {

using evit::bindings::Addresses;
using evit::bindings::Prepared;
using evit::dlpack::Exchange;

// Whether a call of Python says yes. Takes the reference to its result.
bool truth_of(PyObject* result) {
  const auto held = py::reinterpret_steal<py::object>(result);
  const int truth = held ? PyObject_IsTrue(held.ptr()) : -1;
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

// The number that a call of Python says. Takes the reference to its result.
int64_t number_of(PyObject* result) {
  const auto held = py::reinterpret_steal<py::object>(result);
  const int64_t number = held ? PyLong_AsLongLong(held.ptr()) : -1;
  if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
  return number;
}

class Key {
 public:
  Key() { bytes_.reserve(kUsual); }

  template <class T>
  void add(const T& value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }

  void add_text(const char* text, size_t size) {
    add(size);
    bytes_.append(text, size);
  }

  // None, numbers, text, and tuples of those. False for all else: it may change, or be equal to
  // what it is not. Values that are equal may be of several types, such as True, 1 and 1.0.
  bool add_option(PyObject* value) {
    if (value == Py_None) {
      add('n');
    } else if (PyBool_Check(value)) {
      add(value == Py_True ? 't' : 'f');
    } else if (PyLong_CheckExact(value)) {
      int overflow = 0;
      const int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow);
      if (overflow != 0) return false;
      add('i');
      add(number);
    } else if (PyFloat_CheckExact(value)) {
      add('d');
      add(PyFloat_AS_DOUBLE(value));
    } else if (PyUnicode_CheckExact(value)) {
      Py_ssize_t size;
      const char* text = PyUnicode_AsUTF8AndSize(value, &size);
      if (text == nullptr) throw py::error_already_set();
      add('s');
      add_text(text, static_cast<size_t>(size));
    } else if (PyTuple_Check(value)) {
      const Py_ssize_t size = PyTuple_GET_SIZE(value);
      add('(');
      add(Py_TYPE(value));
      add(size);
      for (Py_ssize_t i = 0; i < size; ++i)
        if (!add_option(PyTuple_GET_ITEM(value, i))) return false;
    } else {
      return false;
    }
    return true;
  }

  const std::string& bytes() const { return bytes_; }

 private:
  static constexpr size_t kUsual = 512;  // enough for some tensors; malloc has such at hand

  std::string bytes_;
};

class CallKeys {
 public:
  // types: of plain tensors. watchers: functions that say yes while something watches operators go
  // by. threads: tells how many a kernel gets. grad_mode: whether gradients are recorded.
  // forward_mode: the module that knows how deep forward-mode differentiation is. environment: the
  // variable that names a backend.
  CallKeys(const py::capsule& exchange, py::tuple types, py::tuple watchers, py::object threads,
           py::object grad_mode, py::object forward_mode, std::string environment)
      : describe_(find_describe(exchange)),
        types_(std::move(types)),
        watchers_(std::move(watchers)),
        threads_(std::move(threads)),
        grad_mode_(std::move(grad_mode)),
        forward_mode_(std::move(forward_mode)),
        environment_(std::move(environment)) {}

  // Makes the key of a call, and notes where its tensors are; false where it must not be
  // remembered.
  bool make(const py::sequence& tensors, const py::tuple& options, const py::object& backend,
            Key& key, Addresses& addresses) const {
    for (const py::handle watcher : watchers_)
      if (truth_of(PyObject_CallNoArgs(watcher.ptr()))) return false;
    if (number_of(PyObject_GetAttr(forward_mode_.ptr(), level_.ptr())) >= 0) return false;
    key.add(number_of(PyObject_CallNoArgs(threads_.ptr())));
    const auto list =
        py::reinterpret_steal<py::object>(PySequence_Fast(tensors.ptr(), "not a sequence"));
    if (!list) throw py::error_already_set();
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(list.ptr());
    key.add(count);
    const bool records = truth_of(PyObject_CallNoArgs(grad_mode_.ptr()));
    bool gradient = false;
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* const tensor = PySequence_Fast_GET_ITEM(list.ptr(), i);
      if (!add_tensor(tensor, key, addresses)) return false;
      gradient = gradient || (records && tensor != Py_None &&
                              truth_of(PyObject_GetAttr(tensor, requires_grad_.ptr())));
    }
    key.add(gradient);
    if (!key.add_option(options.ptr()) || !key.add_option(backend.ptr())) return false;
    const char* chosen = backend.is_none() ? std::getenv(environment_.c_str()) : nullptr;
    if (chosen != nullptr) key.add_text(chosen, std::strlen(chosen));
    return true;
  }

 private:
  using Describe = int (*)(void*, evit::dlpack::Tensor*);

  // Throws where structures may be others than those here, or nothing describes tensors.
  static Describe find_describe(const py::capsule& capsule) {
    if (std::strcmp(capsule.name(), evit::dlpack::kExchangeName) != 0)
      throw std::invalid_argument("evit core: not a capsule of DLPack's exchange functions");
    const auto* exchange = capsule.get_pointer<Exchange>();
    if (exchange->major_version != evit::dlpack::kMajorVersion || exchange->describe == nullptr)
      throw std::runtime_error("evit core: DLPack's exchange functions are of another version");
    return exchange->describe;
  }

  bool add_tensor(PyObject* object, Key& key, Addresses& addresses) const {
    if (object == Py_None) {
      key.add('N');
      addresses.push_back(0);
      return true;
    }
    bool plain = false;
    for (const py::handle type : types_)
      plain = plain || reinterpret_cast<PyObject*>(Py_TYPE(object)) == type.ptr();
    if (!plain) return false;
    evit::dlpack::Tensor t;
    if (describe_(object, &t) != 0) {
      // A batch of a transform, no memory, sizes that a compiler does not know: none is plain.
      PyErr_Clear();
      return false;
    }
    if (t.data == nullptr || truth_of(PyObject_CallMethodNoArgs(object, is_negative_.ptr())))
      return false;
    addresses.push_back(reinterpret_cast<uintptr_t>(t.data) + t.byte_offset);
    key.add('T');
    key.add(t.device_type);
    key.add(t.device_index);
    key.add(t.dtype);
    key.add(t.rank);
    for (int32_t i = 0; i < t.rank; ++i) key.add(t.shape[i]);
    for (int32_t i = 0; i < t.rank; ++i) key.add(t.strides[i]);
    return true;
  }

  Describe describe_;
  py::tuple types_;
  py::tuple watchers_;
  py::object threads_;
  py::object grad_mode_;
  py::object forward_mode_;
  py::str is_negative_{"is_neg"};
  py::str requires_grad_{"requires_grad"};
  py::str level_{"_current_level"};
  std::string environment_;
};

class KnownCalls {
 public:
  explicit KnownCalls(std::shared_ptr<CallKeys> keys) : keys_(std::move(keys)) {}

  // The key of a call and what is known of it, each None where there is none.
  py::object find(const py::sequence& tensors, const py::tuple& options,
                  const py::object& backend) const {
    return look_up(tensors, options, backend, false);
  }

  // The result of a call that needs nothing but its kernel, else what `find` returns.
  py::object call(const py::sequence& tensors, const py::tuple& options,
                  const py::object& backend) const {
    return look_up(tensors, options, backend, true);
  }

  void keep(const py::bytes& key, const py::object& known) {
    // None becomes a null pointer.
    known_[std::string(key)] = {py::make_tuple(key, known),
                                known.attr("at_once").cast<std::shared_ptr<Prepared>>()};
  }

  size_t size() const { return known_.size(); }

 private:
  struct Entry {
    py::tuple found;
    std::shared_ptr<Prepared> at_once;
  };

  py::object look_up(const py::sequence& tensors, const py::tuple& options,
                     const py::object& backend, bool may_call) const {
    Key key;
    Addresses addresses;
    addresses.reserve(kUsual);
    if (!keys_->make(tensors, options, backend, key, addresses)) return nothing_;
    const auto found = known_.find(key.bytes());
    if (found == known_.end()) return py::make_tuple(py::bytes(key.bytes()), py::none());
    const Entry entry = found->second;  // the table may change while a kernel runs
    if (may_call && entry.at_once) return entry.at_once->run(addresses, 0);
    return entry.found;
  }

  static constexpr size_t kUsual = 8;  // tensors of a call

  std::shared_ptr<CallKeys> keys_;
  std::unordered_map<std::string, Entry> known_;
  py::tuple nothing_ = py::make_tuple(py::none(), py::none());
};

}  // namespace

void bind_calls(py::module_& m) {
  py::class_<CallKeys, std::shared_ptr<CallKeys>>(m, "CallKeys")
      .def(py::init<const py::capsule&, py::tuple, py::tuple, py::object, py::object, py::object,
                    std::string>());
  py::class_<Prepared, std::shared_ptr<Prepared>>(m, "Prepared")
      .def(
          "__call__",
          [](const Prepared& call, const py::args& tensors, const py::object& state) {
            Addresses addresses;
            for (const py::handle t : tensors)
              addresses.push_back(t.is_none() ? 0 : evit::bindings::address_of(t));
            return call.run(addresses, state.is_none() ? 0 : evit::bindings::address_of(state));
          },
          py::arg("state") = py::none());
  py::class_<KnownCalls>(m, "KnownCalls")
      .def(py::init<std::shared_ptr<CallKeys>>())
      .def("call", &KnownCalls::call)
      .def("find", &KnownCalls::find)
      .def("keep", &KnownCalls::keep)
      .def("__len__", &KnownCalls::size);
}
