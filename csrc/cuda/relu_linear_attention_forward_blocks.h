// The forward pass of linear attention by blocks: M and z of every head, then every token.
#pragma once

#include "relu_linear_attention_blocks.h"

namespace evit::cuda {

// M and z over the tokens of a block.
template <class S, int D>
struct KeySums {
  using P = Products<S, D>;
  using Mine = Share<S, D>;
  struct Tiles {
    Tile<D, 8> keys;
    Tile<D, 8> values;
  };
  struct Totals {
    Square<D> matrix;
    FeatureSums<S, D> vector;
  };
  union Shared {
    Tiles tiles;
    Totals totals;
  };

  Chunks p;
  Role keys;
  Role values;
  float* partials;

  EVIT_HD void operator()(const Block& block, Shared& shared) const {
    const Chunk at = chunk_at(p, block.index);
    const auto k = tokens_of<const S>(p, keys, at), v = tokens_of<const S>(p, values, at);
    PerThread<typename P::Sums> sums;
    PerThread<float[Mine::V]> vector;
    PerThread<typename Mine::Packs> next_keys, next_values;
    const auto load = [&](int thread, int64_t token) {
      const Mine mine(thread);
      const int64_t count = tile_count<D>(token, at.end);
      mine.load(k, token, count, next_keys[thread]);
      mine.load(v, token, count, next_values[thread]);
    };
    block.apart([&](int thread) {
      P::clear(sums[thread]);
      EVIT_UNROLLED
      for (int i = 0; i < Mine::V; ++i) vector[thread][i] = 0.0f;
      load(thread, at.first);
    });
    for (int64_t token = at.first; token < at.end; token += kTileTokens<D>) {
      block.each([&](int thread) {
        const Mine mine(thread);
        const int64_t count = tile_count<D>(token, at.end);
        mine.each(count, next_keys[thread], [&](int row, float (&x)[Mine::V]) {
          EVIT_UNROLLED
          for (int i = 0; i < Mine::V; ++i) {
            x[i] = relu(x[i]);
            vector[thread][i] += x[i];
          }
          put(shared.tiles.keys.rows[row] + mine.feature, x);
        });
        mine.each(count, next_values[thread], [&](int row, float (&x)[Mine::V]) {
          put(shared.tiles.values.rows[row] + mine.feature, x);
        });
        load(thread, token + kTileTokens<D>);
      });
      P::template add<true>(block, sums, shared.tiles.keys, shared.tiles.values);
      block.wait();
    }
    P::collect(block, sums, shared.totals.matrix);
    block.each([&](int thread) {
      EVIT_UNROLLED
      for (int i = 0; i < Mine::V; ++i) shared.totals.vector.values[thread][i] = vector[thread][i];
    });
    block.each([&](int thread) {
      write_sums(thread, shared.totals.matrix, shared.totals.vector,
                 partials + block.index * elements_of(D));
    });
  }
};

template <class S, int D>
struct Attention {
  using P = Products<S, D>;
  using Mine = Share<S, D>;
  struct Shared {
    Tile<D, 4> queries;
    Tile<D, 4> products;
    Square<D> matrix;
    alignas(kPackBytes) SharedFloat vector[D];
    SharedFloat normalisers[kTileTokens<D>];
  };

  Chunks p;
  Role queries;
  Role output;
  const float* state;

  EVIT_HD void operator()(const Block& block, Shared& shared) const {
    const Chunk at = chunk_at(p, block.index);
    const auto q = tokens_of<const S>(p, queries, at);
    const auto o = tokens_of<S>(p, output, at);
    const float* head = state + (at.batch * p.heads + at.head) * elements_of(D);
    PerThread<typename P::Matrix> matrix;
    PerThread<typename Mine::Packs> next;
    block.each([&](int thread) {
      read_state<D, false>(thread, head, shared.matrix, shared.vector);
      Mine(thread).load(q, at.first, tile_count<D>(at.first, at.end), next[thread]);
    });
    P::hold(block, matrix, shared.matrix);
    for (int64_t token = at.first; token < at.end; token += kTileTokens<D>) {
      const int64_t count = tile_count<D>(token, at.end);
      block.each([&](int thread) {
        const Mine mine(thread);
        mine.each(count, next[thread], [&](int row, float (&x)[Mine::V]) {
          EVIT_UNROLLED
          for (int i = 0; i < Mine::V; ++i) x[i] = relu(x[i]);
          put(shared.queries.rows[row] + mine.feature, x);
        });
        const int64_t after = token + kTileTokens<D>;
        mine.load(q, after, tile_count<D>(after, at.end), next[thread]);
      });
      block.apart([&](int thread) {
        if (thread < kTileTokens<D>)
          shared.normalisers[thread] = dot<D>(shared.queries.rows[thread], shared.vector) + p.eps;
      });
      P::template product<true>(block, shared.queries, matrix, shared.matrix, shared.products);
      block.apart([&](int thread) {
        const Mine mine(thread);
        mine.store(true, o, token, count, [&](int row, float (&x)[Mine::V]) {
          EVIT_UNROLLED
          for (int i = 0; i < Mine::V; ++i)
            x[i] = divided<float>(shared.products.rows[row][mine.feature + i],
                                  shared.normalisers[row]);
        });
      });
    }
  }
};

template <class S>
Status forward_in_blocks(const ReluLinearAttentionProblem& problem, float* state, float* partials,
                         Stream stream) {
  const Chunks p(problem);
  const Role q = role_of(problem, &AttentionSource::q), k = role_of(problem, &AttentionSource::k);
  const Role v = role_of(problem, &AttentionSource::v);
  const Role output = role_of(problem, &AttentionSource::output);
  return with_width(problem.width, [&](auto width) {
    constexpr int D = width;
    const int64_t elements = elements_of(D);
    Status status = for_each_block(p.blocks(), KeySums<S, D>{p, k, v, partials}, stream);
    if (!status.ok()) return status;
    const AddChunks add = {p, elements, partials, state};
    status = for_each(p.batch * p.heads * elements, add, stream);
    if (!status.ok()) return status;
    return for_each_block(p.blocks(), Attention<S, D>{p, q, output, state}, stream);
  });
}

}  // namespace evit::cuda
