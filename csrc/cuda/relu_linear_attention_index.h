// What the i-th thread of a kernel of linear attention works on: integer arithmetic alone, the same
// on host and device.
#pragma once

#include "evit/relu_linear_attention.h"
#include "launch.h"

namespace evit::cuda {

constexpr int64_t kSplitTokens = 256;  // of one partial sum, at least
constexpr int64_t kMaxTokenSplits = 64;

// The heads of one source, and how its tokens are split: a function of the shape alone.
struct Heads {
  int64_t batch;
  int64_t tokens;
  int64_t width;
  double eps;
  int64_t heads;
  int64_t first;      // of them among all heads
  int64_t all_heads;  // of all sources
  int64_t splits;

  inline Heads(const ReluLinearAttentionProblem& p, int64_t heads_, int64_t before)
      : batch(p.batch),
        tokens(p.tokens),
        width(p.width),
        eps(p.eps),
        heads(heads_),
        first(before),
        all_heads(0) {
    for (int64_t s = 0; s < p.num_sources; ++s) all_heads += p.sources[s].heads;
    splits = (tokens + kSplitTokens - 1) / kSplitTokens;
    splits = splits < kMaxTokenSplits ? splits : kMaxTokenSplits;
  }
};

// M and, after its rows, z.
EVIT_HD int64_t matrix_elements(const Heads& p) {
  return (p.width + 1) * p.width;
}
EVIT_HD int64_t entries_of(const Heads& p) {
  return p.batch * p.heads * matrix_elements(p);
}
EVIT_HD int64_t rows_of(const Heads& p) {
  return p.batch * p.heads * p.tokens;
}
EVIT_HD int64_t features_of(const Heads& p) {
  return rows_of(p) * p.width;
}

EVIT_HD int64_t first_token(const Heads& p, int64_t split) {
  return split * p.tokens / p.splits;
}

// A token of a head.
struct Row {
  int64_t batch;
  int64_t head;
  int64_t token;
};

// Heads of a token are next to each other in packed projections: they come first.
EVIT_HD Row row_at(const Heads& p, int64_t i) {
  return {i / p.heads / p.tokens, i % p.heads, i / p.heads % p.tokens};
}
EVIT_HD int64_t index_of(const Heads& p, const Row& row) {
  return (row.batch * p.tokens + row.token) * p.heads + row.head;
}

struct Feature {
  Row row;
  int64_t j;
};

EVIT_HD Feature feature_at(const Heads& p, int64_t i) {
  return {row_at(p, i / p.width), i % p.width};
}

// Where the matrix of a row's head is among those of all heads.
EVIT_HD int64_t matrix_of(const Heads& p, const Row& row) {
  return (row.batch * p.all_heads + p.first + row.head) * matrix_elements(p);
}

// Entry (i, j) of a matrix over the tokens [row.token, end) of a split.
struct Entry {
  Row row;
  int64_t end;
  int64_t i;
  int64_t j;
};

EVIT_HD Entry entry_at(const Heads& p, int64_t index) {
  const int64_t entry = index % matrix_elements(p);
  const int64_t head = index / matrix_elements(p) % p.heads;
  const int64_t batch = index / matrix_elements(p) / p.heads % p.batch;
  const int64_t split = index / entries_of(p);
  return {{batch, head, first_token(p, split)},
          first_token(p, split + 1),
          entry / p.width,
          entry % p.width};
}

// An entry's index among the matrices of the source's heads, as one among those of all heads.
EVIT_HD int64_t of_all_heads(const Heads& p, int64_t index) {
  const int64_t elements = matrix_elements(p);
  const int64_t head = index / elements % p.heads, batch = index / elements / p.heads;
  return (batch * p.all_heads + p.first + head) * elements + index % elements;
}

// ---- by blocks: chunks of the tokens of a head

constexpr int64_t kMaxSources = 4;
constexpr int64_t kChunkMultiple = 64;  // tokens

// One role of the heads of all sources: queries, say.
struct Role {
  HeadsView views[kMaxSources];
};

// The heads of all sources, and how their tokens are divided: a function of the shape alone.
struct Chunks {
  int64_t batch;
  int64_t tokens;
  int64_t heads;               // of all sources
  int64_t first[kMaxSources];  // head of a source; of those that are not there, beyond all
  int64_t size;                // tokens of a chunk
  int64_t chunks;              // of a head
  float eps;

  inline explicit Chunks(const ReluLinearAttentionProblem& p)
      : batch(p.batch), tokens(p.tokens), heads(0), eps(static_cast<float>(p.eps)) {
    for (int64_t s = 0; s < p.num_sources; ++s) {
      first[s] = heads;
      heads += p.sources[s].heads;
    }
    for (int64_t s = p.num_sources; s < kMaxSources; ++s) first[s] = heads;
    // Enough blocks for a large device, but neither more partial sums than need be nor sums so long
    // that they lose digits.
    constexpr int64_t kEnoughBlocks = 2048, kLeast = 128, kMost = 512;
    const int64_t wanted = (kEnoughBlocks + batch * heads - 1) / (batch * heads);
    size = (tokens + wanted - 1) / wanted;
    size = size < kLeast ? kLeast : size < kMost ? size : kMost;
    size = (size + kChunkMultiple - 1) / kChunkMultiple * kChunkMultiple;
    chunks = (tokens + size - 1) / size;
  }

  EVIT_HD int64_t blocks() const { return batch * chunks * heads; }
};

struct Chunk {
  int64_t batch;
  int64_t head;
  int64_t first;  // token
  int64_t end;
};

// Heads come first: neighbours read neighbours in packed projections.
EVIT_HD int64_t block_of(const Chunks& p, int64_t batch, int64_t chunk, int64_t head) {
  return (batch * p.chunks + chunk) * p.heads + head;
}

EVIT_HD Chunk chunk_at(const Chunks& p, int64_t block) {
  const int64_t first = block / p.heads % p.chunks * p.size;
  const int64_t end = first + p.size;
  return {block / p.heads / p.chunks, block % p.heads, first, end < p.tokens ? end : p.tokens};
}

// M and, after its rows, z of a head of a width.
EVIT_HD int64_t elements_of(int64_t width) {
  return (width + 1) * width;
}

// The tokens of a head: features next to each other, `stride` elements from token to token.
template <class S>
struct Tokens {
  S* data;
  int64_t stride;
};

template <class S>
EVIT_HD Tokens<S> tokens_of(const Chunks& p, const Role& role, const Chunk& at) {
  HeadsView view = role.views[0];
  int64_t head = at.head;
  EVIT_UNROLLED
  for (int s = 1; s < kMaxSources; ++s) {
    if (at.head < p.first[s]) continue;
    view = role.views[s];
    head = at.head - p.first[s];
  }
  const bool is_there = view.data != nullptr;
  const int64_t offset = is_there ? at.batch * view.batch_stride + head * view.head_stride : 0;
  return {static_cast<S*>(view.data) + offset, view.token_stride};
}

// Whether a role's tensor of a head is there at all: gradients that nobody wants are not.
EVIT_HD bool is_wanted(const Chunks& p, const Role& role, const Chunk& at) {
  bool wanted = role.views[0].data != nullptr;
  EVIT_UNROLLED
  for (int s = 1; s < kMaxSources; ++s)
    if (at.head >= p.first[s]) wanted = role.views[s].data != nullptr;
  return wanted;
}

}  // namespace evit::cuda
