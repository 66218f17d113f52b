// Blocks of threads that share memory, written as phases: `each` lets every thread of a block do
// its part and waits for all of them. What a thread keeps from one phase to the next is
// `PerThread`.
//
// Between phases there is only what all threads agree on, so no barrier can stand in a branch that
// some threads do not take; and for the host a phase is a loop over the threads. There shared
// memory knows who used it since the last barrier, and what two threads share without one is an
// error.
#pragma once

#if !defined(__CUDACC__)
#include <stdexcept>
#include <vector>
#endif

#include "launch.h"

namespace evit::cuda {

constexpr int kWarpThreads = 32;
constexpr int kWarps = kBlockThreads / kWarpThreads;

#if defined(__CUDACC__)

constexpr int kHeldThreads = 1;

using SharedFloat = float;

struct Block {
  int64_t index;

  template <class F>
  EVIT_HD void each(const F& f) const {
    apart(f);
    wait();
  }

  // The same without waiting: for what threads do with their own values alone.
  template <class F>
  EVIT_HD void apart(const F& f) const {
#if defined(__CUDA_ARCH__)
    f(static_cast<int>(threadIdx.x));
#else
    (void)f;  // never called: kernels do not run on the host here
#endif
  }

  EVIT_HD void wait() const {
#if defined(__CUDA_ARCH__)
    __syncthreads();
#endif
  }
};

template <class Body>
__global__ void __launch_bounds__(kBlockThreads, 1)
    run_blocks(const Body body, const int64_t blocks) {
  __shared__ typename Body::Shared shared;
  for (int64_t i = blockIdx.x; i < blocks; i += gridDim.x) body(Block{i}, shared);
}

// Calls body(block, shared) for every block in [0, blocks).
template <class Body>
Status for_each_block(int64_t blocks, const Body& body, Stream stream) {
  if (blocks <= 0) return {};
  const auto size = static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
  run_blocks<<<size, kBlockThreads, 0, static_cast<cudaStream_t>(stream.handle)>>>(body, blocks);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? Status{} : Status{cudaGetErrorString(error)};
}

#else

constexpr int kHeldThreads = kBlockThreads;

// The thread that runs, and how many barriers have been passed.
struct Now {
  int16_t thread = 0;
  int32_t barriers = 0;
};

inline Now& now() {
  static thread_local Now value;
  return value;
}

// A float in shared memory, with the threads that used it and when.
class SharedFloat {
 public:
  SharedFloat() = default;
  SharedFloat(const SharedFloat&) = delete;

  operator float() const {
    if (written_ == now().barriers && writer_ != now().thread) race();
    if (read_ != now().barriers) {
      read_ = now().barriers;
      reader_ = now().thread;
    } else if (reader_ != now().thread) {
      reader_ = kSeveral;
    }
    return value_;
  }

  SharedFloat& operator=(float value) {
    if (written_ == now().barriers && writer_ != now().thread) race();
    if (read_ == now().barriers && reader_ != now().thread) race();
    written_ = now().barriers;
    writer_ = now().thread;
    value_ = value;
    return *this;
  }
  SharedFloat& operator=(const SharedFloat& other) { return *this = static_cast<float>(other); }

 private:
  static constexpr int16_t kSeveral = -1;

  [[noreturn]] static void race() {
    throw std::logic_error("two threads use the same shared memory without a barrier between");
  }

  float value_;
  int16_t writer_;
  mutable int16_t reader_;
  int32_t written_;
  mutable int32_t read_;
};
// Where unions have other floats they are still whole ones.
static_assert(sizeof(SharedFloat) == 16, "as wide as arrays are aligned");

struct Block {
  int64_t index;

  template <class F>
  void each(const F& f) const {
    apart(f);
    wait();
  }
  template <class F>
  void apart(const F& f) const {
    for (int16_t i = 0; i < kBlockThreads; ++i) {
      now().thread = i;
      f(i);
    }
  }
  void wait() const { ++now().barriers; }
};

template <class Body>
Status for_each_block(int64_t blocks, const Body& body, Stream) {
  // Nothing is known of what shared memory holds at first: these bytes are NaN, used by nobody.
  using Shared = typename Body::Shared;
  std::vector<Shared> shared(1);
  for (int64_t i = 0; i < blocks; ++i) {
    now() = {};
    __builtin_memset(static_cast<void*>(shared.data()), 0xff, sizeof(Shared));
    body(Block{i}, shared[0]);
  }
  return {};
}

#endif

// A value of every thread, in its registers.
template <class T>
class PerThread {
 public:
  EVIT_HD T& operator[](int thread) { return values_[kHeldThreads == 1 ? 0 : thread]; }

 private:
  T values_[kHeldThreads];
};

}  // namespace evit::cuda
