// The index arithmetic of the CUDA kernels, tried for every small shape: what one direction visits,
// the other visits too, once; splits and launches cover everything once.
#include <cstdio>
#include <cstdlib>
#include <set>
#include <tuple>
#include <vector>

#include "../../csrc/cuda/depthwise_conv3d_index.h"
#include "../../csrc/cuda/depthwise_conv3d_weight_strips.h"
#include "../../csrc/cuda/relu_linear_attention_index.h"

namespace {

using namespace evit;
using namespace evit::cuda;

int64_t checks = 0;

void expect(bool holds, const char* what, const Window& p) {
  ++checks;
  if (holds) return;
  std::printf("%s: in %ld out %ld kernel %ld stride %ld padding %ld dilation %ld clamped %d\n",
              what, long(p.in[0]), long(p.out[0]), long(p.kernel[0]), long(p.stride[0]),
              long(p.padding[0]), long(p.dilation[0]), int(p.clamp_time));
  std::exit(1);
}

// Every pair of an output and a tap reads one input or none; the gradient of that input reads the
// same pair, once.
void check_axis(const Window& p) {
  std::multiset<std::tuple<int64_t, int64_t, int64_t>> forward, backward;
  for (int64_t o = 0; o < p.out[0]; ++o)
    for (int64_t k = 0; k < p.kernel[0]; ++k) {
      const int64_t i = input_of(p, kTime, o, k);
      expect(i >= -1 && i < p.in[0], "an input outside", p);
      if (i < 0) continue;
      forward.insert({o, k, i});
      const int64_t direct = o * p.stride[0] - p.padding[0] + k * p.dilation[0];
      const int64_t nearest = direct < 0 ? 0 : direct >= p.in[0] ? p.in[0] - 1 : direct;
      expect(i == (p.clamp_time ? nearest : direct), "another input", p);
    }
  for (int64_t i = 0; i < p.in[0]; ++i)
    for (int64_t k = 0; k < p.kernel[0]; ++k) {
      const Outputs range = outputs_of(p, kTime, i, k);
      for (int64_t o = range.first; o < range.end; ++o) backward.insert({o, k, i});
    }
  expect(forward == backward, "forward and backward differ", p);
}

void check_axes() {
  for (int64_t in = 1; in <= 9; ++in)
    for (int64_t kernel = 1; kernel <= 7; ++kernel)
      for (int64_t stride = 1; stride <= 4; ++stride)
        for (int64_t padding = 0; padding <= 7; ++padding)
          for (int64_t dilation = 1; dilation <= 3; ++dilation)
            for (int64_t after : {padding, int64_t{0}})  // causal padding has nothing behind
              for (bool clamp : {false, true}) {
                Window p = {};
                p.clamp_time = clamp;
                const int64_t room = in + padding + after - dilation * (kernel - 1) - 1;
                if (room < 0) continue;
                p.in[0] = in;
                p.out[0] = room / stride + 1;
                p.kernel[0] = kernel;
                p.stride[0] = stride;
                p.padding[0] = padding;
                p.dilation[0] = dilation;
                check_axis(p);
              }
}

// Every element of a dense tensor is visited once, at the place where its strides say it is.
void check_elements() {
  for (bool planar : {false, true})
    for (int64_t n = 1; n <= 2; ++n)
      for (int64_t c = 1; c <= 3; ++c)
        for (int64_t t = 1; t <= 3; ++t)
          for (int64_t h = 1; h <= 3; ++h)
            for (int64_t w = 1; w <= 4; ++w) {
              Window p = {};
              p.planar = planar;
              p.batch = n;
              p.channels = c;
              const int64_t size[3] = {t, h, w};
              const Strides strides = strides_of_dense(p, size);
              for (int64_t i = 0; i < n * c * t * h * w; ++i) {
                const Element e = element_at(p, size, i);
                int64_t place = e.n * strides.n + e.c * strides.c;
                for (int axis = 0; axis < 3; ++axis) place += e.at[axis] * strides.at[axis];
                expect(place == i && e.n < n && e.c < c, "an element elsewhere", p);
              }
            }
}

// Counts the places of a strip, in two groups of channels.
void visit(const Strip& s, const Strips& strips, int64_t width, int columns, int channels,
           std::vector<int>& visits) {
  expect(s.row < s.end && s.end <= strips.height && s.column < width, "an empty strip", Window{});
  for (int64_t h = s.row; h < s.end; ++h)
    for (int64_t w = s.column; w < width && w < s.column + columns; ++w)
      ++visits[(((s.n * strips.frames + s.t) * strips.height + h) * width + w) * 2 +
               s.channel / channels];
}

// Strips cover every place of their tensor once.
void check_strips() {
  for (int64_t batch : {1, 2, 7})
    for (int64_t frames : {1, 3, 40})
      for (int64_t height : {1, 2, 3, 7, 16, 17, 33})
        for (int64_t width = 1; width <= 9; ++width)
          for (int channels : {1, 4, 8})
            for (int columns : {1, 2, 4}) {
              Window p = {};
              p.batch = batch;
              p.channels = 2 * channels;
              const Strips strips(p, frames, height, width, channels, columns);
              for (bool planar : {false, true}) {
                std::vector<int> visits(batch * frames * height * width * 2);
                for (int64_t i = 0; i < strips.count(); ++i)
                  visit(strip_at(strips, channels, columns, planar, i), strips, width, columns,
                        channels, visits);
                for (int count : visits) expect(count == 1, "an output not once", p);
              }
            }
}

// The splits of the weight gradient cover every output once, too.
void check_weight_splits() {
  for (int64_t batch : {1, 3})
    for (int64_t frames : {1, 2, 40})
      for (int64_t height : {1, 2, 7, 33})
        for (int64_t width = 1; width <= 9; ++width)
          for (int64_t channels : {8, 1024}) {
            for (bool planar : {false, true}) {
              Window p = {};
              p.planar = planar;
              p.batch = batch;
              p.channels = channels;
              p.kernel[0] = 3;
              p.out[0] = frames;
              p.out[1] = height;
              p.out[2] = width;
              const int group = planar ? 1 : 4;
              const WeightSplits parts(p, group, planar ? kBlockThreads : 1);
              expect(parts.groups * group == channels, "channels left out", p);
              expect(parts.first(0) == 0 && parts.first(parts.splits) == parts.units,
                     "strips left out", p);
              std::vector<int> visits(batch * frames * height * width * 2);
              for (int64_t split = 0; split < parts.splits; ++split) {
                expect(parts.first(split) < parts.first(split + 1), "an empty split", p);
                for (int64_t unit = parts.first(split); unit < parts.first(split + 1); ++unit)
                  visit(parts.at(unit), parts.strips, width, kWeightColumns, 1, visits);
              }
              for (size_t i = 0; i < visits.size(); i += 2)
                expect(visits[i] == 1, "an output not once", p);
              expect(AddSplits::left(parts.splits) <= 32, "many sums are left", p);
            }
          }
}

void check_splits() {
  for (int64_t rows = 1; rows <= 5000; rows += rows < 100 ? 1 : 37) {
    Window p = {};
    p.batch = 1;
    p.out[0] = 1;
    p.out[1] = rows;
    expect(first_row(p, 0) == 0 && first_row(p, splits_of(p)) == rows, "rows left out", p);
    for (int64_t split = 0; split < splits_of(p); ++split)
      expect(first_row(p, split) < first_row(p, split + 1), "an empty split", p);
  }
  AttentionSource sources[2] = {};
  sources[0].heads = 3;
  sources[1].heads = 2;
  for (int64_t tokens = 1; tokens <= 40000; tokens += tokens < 600 ? 1 : 977) {
    const ReluLinearAttentionProblem problem = {DType::kFloat32, 1, 2, tokens, 5, 0, 2, sources};
    const Heads p(problem, 2, 3);
    Window none = {};
    none.in[0] = tokens;
    expect(first_token(p, 0) == 0 && first_token(p, p.splits) == tokens, "tokens left out", none);
    for (int64_t split = 0; split < p.splits; ++split)
      expect(first_token(p, split) < first_token(p, split + 1), "an empty split", none);
  }
}

void check_attention() {
  AttentionSource sources[2] = {};
  sources[0].heads = 3;
  sources[1].heads = 2;
  const ReluLinearAttentionProblem problem = {DType::kFloat32, 1, 2, 600, 5, 0, 2, sources};
  Window none = {};
  std::set<int64_t> everywhere;
  int64_t before = 0;
  for (const auto& source : sources) {
    const Heads p(problem, source.heads, before);
    before += source.heads;
    for (int64_t i = 0; i < rows_of(p); ++i)
      expect(index_of(p, row_at(p, i)) == i, "a row elsewhere", none);
    for (int64_t i = 0; i < entries_of(p); ++i)
      expect(everywhere.insert(of_all_heads(p, i)).second, "an entry twice", none);
    std::set<std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>> entries;
    for (int64_t i = 0; i < p.splits * entries_of(p); ++i) {
      const Entry e = entry_at(p, i);
      expect(entries.insert({e.row.batch, e.row.head, e.row.token, e.i, e.j}).second,
             "an entry of a split twice", none);
      expect(e.i <= p.width && e.j < p.width, "an entry outside", none);
    }
  }
  const Heads all(problem, 5, 0);
  expect(int64_t(everywhere.size()) == entries_of(all), "entries left out", none);
}

// Chunks cover every token of every head once, and every head is found in its source.
void check_chunks() {
  float memory[2] = {};
  AttentionSource sources[3] = {};
  for (int64_t s = 0; s < 3; ++s) {
    sources[s].heads = s + 1;
    sources[s].k = {memory, 100000000, 10000000 * (s + 1), 1};
  }
  Role keys = {};
  for (int s = 0; s < 3; ++s) keys.views[s] = sources[s].k;
  Window none = {};
  for (int64_t count = 1; count <= 3; ++count)
    for (int64_t batch : {1, 2, 70})
      for (int64_t tokens = 1; tokens <= 60000; tokens += tokens < 700 ? 7 : 4999) {
        none.in[0] = tokens;
        const ReluLinearAttentionProblem problem = {DType::kFloat32, 1,      batch, tokens, 16, 0,
                                                    count,           sources};
        const Chunks p(problem);
        expect(p.heads == count * (count + 1) / 2, "heads left out", none);
        expect(p.size % kChunkMultiple == 0, "a chunk that is no multiple", none);
        std::vector<int64_t> reached(batch * p.heads, 0);
        for (int64_t i = 0; i < p.blocks(); ++i) {
          const Chunk at = chunk_at(p, i);
          const int64_t chunk = at.first / p.size;
          expect(block_of(p, at.batch, chunk, at.head) == i, "a block elsewhere", none);
          int64_t& token = reached[at.batch * p.heads + at.head];
          expect(at.first == token && at.end > token && at.end <= tokens, "a gap", none);
          token = at.end;
          const int64_t source = at.head < 1 ? 0 : at.head < 3 ? 1 : 2;
          const int64_t within = at.head - source * (source + 1) / 2;
          const auto found = tokens_of<float>(p, keys, at);
          const int64_t wanted = at.batch * 100000000 + within * 10000000 * (source + 1);
          const int64_t offset =
              (reinterpret_cast<intptr_t>(found.data) - reinterpret_cast<intptr_t>(memory)) /
              int64_t{sizeof(float)};
          expect(offset == wanted && is_wanted(p, keys, at), "a head elsewhere", none);
        }
        for (int64_t token : reached) expect(token == tokens, "tokens left out", none);
      }
}

void check_grids() {
  Window none = {};
  const int64_t most = kMaxBlocks * kBlockThreads;
  for (int64_t items : {int64_t{1}, int64_t{255}, int64_t{256}, int64_t{257}, int64_t{1} << 31,
                        int64_t{1} << 33, most - 1, most, most + 1, most * 3 + 5}) {
    const Grid grid(items);
    expect(grid.blocks >= 1 && grid.blocks <= kMaxBlocks, "a grid of another size", none);
    expect(items > most || grid.threads() >= items, "items without a thread", none);
    expect(grid.threads() - items < kBlockThreads, "blocks without an item", none);
  }
}

}  // namespace

int main() {
  check_axes();
  check_elements();
  check_strips();
  check_weight_splits();
  check_splits();
  check_attention();
  check_chunks();
  check_grids();
  std::printf("%ld checks\n", long(checks));
  return 0;
}
