// Scratch memory of a call: aligned, uninitialised, freed at the end of its scope.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace {

constexpr char kNoMemory[] = "out of memory for scratch buffers";

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    const size_t bytes =
        (static_cast<size_t>(count < 1 ? 1 : count) * sizeof(T) + 63) & ~size_t(63);
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  bool ok() const { return data_ != nullptr; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

constexpr int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
constexpr int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}
constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace
