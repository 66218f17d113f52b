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

}  // namespace evit::cuda
