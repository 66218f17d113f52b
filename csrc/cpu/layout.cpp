// Copies between planes and channels-last rows: blocks transposed in registers, in an order that
// keeps both sides in cache and writes whole cache lines.
#include "evit/layout.h"

#include "dispatch.h"
#include "transpose.h"

namespace {

using evit::Status;
using Problem = evit::LayoutProblem;

// Planes this far apart fall into the same few sets of a cache and onto pages of their own: only
// one cache line of channels is worked on at a time, along many positions. With planes closer
// together, all channels of a few positions are, so that rows are read and written from end to end.
constexpr int64_t kFarPlanes = 64 * 1024;  // bytes
constexpr int64_t kFarChannels = 16;
constexpr int64_t kFarPositions = 1024;
constexpr int64_t kNearPositions = 64;
constexpr int64_t kSerialBytes = 64 * 1024;  // less is not worth waking threads

// Vectors are as wide as the machine's shuffles are fast.
template <class T>
constexpr int kBlockLanes =
    sizeof(T) == 2 ? (kVectorBytes == 64 ? 16 : 8) : kVectorBytes / static_cast<int>(sizeof(T));

template <bool First, class A, class B>
struct Pick {
  using type = A;
};
template <class A, class B>
struct Pick<false, A, B> {
  using type = B;
};

// Channels by positions of one clip, seen from both sides.
template <class T, bool ToRows>
struct Tile {
  using Planar = typename Pick<ToRows, const T*, T*>::type;
  using Rows = typename Pick<ToRows, T*, const T*>::type;
  Planar planar;
  int64_t plane;  // elements from channel to channel
  Rows rows;
  int64_t row;  // elements from position to position
  int64_t channels;
  int64_t positions;
};

template <class T, bool ToRows, int L>
void copy_tile(const Tile<T, ToRows>& tile) {
  if constexpr (L < 4) {
    for (int64_t s = 0; s < tile.positions; ++s)
      for (int64_t c = 0; c < tile.channels; ++c)
        if constexpr (ToRows)
          tile.rows[s * tile.row + c] = tile.planar[c * tile.plane + s];
        else
          tile.planar[c * tile.plane + s] = tile.rows[s * tile.row + c];
  } else {
    if (tile.channels < L || tile.positions < L) return copy_tile<T, ToRows, L / 2>(tile);
    // The last block reaches back to where it is whole: some elements are copied twice.
    for (int64_t done = 0; done < tile.positions; done += L) {
      const int64_t s = smaller(done, tile.positions - L);
      for (int64_t next = 0; next < tile.channels; next += L) {
        const int64_t c = smaller(next, tile.channels - L);
        if constexpr (ToRows)
          transpose_block<T, L>(tile.planar + c * tile.plane + s, tile.plane,
                                tile.rows + s * tile.row + c, tile.row);
        else
          transpose_block<T, L>(tile.rows + s * tile.row + c, tile.row,
                                tile.planar + c * tile.plane + s, tile.plane);
      }
    }
  }
}

// The positions of a frame or a clip are one run where both sides step through them evenly.
struct Runs {
  explicit Runs(const Problem& p) : frames(p.size[0]), lines(p.size[1]), length(p.size[2]) {
    if (lines == 1 ||
        (p.planar_strides[3] == length && p.rows_strides[2] == length * p.rows_strides[3])) {
      length *= lines;
      lines = 1;
      if (frames == 1 ||
          (p.planar_strides[2] == length && p.rows_strides[1] == length * p.rows_strides[3])) {
        length *= frames;
        frames = 1;
      }
    }
  }
  int64_t frames, lines, length;
};

template <class T, bool ToRows>
Status copy_as(const Problem& p, typename Pick<ToRows, const void*, void*>::type planar,
               typename Pick<ToRows, void*, const void*>::type rows) {
  const Runs runs(p);
  const int64_t plane = p.planar_strides[1];
  const int64_t size = static_cast<int64_t>(sizeof(T));
  const bool far = plane * size >= kFarPlanes;
  const int64_t step = far ? kFarPositions : kNearPositions;
  const int64_t group = far ? kFarChannels : p.channels;
  const int64_t groups = ceil_div(p.channels, group);
  const int64_t parts = ceil_div(runs.length, step);
  const int64_t tasks = p.batch * groups * runs.frames * runs.lines * parts;
  const int64_t bytes = p.batch * p.channels * p.size[0] * p.size[1] * p.size[2] * size;
  const int threads = bytes > kSerialBytes ? p.num_threads : 1;

#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t part = task % parts;
    const int64_t line = task / parts % runs.lines;
    const int64_t frame = task / (parts * runs.lines) % runs.frames;
    const int64_t c = task / (parts * runs.lines * runs.frames) % groups * group;
    const int64_t n = task / (parts * runs.lines * runs.frames * groups);
    Tile<T, ToRows> tile;
    tile.plane = plane;
    tile.row = p.rows_strides[3];
    tile.planar = static_cast<decltype(tile.planar)>(planar) + n * p.planar_strides[0] + c * plane +
                  frame * p.planar_strides[2] + line * p.planar_strides[3] + part * step;
    tile.rows = static_cast<decltype(tile.rows)>(rows) + n * p.rows_strides[0] + c +
                frame * p.rows_strides[1] + line * p.rows_strides[2] + part * step * tile.row;
    tile.channels = smaller(group, p.channels - c);
    tile.positions = smaller(step, runs.length - part * step);
    copy_tile<T, ToRows, kBlockLanes<T>>(tile);
  }
  return {};
}

template <bool ToRows>
Status copy(const Problem& p, typename Pick<ToRows, const void*, void*>::type planar,
            typename Pick<ToRows, void*, const void*>::type rows) {
  switch (p.element_size) {
    case 2:
      return copy_as<uint16_t, ToRows>(p, planar, rows);
    case 4:
      return copy_as<uint32_t, ToRows>(p, planar, rows);
    case 8:
      return copy_as<uint64_t, ToRows>(p, planar, rows);
  }
  return {"elements to copy must have 2, 4 or 8 bytes"};
}

}  // namespace

namespace evit::cpu::EVIT_ISA {

Status planar_to_rows(const Problem& p, const void* planar, void* rows) {
  return copy<true>(p, planar, rows);
}

Status rows_to_planar(const Problem& p, const void* rows, void* planar) {
  return copy<false>(p, planar, rows);
}

}  // namespace evit::cpu::EVIT_ISA

EVIT_ENTRY(Status, planar_to_rows, (const LayoutProblem& problem, const void* planar, void* rows),
           (problem, planar, rows))

EVIT_ENTRY(Status, rows_to_planar, (const LayoutProblem& problem, const void* rows, void* planar),
           (problem, rows, planar))
