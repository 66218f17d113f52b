// Where the CUDA version of an operator runs. Operators take the same problems as on CPUs and
// return the same errors; they start kernels on the caller's stream and return without waiting for
// them.
#pragma once

#include "evit/common.h"

namespace evit::cuda {

struct Stream {
  int device;    // index
  void* handle;  // cudaStream_t; null is the default stream
};

}  // namespace evit::cuda
