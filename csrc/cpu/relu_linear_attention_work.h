// How the work of linear attention is divided: tasks are some heads of a source over a split of the
// tokens, and go through it in blocks.
#pragma once

#include "buffer.h"
#include "evit/cpu.h"
#include "evit/relu_linear_attention.h"
#include "relu_linear_attention_tiles.h"

namespace {

constexpr int64_t kTaskHeads = 8;  // heads of one task, neighbours in memory
// Features of the heads of a task that has all of their tokens: two lines of float32, which
// processors fetch as a pair.
constexpr int64_t kTaskFeatures = 32;
// Tokens of eight heads that are worth two threads: 24 take 0.97 of the time of one thread with
// heads of 16, 0.74 with heads of 32; 16 take 1.1 and 0.87.
constexpr int64_t kPairTokens = 24;
// Tokens of one partial sum, at least: the first number for some splits, so that threads have
// something to share, the second for more. With 512 instead of 128, 6,272 tokens take 0.93 of the
// time: fewer sums to combine, fewer beginnings that nobody prefetched.
constexpr int64_t kSplitTokens = 128, kLongSplitTokens = 512;
constexpr int64_t kSomeSplits = 8, kMaxSplits = 64;
// Inputs beyond this are not in the second-level caches: blocks are then short enough for the next
// one into the first-level cache while this one is worked on, in the order in which it lies in
// memory. Within it, prefetches only cost: with 2 MiB a core, 392 tokens (0.6 MB) take 0.85 of the
// time without. Not the size of the caches at hand: sums over other blocks are other bits.
// Nor are blocks long there: packing one overlaps with the products of the one before as far as the
// processor looks ahead. With 32 tokens instead of 64, one core takes 0.93 of the time for queries
// of 392 tokens of heads of 16.
constexpr int64_t kCachedBytes = 1 << 20;
constexpr int64_t kStreamedTokens = 16, kCachedTokens = 32;
// Inputs and outputs beyond this do not stay in the caches: gradients go past them then, and are
// not read into them before. Measured beside prefetches of what is written: gradients of 12,544
// tokens that come from memory take a fifth less time so.
constexpr int64_t kUncachedBytes = 16 << 20;

// Outputs of forward need more than an eighth of the third-level cache, too, of which some cores
// may have a share only. With one of 480 MiB, 12,544 tokens of heads of 16 (26 MB) took 1.4 times
// as long past the caches, and 1.04 times as long into them where inputs came from memory; 50,176
// tokens (103 MB) take 0.97 of the time past them, 0.9 where inputs lie in that cache.
inline int64_t uncached_output_bytes() {
  return larger(kUncachedBytes, evit::cpu::third_level_cache_bytes() / 8);
}

// A task's heads: `count` from `first` on in their source, `global` among all heads.
struct Group {
  const evit::AttentionSource* source;
  int64_t first;
  int64_t count;
  int64_t global;
};

struct Task {
  const Group* group;
  int64_t batch;
  int64_t split;
  int64_t begin;  // tokens
  int64_t end;
};

// Sizes and the division of the work. Splits and blocks are functions of the shape alone, never of
// the threads or of the machine.
template <class A>
struct Work {
  const evit::ReluLinearAttentionProblem& p;
  int64_t task_heads;  // of one task, at most
  int64_t width;
  int64_t padded;
  int64_t matrix;  // elements of M and, after its rows, z
  int64_t block;   // elements of a block of tokens
  int64_t bytes;   // of inputs and outputs
  bool streamed;   // the inputs are larger than the caches
  bool past;       // with the outputs, they are too large for all caches
  int64_t heads;
  int64_t splits;
  int64_t num_groups;
  Buffer<Group> groups;

  Work(const evit::ReluLinearAttentionProblem& problem, int64_t element_bytes,
       int64_t uncached_bytes = kUncachedBytes, int64_t most_heads = kTaskHeads)
      : p(problem), task_heads(most_heads), num_groups(count_groups()), groups(num_groups) {
    constexpr int L = kLanes<A>;
    width = p.width;
    padded = ceil_div(width, L) * L;
    matrix = (width + 1) * padded;
    block = kBlockTokens * padded;
    // A partial sum must stay small beside the tokens it sums. An even number of them is the same
    // work for both of two threads: with 3, 288 tokens took 1.4 times as long.
    const auto most = [&](int64_t least) { return p.tokens / larger(least, 4 * width); };
    splits = larger(smaller(kSomeSplits, most(kSplitTokens)),
                    smaller(kMaxSplits, most(kLongSplitTokens)));
    splits = larger(1, splits / 2 * 2);
    heads = 0;
    int64_t next = 0;
    for (int64_t s = 0; groups.ok() && s < p.num_sources; ++s) {
      const evit::AttentionSource& source = p.sources[s];
      for (int64_t first = 0; first < source.heads; first += task_heads)
        groups[next++] = {&source, first, smaller(task_heads, source.heads - first), heads + first};
      heads += source.heads;
    }
    const int64_t part = p.batch * heads * p.tokens * width * element_bytes;
    bytes = 4 * part;
    streamed = 3 * part > kCachedBytes;
    past = bytes > uncached_bytes;
  }

  int64_t count_groups() const {
    int64_t count = 0;
    for (int64_t s = 0; s < p.num_sources; ++s) count += ceil_div(p.sources[s].heads, task_heads);
    return count;
  }

  int64_t step() const { return streamed ? kStreamedTokens : kCachedTokens; }  // tokens of a block

  int64_t tasks() const { return p.batch * splits * num_groups; }
  int64_t matrices() const { return p.batch * heads; }
  int threads() const { return static_cast<int>(smaller(p.num_threads, tasks())); }

  Task task(int64_t index) const {
    return part(whole(index % num_groups + index / num_groups / splits * num_groups),
                index / num_groups % splits);
  }

  // All tokens of a group's heads; there are batch * num_groups of these.
  Task whole(int64_t index) const {
    return {&groups[index % num_groups], index / num_groups, 0, 0, p.tokens};
  }

  // A split of what has all tokens.
  Task part(Task task, int64_t split) const {
    task.split = split;
    task.begin = first_token(split);
    task.end = smaller(p.tokens, first_token(split + 1));
    return task;
  }

  // Splits are as even as whole multiples of tokens allow.
  int64_t first_token(int64_t split) const {
    return ceil_div(p.tokens, kTokenMultiple) * split / splits * kTokenMultiple;
  }

  // A task's head among all of the batch.
  int64_t index(const Task& task, int64_t head) const {
    return task.batch * heads + task.group->global + head;
  }

  // The matrix of a task's head in a buffer of (splits, batch, heads) matrices, or of one split.
  int64_t offset(const Task& task, int64_t head, int64_t split) const {
    return (split * matrices() + index(task, head)) * matrix;
  }
};

template <class A>
void clear(A* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = 0;
}

// Whether what is written to a view goes past the caches: then it has to fill whole lines.
template <class S>
bool stores_past(const Work<Acc<S>>& w, const evit::HeadsView& view) {
  const auto whole = [](int64_t elements) {
    return elements * static_cast<int64_t>(sizeof(S)) % kLine == 0;
  };
  return kStoresPast<S, kLanes<Acc<S>>> && w.past &&
         reinterpret_cast<uintptr_t>(view.data) % kLine == 0 && whole(view.batch_stride) &&
         whole(view.head_stride) && whole(view.token_stride);
}

template <class S>
S* at(const evit::HeadsView& view, const Task& task, int64_t head, int64_t token) {
  return static_cast<S*>(view.data) + task.batch * view.batch_stride +
         (task.group->first + head) * view.head_stride + token * view.token_stride;
}

// The tokens of a task's heads in a view. A copy on the stack, of which nobody has the address:
// what a kernel stores cannot change it, as far as the compiler knows.
template <class S>
struct Rows {
  S* first;
  int64_t head_stride;
  int64_t stride;

  Rows(const evit::HeadsView& view, const Task& task)
      : first(at<S>(view, task, 0, 0)), head_stride(view.head_stride), stride(view.token_stride) {}
  EVIT_INLINE S* at_token(int64_t head, int64_t token) const {
    return first + head * head_stride + token * stride;
  }
};

// Calls body(head, first token, tokens) for every block of a task, `step` tokens long, heads
// inside: they are neighbours.
template <class F>
EVIT_INLINE void for_each_block(const Task& task, int64_t step, F&& body) {
  const int64_t end = task.end, heads = task.group->count;
  for (int64_t token = task.begin; token < end; token += step)
    for (int64_t head = 0; head < heads; ++head) body(head, token, smaller(step, end - token));
}

}  // namespace
