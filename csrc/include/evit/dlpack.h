// What is needed of DLPack (https://dmlc.github.io/dlpack, version 1.3): a tensor as a C structure,
// and the functions that a framework lends to others for tensors that Python holds.
#pragma once

#include <cstdint>

namespace evit::dlpack {

// Strides and shape belong to the tensor that was described.
struct Tensor {
  void* data;
  int32_t device_type;
  int32_t device_index;
  int32_t rank;
  struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
  } dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

constexpr char kExchangeName[] = "dlpack_exchange_api";  // of the capsule
constexpr uint32_t kMajorVersion = 1;                    // of the structures here

struct Exchange {
  uint32_t major_version;
  uint32_t minor_version;
  Exchange* older;
  void* not_used_here[3];
  // Describes what a PyObject* holds. Returns -1, with a Python error, where it cannot; may be
  // absent.
  int (*describe)(void* object, Tensor* description);
  void* stream;
};

}  // namespace evit::dlpack
