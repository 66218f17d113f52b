// How kernels are started, and the words of CUDA that the same sources need when they are compiled
// for the host: there every thread of a launch is run by a loop, which is how tests without a GPU
// run the kernels themselves.
#pragma once

#include <cstdint>

#include "evit/common.h"
#include "evit/cuda.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define EVIT_HD __host__ __device__ __forceinline__
#define EVIT_UNROLLED _Pragma("unroll")
#else
#define EVIT_HD inline
#define EVIT_UNROLLED
#endif

namespace evit::cuda {

constexpr int kBlockThreads = 128;
constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;  // of the first axis of a grid

// A launch covers [0, items) with threads; where there are more items than a grid has threads,
// every thread takes several, `threads()` apart.
struct Grid {
  int64_t blocks;

  EVIT_HD explicit Grid(int64_t items) {
    const int64_t wanted = (items + kBlockThreads - 1) / kBlockThreads;
    blocks = wanted < 1 ? 1 : wanted < kMaxBlocks ? wanted : kMaxBlocks;
  }
  EVIT_HD int64_t threads() const { return blocks * kBlockThreads; }
};

#if defined(__CUDACC__)

struct Thread {
  __device__ int64_t first() const {
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  }
  __device__ int64_t step() const { return static_cast<int64_t>(gridDim.x) * blockDim.x; }
};

// Makes a device current for a scope.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ == cudaSuccess && before_ != device) error_ = cudaSetDevice(device);
  }
  ~OnDevice() {
    int now = before_;
    if (cudaGetDevice(&now) == cudaSuccess && now != before_) (void)cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  Status status() const {
    return error_ == cudaSuccess ? Status{} : Status{cudaGetErrorString(error_)};
  }

 private:
  int before_ = 0;
  cudaError_t error_;
};

// One block at least has to fit a multiprocessor: left to choose, nvcc spills to make room for
// more.
template <class Body>
__global__ void __launch_bounds__(kBlockThreads, 1) run_body(const Body body, const int64_t items) {
  const Thread thread;
  for (int64_t i = thread.first(); i < items; i += thread.step()) body(i);
}

// Calls body(i) on the device for every i in [0, items).
template <class Body>
Status for_each(int64_t items, const Body& body, Stream stream) {
  if (items <= 0) return {};
  const auto blocks = static_cast<unsigned>(Grid(items).blocks);
  run_body<<<blocks, kBlockThreads, 0, static_cast<cudaStream_t>(stream.handle)>>>(body, items);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? Status{} : Status{cudaGetErrorString(error)};
}

#else

class OnDevice {
 public:
  explicit OnDevice(int) {}
  Status status() const { return {}; }
};

template <class Body>
Status for_each(int64_t items, const Body& body, Stream) {
  for (int64_t i = 0; i < items; ++i) body(i);
  return {};
}

#endif

}  // namespace evit::cuda
