// Keys under which calls are remembered: all that checks, plans and backends depend on.
//
// In Python a key takes a dozen objects for each tensor, and between two large kernels the caches
// hold little of what makes them. Here it is a string of bytes, and what a tensor is comes from
// DLPack, without a library of torch to link with.
#include <cstdlib>
#include <string>

#include "bindings.h"
#include "evit/dlpack.h"

namespace {

using evit::dlpack::Exchange;

// Whether a call of Python says yes. Takes the reference to its result.
bool truth_of(PyObject* result) {
  const auto held = py::reinterpret_steal<py::object>(result);
  const int truth = held ? PyObject_IsTrue(held.ptr()) : -1;
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

class Key {
 public:
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

  py::object take() const { return py::bytes(bytes_); }

 private:
  std::string bytes_;
};

class CallKeys {
 public:
  // types: of plain tensors. watchers: functions that say yes while something watches operators go
  // by. threads: tells how many a kernel gets. environment: the variable that names a backend.
  CallKeys(const py::capsule& exchange, py::tuple types, py::tuple watchers, py::object threads,
           std::string environment)
      : describe_(find_describe(exchange)),
        types_(std::move(types)),
        watchers_(std::move(watchers)),
        threads_(std::move(threads)),
        is_negative_(py::str("is_neg")),
        environment_(std::move(environment)) {}

  // The key of a call, or None where it must not be remembered.
  py::object of(const py::sequence& tensors, const py::tuple& options, const py::object& backend) {
    for (const py::handle watcher : watchers_)
      if (truth_of(PyObject_CallNoArgs(watcher.ptr()))) return py::none();
    Key key;
    key.add(threads_().cast<int64_t>());
    const auto list =
        py::reinterpret_steal<py::object>(PySequence_Fast(tensors.ptr(), "not a sequence"));
    if (!list) throw py::error_already_set();
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(list.ptr());
    key.add(count);
    for (Py_ssize_t i = 0; i < count; ++i)
      if (!add_tensor(PySequence_Fast_GET_ITEM(list.ptr(), i), key)) return py::none();
    if (!key.add_option(options.ptr()) || !key.add_option(backend.ptr())) return py::none();
    const char* chosen = backend.is_none() ? std::getenv(environment_.c_str()) : nullptr;
    if (chosen != nullptr) key.add_text(chosen, std::strlen(chosen));
    return key.take();
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

  bool add_tensor(PyObject* object, Key& key) const {
    if (object == Py_None) {
      key.add('N');
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
  py::str is_negative_;
  std::string environment_;
};

}  // namespace

void bind_calls(py::module_& m) {
  py::class_<CallKeys>(m, "CallKeys")
      .def(py::init<const py::capsule&, py::tuple, py::tuple, py::object, std::string>())
      .def("of", &CallKeys::of);
}
