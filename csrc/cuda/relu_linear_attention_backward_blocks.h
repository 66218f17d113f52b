// The backward pass of linear attention by blocks: dq with dM and dz, then dk and dv. The
// mathematics is that of relu_linear_attention.cu.
#pragma once

#include "relu_linear_attention_blocks.h"

namespace evit::cuda {

// dq, and dM and dz over the tokens of a block.
template <class S, int D>
struct QueryGradients {
  using P = Products<S, D>;
  using Mine = Share<S, D>;
  struct Tiles {
    Tile<D, 8> queries;
    Tile<D, 4> grads;     // g, then dn
    Tile<D, 4> products;  // u
  };
  struct Shared {
    union {
      Tiles tiles;
      FeatureSums<S, D> sums;
    };
    Square<D> matrix;  // M transposed, then dM
    alignas(kPackBytes) SharedFloat vector[D];
    SharedFloat normalisers[kTileTokens<D>];
    SharedFloat slopes[kTileTokens<D>];  // dd
  };

  Chunks p;
  Role queries;
  Role grads;
  Role grad_queries;
  const float* state;
  float* partials;

  EVIT_HD void operator()(const Block& block, Shared& shared) const {
    const Chunk at = chunk_at(p, block.index);
    const auto q = tokens_of<const S>(p, queries, at), g = tokens_of<const S>(p, grads, at);
    const auto dq = tokens_of<S>(p, grad_queries, at);
    const bool wanted = is_wanted(p, grad_queries, at);
    const float* head = state + (at.batch * p.heads + at.head) * elements_of(D);
    Tiles& tiles = shared.tiles;
    PerThread<typename P::Sums> sums;
    PerThread<typename P::Matrix> matrix;
    PerThread<float[Mine::V]> vector;
    PerThread<typename Mine::Packs> next_queries, next_grads;
    const auto load = [&](int thread, int64_t token) {
      const Mine mine(thread);
      const int64_t count = tile_count<D>(token, at.end);
      mine.load(q, token, count, next_queries[thread]);
      mine.load(g, token, count, next_grads[thread]);
    };
    block.each([&](int thread) {
      P::clear(sums[thread]);
      EVIT_UNROLLED
      for (int i = 0; i < Mine::V; ++i) vector[thread][i] = 0.0f;
      read_state<D, true>(thread, head, shared.matrix, shared.vector);
      load(thread, at.first);
    });
    P::hold(block, matrix, shared.matrix);
    for (int64_t token = at.first; token < at.end; token += kTileTokens<D>) {
      const int64_t count = tile_count<D>(token, at.end);
      block.each([&](int thread) {
        const Mine mine(thread);
        mine.each(count, next_queries[thread], [&](int row, float (&x)[Mine::V]) {
          EVIT_UNROLLED
          for (int i = 0; i < Mine::V; ++i) x[i] = relu(x[i]);
          put(tiles.queries.rows[row] + mine.feature, x);
        });
      });
      block.each([&](int thread) {
        if (thread < kTileTokens<D>)
          shared.normalisers[thread] = dot<D>(tiles.queries.rows[thread], shared.vector) + p.eps;
      });
      block.each([&](int thread) {
        const Mine mine(thread);
        mine.each(count, next_grads[thread], [&](int row, float (&x)[Mine::V]) {
          EVIT_UNROLLED
          for (int i = 0; i < Mine::V; ++i) x[i] = divided<float>(x[i], shared.normalisers[row]);
          put(tiles.grads.rows[row] + mine.feature, x);
        });
        load(thread, token + kTileTokens<D>);
      });
      P::template product<false>(block, tiles.grads, matrix, shared.matrix, tiles.products);
      block.each([&](int thread) {
        if (thread >= kTileTokens<D>) return;
        const float sum = dot<D>(tiles.queries.rows[thread], tiles.products.rows[thread]);
        shared.slopes[thread] = divided<float>(-sum, shared.normalisers[thread]);
      });
      block.apart([&](int thread) {
        const Mine mine(thread);
        mine.store(wanted, dq, token, count, [&](int row, float (&x)[Mine::V]) {
          const float slope = shared.slopes[row];
          EVIT_UNROLLED
          for (int i = 0; i < Mine::V; ++i) {
            const int feature = mine.feature + i;
            const float query = tiles.queries.rows[row][feature];
            const float u = tiles.products.rows[row][feature];
            x[i] = query <= 0.0f ? 0.0f : u + slope * shared.vector[feature];
            vector[thread][i] += slope * query;
          }
        });
      });
      P::template add<false>(block, sums, tiles.queries, tiles.grads);
      block.wait();
    }
    P::collect(block, sums, shared.matrix);
    block.each([&](int thread) {
      EVIT_UNROLLED
      for (int i = 0; i < Mine::V; ++i) shared.sums.values[thread][i] = vector[thread][i];
    });
    block.each([&](int thread) {
      write_sums(thread, shared.matrix, shared.sums, partials + block.index * elements_of(D));
    });
  }
};

// dk = dM v + dz where k is positive, or dv = r(k) dM: each a block of its own.
template <class S, int D>
struct KeyValueGradients {
  using P = Products<S, D>;
  using Mine = Share<S, D>;
  struct Shared {
    Tile<D, 4> rows;
    Tile<D, 4> products;
    Square<D> matrix;
    alignas(kPackBytes) SharedFloat vector[D];
  };

  Chunks p;
  Role keys;
  Role values;
  Role grad_keys;
  Role grad_values;
  const float* totals;  // dM and dz of all heads

  EVIT_HD void operator()(const Block& block, Shared& shared) const {
    // The two blocks of the same tokens run side by side and share what caches hold.
    const bool of_keys = block.index % 2 == 0;
    const Chunk at = chunk_at(p, block.index / 2);
    const auto k = tokens_of<const S>(p, keys, at), v = tokens_of<const S>(p, values, at);
    const auto to = of_keys ? tokens_of<S>(p, grad_keys, at) : tokens_of<S>(p, grad_values, at);
    if (!is_wanted(p, of_keys ? grad_keys : grad_values, at)) return;
    const float* head = totals + (at.batch * p.heads + at.head) * elements_of(D);
    PerThread<typename P::Matrix> matrix;
    PerThread<typename Mine::Packs> key_packs, value_packs;
    block.each([&](int thread) {
      if (of_keys)
        read_state<D, true>(thread, head, shared.matrix, shared.vector);
      else
        read_state<D, false>(thread, head, shared.matrix, shared.vector);
    });
    P::hold(block, matrix, shared.matrix);
    for (int64_t token = at.first; token < at.end; token += kTileTokens<D>) {
      const int64_t count = tile_count<D>(token, at.end);
      block.each([&](int thread) {
        const Mine mine(thread);
        mine.load(k, token, count, key_packs[thread]);
        if (of_keys) {
          mine.load(v, token, count, value_packs[thread]);
          mine.each(count, value_packs[thread], [&](int row, float (&x)[Mine::V]) {
            put(shared.rows.rows[row] + mine.feature, x);
          });
        } else {
          mine.each(count, key_packs[thread], [&](int row, float (&x)[Mine::V]) {
            EVIT_UNROLLED
            for (int i = 0; i < Mine::V; ++i) x[i] = relu(x[i]);
            put(shared.rows.rows[row] + mine.feature, x);
          });
        }
      });
      P::template product<true>(block, shared.rows, matrix, shared.matrix, shared.products);
      block.apart([&](int thread) {
        const Mine mine(thread);
        mine.store(true, to, token, count, [&](int row, float (&x)[Mine::V]) {
          EVIT_UNROLLED
          for (int i = 0; i < Mine::V; ++i) x[i] = shared.products.rows[row][mine.feature + i];
          if (!of_keys) return;
          const auto& pack = key_packs[thread][(row - mine.first) / Mine::kRowsAtOnce];
          EVIT_UNROLLED
          for (int i = 0; i < Mine::V; ++i) {
            const float key = read(pack.values + i);
            x[i] = key <= 0.0f ? 0.0f : x[i] + shared.vector[mine.feature + i];
          }
        });
      });
    }
  }
};

template <class S>
Status backward_in_blocks(const ReluLinearAttentionProblem& problem, const float* state,
                          float* workspace, Stream stream) {
  const Chunks p(problem);
  const Role q = role_of(problem, &AttentionSource::q), k = role_of(problem, &AttentionSource::k);
  const Role v = role_of(problem, &AttentionSource::v);
  const Role grad = role_of(problem, &AttentionSource::output);
  const Role grad_q = role_of(problem, &AttentionSource::grad_q);
  const Role grad_k = role_of(problem, &AttentionSource::grad_k);
  const Role grad_v = role_of(problem, &AttentionSource::grad_v);
  return with_width(problem.width, [&](auto width) {
    constexpr int D = width;
    const int64_t elements = elements_of(D);
    float* totals = workspace;
    float* partials = totals + p.batch * p.heads * elements;
    const QueryGradients<S, D> of_queries = {p, q, grad, grad_q, state, partials};
    Status status = for_each_block(p.blocks(), of_queries, stream);
    if (!status.ok()) return status;
    const AddChunks add = {p, elements, partials, totals};
    status = for_each(p.batch * p.heads * elements, add, stream);
    if (!status.ok()) return status;
    const KeyValueGradients<S, D> rest = {p, k, v, grad_k, grad_v, totals};
    return for_each_block(2 * p.blocks(), rest, stream);
  });
}

}  // namespace evit::cuda
