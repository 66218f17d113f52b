// For Clang only: the entry points that its OpenMP code calls, on those of GNU's runtime.
//
// GCC's and Clang's compiled code ask for different runtimes. torch brings one of the GNU interface
// (LLVM's runtime offers that too), and a second one in the process would mean a second pool of
// threads. So the few functions that Clang's code needs are translated here; the linker sees to it
// that nobody else does. Loops are those that the core has: static and dynamic, counted upwards by
// one, not nested.
#ifdef __clang__

#include <cstdarg>
#include <cstdint>
#include <cstdlib>
#include <utility>

extern "C" {
void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned flags);
void GOMP_barrier();
bool GOMP_loop_dynamic_start(long begin, long end, long step, long chunk, long* from, long* to);
bool GOMP_loop_dynamic_next(long* from, long* to);
void GOMP_loop_end_nowait();
int omp_get_num_threads();
int omp_get_thread_num();
}

namespace {

constexpr int kMaxArguments = 32;

using Task = void (*)();  // really (int32_t*, int32_t*, void*...)

struct Region {
  Task task;
  int count;
  void* arguments[kMaxArguments];
};

// What one thread is doing.
struct Thread {
  unsigned wanted_threads = 0;  // for the next region; 0 leaves it to the runtime
  int serial_depth = 0;         // inside a region that one thread runs by itself
  bool loop_started = false;
  long begin = 0, end = 0, chunk = 1;  // of the dynamic loop
};
thread_local Thread thread;

template <int>
using Pointer = void*;

template <int... I>
void call(const Region& region, int32_t* id, std::integer_sequence<int, I...>) {
  using Function = void (*)(int32_t*, int32_t*, Pointer<I>...);
  reinterpret_cast<Function>(region.task)(id, id, region.arguments[I]...);
}

template <int N>
void call_with(const Region& region, int32_t* id) {
  if (region.count == N)
    call(region, id, std::make_integer_sequence<int, N>{});
  else if constexpr (N < kMaxArguments)
    call_with<N + 1>(region, id);
}

void run(void* data) {
  int32_t id = omp_get_thread_num();
  call_with<0>(*static_cast<Region*>(data), &id);
}

int team_size() {
  return thread.serial_depth > 0 ? 1 : omp_get_num_threads();
}

int place_in_team() {
  return thread.serial_depth > 0 ? 0 : omp_get_thread_num();
}

// The thread's even share of [*lower, *upper]; empty (lower > upper) where there is none.
template <class T>
void static_share(int32_t* last, T* lower, T* upper, T* stride) {
  const T count = *upper < *lower ? 0 : *upper - *lower + 1;
  const T size = static_cast<T>(team_size()), place = static_cast<T>(place_in_team());
  const T share = count / size, extra = count % size;
  const T first = place * share + (place < extra ? place : extra);
  const T own = share + (place < extra ? 1 : 0);
  *stride = count;
  *last = own > 0 && first + own == count;
  if (own == 0) {
    *lower = 1;  // an unsigned range has no other way to be empty
    *upper = 0;
    return;
  }
  *lower += first;
  *upper = *lower + own - 1;
}

void start_dynamic(long lower, long upper, long chunk) {
  thread.begin = lower;
  thread.end = upper + 1;
  thread.chunk = chunk > 0 ? chunk : 1;
  thread.loop_started = false;
}

template <class T>
int32_t next_dynamic(int32_t* last, T* lower, T* upper, T* stride) {
  long from = thread.begin, to = thread.end;
  bool more;
  if (thread.serial_depth > 0) {
    more = !thread.loop_started && from < to;
  } else if (thread.loop_started) {
    more = GOMP_loop_dynamic_next(&from, &to);
  } else {
    more = GOMP_loop_dynamic_start(thread.begin, thread.end, 1, thread.chunk, &from, &to);
  }
  thread.loop_started = true;
  if (!more) {
    if (thread.serial_depth == 0) GOMP_loop_end_nowait();
    return 0;
  }
  *lower = static_cast<T>(from);
  *upper = static_cast<T>(to - 1);
  *stride = 1;
  *last = to == thread.end;
  return 1;
}

}  // namespace

// Names and arguments are those of LLVM's OpenMP runtime; the first is always a source location.
extern "C" {

int32_t __kmpc_global_thread_num(void*) {
  return place_in_team();
}

void __kmpc_push_num_threads(void*, int32_t, int32_t threads) {
  thread.wanted_threads = threads > 0 ? static_cast<unsigned>(threads) : 0;
}

void __kmpc_fork_call(void*, int32_t count, Task task, ...) {
  if (count > kMaxArguments) std::abort();  // the core would not have passed a single test
  Region region = {task, count, {}};
  va_list arguments;
  va_start(arguments, task);
  for (int i = 0; i < count; ++i) region.arguments[i] = va_arg(arguments, void*);
  va_end(arguments);
  const unsigned threads = thread.wanted_threads;
  thread.wanted_threads = 0;
  GOMP_parallel(run, &region, threads, 0);
}

void __kmpc_serialized_parallel(void*, int32_t) {
  thread.wanted_threads = 0;
  ++thread.serial_depth;
}

void __kmpc_end_serialized_parallel(void*, int32_t) {
  --thread.serial_depth;
}

void __kmpc_barrier(void*, int32_t) {
  if (thread.serial_depth == 0) GOMP_barrier();
}

void __kmpc_for_static_init_8(void*, int32_t, int32_t, int32_t* last, int64_t* lower,
                              int64_t* upper, int64_t* stride, int64_t, int64_t) {
  static_share(last, lower, upper, stride);
}

void __kmpc_for_static_init_8u(void*, int32_t, int32_t, int32_t* last, uint64_t* lower,
                               uint64_t* upper, uint64_t* stride, int64_t, int64_t) {
  static_share(last, lower, upper, stride);
}

void __kmpc_for_static_fini(void*, int32_t) {}

void __kmpc_dispatch_init_8(void*, int32_t, int32_t, int64_t lower, int64_t upper, int64_t,
                            int64_t chunk) {
  start_dynamic(lower, upper, chunk);
}

void __kmpc_dispatch_init_8u(void*, int32_t, int32_t, uint64_t lower, uint64_t upper, int64_t,
                             int64_t chunk) {
  start_dynamic(static_cast<long>(lower), static_cast<long>(upper), chunk);
}

int32_t __kmpc_dispatch_next_8(void*, int32_t, int32_t* last, int64_t* lower, int64_t* upper,
                               int64_t* stride) {
  return next_dynamic(last, lower, upper, stride);
}

int32_t __kmpc_dispatch_next_8u(void*, int32_t, int32_t* last, uint64_t* lower, uint64_t* upper,
                                int64_t* stride) {
  uint64_t step = 1;
  const int32_t more = next_dynamic(last, lower, upper, &step);
  *stride = static_cast<int64_t>(step);
  return more;
}

// Called after a loop by newer versions; nothing is left to be done.
void __kmpc_dispatch_deinit(void*, int32_t) {}
}

#endif  // __clang__
