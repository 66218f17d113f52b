// Tasks in shares of neighbours, one share for each thread: what a thread did last is still in its
// caches when it comes back to it. Whoever is done with its own helps the others.
#pragma once

#include "buffer.h"

extern "C" int omp_get_thread_num();  // of any OpenMP runtime; Clang may come without omp.h

namespace {

class Shares {
 public:
  Shares(int64_t tasks, int64_t threads)
      : tasks_(tasks), threads_(larger(1, threads)), taken_(threads_ * kApart) {
    for (int64_t s = 0; taken_.ok() && s < threads_; ++s) taken_[s * kApart] = 0;
  }

  bool ok() const { return taken_.ok(); }

  // The next task of the calling thread's share, or one of another's, or -1 when all are taken.
  // Backward: every share from its end. A thread's share is the same in every call, for what it
  // wrote in the last one may be in its caches: by the order of arrival, attention over 1,568
  // tokens took 1.1 times as long.
  int64_t take(bool backward) {
    const int64_t owner = omp_get_thread_num() % threads_;
    for (int64_t i = 0; i < threads_; ++i) {
      const int64_t share = (owner + i) % threads_;
      const int64_t begin = first(share), end = first(share + 1);
      int64_t* taken = &taken_[share * kApart];
      if (begin + __atomic_load_n(taken, __ATOMIC_RELAXED) >= end) continue;
      const int64_t n = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
      if (begin + n < end) return backward ? end - 1 - n : begin + n;
    }
    return -1;
  }

 private:
  static constexpr int64_t kApart = 8;  // counters in lines of their own

  int64_t first(int64_t share) const { return tasks_ * share / threads_; }

  int64_t tasks_;
  int64_t threads_;
  Buffer<int64_t> taken_;
};

}  // namespace
