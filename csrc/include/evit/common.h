// What every operator of the core shares: storage types, activations, the way errors are returned.
// Headers in this folder include neither torch nor Python nor CUDA.
#pragma once

#include <cstdint>

namespace evit {

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3 };

// In bytes.
constexpr int64_t size_of(DType type) {
  return type == DType::kFloat64 ? 8 : type == DType::kFloat32 ? 4 : 2;
}

enum class Activation : int32_t {
  kNone = 0,
  kRelu = 1,
  kRelu6 = 2,
  kHardswish = 3,
  kGelu = 4,
  kGeluTanh = 5,
  kSilu = 6,
};

// A null message means success. Messages are string literals: nobody frees them.
struct [[nodiscard]] Status {
  const char* message = nullptr;
  bool ok() const { return message == nullptr; }
};

}  // namespace evit
