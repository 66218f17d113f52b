// The host's shared memory notices what two threads share without a barrier, and nothing else.
#include <cstdio>
#include <cstdlib>

#include "../../csrc/cuda/block.h"

using evit::cuda::Block;
using evit::cuda::kBlockThreads;
using evit::cuda::PerThread;
using evit::cuda::SharedFloat;

namespace {

struct Shared {
  SharedFloat values[kBlockThreads + 1];
};

// Every thread reads what its neighbour wrote.
struct Neighbours {
  using Shared = ::Shared;
  bool wait_for_writes;
  bool wait_for_reads;
  float* sums;

  void operator()(const Block& block, Shared& shared) const {
    PerThread<float> sum;
    for (int round = 0; round < 2; ++round) {
      block.apart([&](int t) { shared.values[t] = static_cast<float>(t + round); });
      if (wait_for_writes) block.wait();
      block.apart([&](int t) {
        const float seen = shared.values[(t + 1) % kBlockThreads];
        sum[t] = round == 0 ? seen : sum[t] + seen;
      });
      if (wait_for_reads) block.wait();
    }
    block.apart([&](int t) { sums[t] = sum[t]; });
  }
};

// Many may read the same, and one may use what is its own.
struct Own {
  using Shared = ::Shared;
  void operator()(const Block& block, Shared& shared) const {
    block.each([&](int t) {
      if (t == 0) shared.values[kBlockThreads] = 1.0f;
    });
    block.apart([&](int t) {
      shared.values[t] = shared.values[kBlockThreads];
      shared.values[t] = shared.values[t] + 1.0f;
    });
  }
};

struct TwoWriters {
  using Shared = ::Shared;
  void operator()(const Block& block, Shared& shared) const {
    block.each([&](int t) { shared.values[t / 2] = 1.0f; });
  }
};

// Nothing is there before it is written.
struct Unwritten {
  using Shared = ::Shared;
  float* value;
  void operator()(const Block& block, Shared& shared) const {
    block.apart([&](int t) {
      if (t == 0) *value = shared.values[0];
    });
  }
};

template <class Body>
bool races(const Body& body) {
  try {
    return !evit::cuda::for_each_block(2, body, {}).ok();
  } catch (const std::logic_error&) {
    return true;
  }
}

void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("%s\n", what);
  std::exit(1);
}

}  // namespace

int main() {
  float sums[kBlockThreads];
  check(!races(Neighbours{true, true, sums}), "barriers are a race");
  for (int t = 0; t < kBlockThreads; ++t)
    check(sums[t] == 2.0f * static_cast<float>((t + 1) % kBlockThreads) + 1.0f, "a wrong sum");
  check(races(Neighbours{false, true, sums}), "reads before the barrier are no race");
  check(races(Neighbours{true, false, sums}), "writes before the barrier are no race");
  check(!races(Own{}), "a thread races with itself");
  check(races(TwoWriters{}), "two writers are no race");
  float value = 0.0f;
  check(!races(Unwritten{&value}) && value != value, "shared memory begins with values");
  return 0;
}
