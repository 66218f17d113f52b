// Prefetches of what linear attention will read and write, block by block.
#pragma once

#include <type_traits>

#include "relu_linear_attention_work.h"

namespace {

// Prefetches the next block of some views, in the order of memory, one head of one token at a time:
// evenly between the products of this block, since the processor takes only some tens of lines at
// once. The first `Read` views are read, the others written: a store to a line that is in no cache
// of the core has to read it first, and few stores can wait for that. Measured, 1,568 to 6,272
// tokens whose outputs are in no such cache: forward takes 0.8 of the time so, backward 0.7.
// Features: of a head, where the compiler is to know them, or 0; then views to write without data,
// or stored past the caches, are left out.
//
// Where processors gain by it (evit/cpu.h), what is read comes in two steps: the next block into
// the second-level cache, and from there, while the products of one head are made, the next head's
// part of this block. Measured on such a processor, tokens that come from memory take 0.7 (heads of
// 16) and 0.9 (32) of the time so, forward and backward. The compiler knows which where it knows
// the features: both in one function took 1.04 of the time where tokens came from caches.
template <class S, int Features, int Read, int Written, bool TwoSteps = false>
class Ahead {
 public:
  // By `step` tokens; views beyond those read and written are left alone.
  template <class... Views>
  Ahead(const Work<Acc<S>>& w, const Task& task, int64_t step, const Views&... views)
      // Nobody is called where the answer is known: 1,568 tokens took 1.05 of the time with it.
      : in_two_steps_(Features > 0 ? TwoSteps : evit::cpu::prefetches_in_two_steps()),
        heads_(task.group->count),
        left_(heads_),
        bytes_(w.width * size),
        first_token_(task.begin),
        step_(step) {
    static_assert(sizeof...(views) >= Read + Written);
    (add(w, task, views), ...);
  }

  // Before the products of a head's part of the block that begins with `token`.
  EVIT_INLINE void begin(int64_t head, int64_t token) {
    if (!in_two_steps()) return;
    const bool last = head + 1 == heads_;
    const int64_t next_head = last ? 0 : head + 1;
    const int64_t tokens = token - first_token_ + (last ? step_ : 0);
    EVIT_UNROLL
    for (int v = 0; v < Read; ++v)
      near_[v] = first_[v] + next_head * head_stride_[v] + tokens * token_stride_[v];
  }

  // Calls f(between) with what fetches, once a token, or with nothing: a condition there would be
  // one of every token. Measured, sums of heads of 32 take 0.9 of the time so.
  template <class F>
  EVIT_INLINE void during(bool wanted, F&& f) {
    if (wanted)
      f([&] { fetch(); });
    else
      f([] {});
  }

 private:
  static constexpr int64_t size = sizeof(S);
  static constexpr int64_t kPage = 4096;
  static constexpr int kFirstLevel = 3, kSecondLevel = 2;  // as the compiler has them

  void add(const Work<Acc<S>>& w, const Task& task, const evit::HeadsView& view) {
    if (count_ == Read + Written) return;
    if (Features == 0 && count_ >= Read && (view.data == nullptr || stores_past<S>(w, view)))
      return;
    const char* first = reinterpret_cast<const char*>(at<const S>(view, task, 0, task.begin));
    if (count_ < Read) {
      first_[count_] = first;
      token_stride_[count_] = view.token_stride * size;
    }
    next_[count_] = first + step_ * view.token_stride * size;
    head_stride_[count_] = view.head_stride * size;
    token_step_[count_] = (view.token_stride - heads_ * view.head_stride) * size;
    const bool together =
        token_step_[count_] >= 0 && 2 * token_step_[count_] <= view.token_stride * size;
    begin_[count_] = together ? smaller(view.token_stride * size, kPage) : 0;
    ++count_;
  }

  EVIT_INLINE int count() const { return Features > 0 ? Read + Written : count_; }
  EVIT_INLINE int64_t bytes() const { return Features > 0 ? Features * size : bytes_; }

  EVIT_INLINE bool in_two_steps() const { return Features > 0 ? TwoSteps : in_two_steps_; }

  EVIT_INLINE void fetch() {
    if (in_two_steps()) {
      fetch_next<kSecondLevel>();
      fetch_near();
    } else {
      fetch_next<kFirstLevel>();
    }
    go(head_stride_);
    if (--left_ > 0) return;
    left_ = heads_;
    if (!in_two_steps()) announce_pages();
    go(token_step_);
  }

  template <int Level>
  EVIT_INLINE void fetch_next() {
    for (int64_t i = 0; i < bytes(); i += kLine) {
      EVIT_UNROLL
      for (int v = 0; v < Read; ++v) __builtin_prefetch(next_[v] + i, 0, Level);
      for (int v = Read; Written > 0 && v < count(); ++v) __builtin_prefetch(next_[v] + i, 1);
    }
  }

  EVIT_INLINE void fetch_near() {
    EVIT_UNROLL
    for (int v = 0; v < Read; ++v) {
      for (int64_t i = 0; i < bytes(); i += kLine) __builtin_prefetch(near_[v] + i);
      near_[v] += token_stride_[v];
    }
  }

  // Hardware prefetches end with a page. Where this one begins, they are told of the next but one:
  // measured where prefetches have one step, attention over 12,544 tokens and more takes 0.95 of
  // the time so; where they have two, 1.1, for the hardware then fetches lines that lie between.
  EVIT_INLINE void announce_pages() {
    EVIT_UNROLL
    for (int v = 0; v < Read; ++v) {
      if ((reinterpret_cast<intptr_t>(next_[v]) & (kPage - 1)) >= begin_[v]) continue;
      __builtin_prefetch(next_[v] + 2 * kPage);
      __builtin_prefetch(next_[v] + 2 * kPage + kLine);
    }
  }

  EVIT_INLINE void go(const int64_t* steps) {
    EVIT_UNROLL
    for (int v = 0; v < Read; ++v) next_[v] += steps[v];
    for (int v = Read; Written > 0 && v < count(); ++v) next_[v] += steps[v];
  }

  bool in_two_steps_;
  int count_ = 0;
  int64_t heads_;
  int64_t left_;
  int64_t bytes_;
  int64_t first_token_;
  int64_t step_;
  const char* first_[Read];  // of the task
  const char* near_[Read];   // for the first-level cache, of two steps
  int64_t token_stride_[Read];
  const char* next_[Read + Written];
  int64_t head_stride_[Read + Written];
  int64_t token_step_[Read + Written];
  // Bytes of a page that one token passes; 0 where heads are apart, or a task has few of a token's:
  // 1,568 tokens by heads took 0.88 of the time so, with heads of 16.
  int64_t begin_[Read + Written];
};

// Calls f(TwoSteps) for an Ahead that knows its features.
template <int Features, class F>
EVIT_INLINE void with_steps(F&& f) {
  if constexpr (Features > 0)
    if (evit::cpu::prefetches_in_two_steps()) return f(std::true_type{});
  f(std::false_type{});
}

}  // namespace
