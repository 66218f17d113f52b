// How a batch-normalised tensor is cut: into sheets of rows, rows into blocks, blocks into parts.
//
// A row holds as many tokens as fill whole vectors, so that 8 or 24 channels, and single planes of
// a planar tensor, go through the same loops as 512. Everything follows from the shape alone.
#pragma once

#include "buffer.h"
#include "evit/batch_norm_activation.h"
#include "simd.h"

namespace {

constexpr int64_t kBlockRows = 64;  // summed in the accumulation type before doubles take over
constexpr int64_t kMaxParts = 64;   // sums of a channel that are kept apart, for threads to share
constexpr int64_t kPartBytes = 8 << 20;

enum class Use { kSums, kElements };

class Layout {
 public:
  Layout(const evit::BatchNormActivationProblem& p, int64_t lanes, Use use)
      : channels_(p.channels) {
    const int64_t positions = p.size[0] * p.size[1] * p.size[2];
    values_ = p.batch * positions;
    if (p.planar) {
      sheets_ = p.batch * p.channels;
      columns_ = 1;
      rows_ = positions;
    } else {
      columns_ = p.channels;
      collapse(p);
    }
    if (p.planar || (runs_ == 1 && (rows_ == 1 || row_stride_ == p.channels))) {
      fill_rows(rows_, lanes, use);
    } else {
      width_ = columns_;
      supported_ = columns_ % lanes == 0;
    }
    blocks_per_run_ = ceil_div(rows_, kBlockRows);
    blocks_ = runs_ * blocks_per_run_;
    const int64_t affordable = kPartBytes / (2 * static_cast<int64_t>(sizeof(double)) * channels_);
    const int64_t wanted = smaller(ceil_div(kMaxParts, sheets_), larger(1, affordable));
    splits_ = smaller(blocks_, wanted);
  }

  bool supported() const { return supported_; }
  int64_t values() const { return values_; }  // per channel
  int64_t sheets() const { return sheets_; }
  int64_t columns() const { return columns_; }  // channels of a sheet: all, or one where planar
  int64_t width() const { return width_; }      // elements of a row, a multiple of the lanes
  int64_t copies() const { return width_ / columns_; }  // tokens of a row
  int64_t rows() const { return runs_ * rows_; }
  int64_t leftover() const { return leftover_; }  // tokens of a sheet after its last whole row
  int64_t blocks() const { return blocks_; }
  int64_t row_stride() const { return row_stride_; }

  int64_t first_channel(int64_t sheet) const { return sheet % (channels_ / columns_); }
  int64_t block_rows(int64_t block) const {
    return smaller(kBlockRows, rows_ - block % blocks_per_run_ * kBlockRows);
  }
  // Where a block starts in the input, and in dense tensors of its shape.
  int64_t input_offset(int64_t sheet, int64_t block) const {
    int64_t run = block / blocks_per_run_;
    int64_t offset = sheet * sheet_elements() + block % blocks_per_run_ * kBlockRows * row_stride_;
    for (int i = 0; i < outer_; ++i) {
      offset += run % outer_size_[i] * outer_stride_[i];
      run /= outer_size_[i];
    }
    return offset;
  }
  int64_t dense_offset(int64_t sheet, int64_t block) const {
    const int64_t row = block / blocks_per_run_ * rows_ + block % blocks_per_run_ * kBlockRows;
    return sheet * sheet_elements() + row * width_;
  }
  int64_t leftover_offset(int64_t sheet) const {
    return sheet * sheet_elements() + rows() * width_;
  }

  // Sums are kept apart by part: for each sheet its splits, then its leftover tokens. Parts of
  // sheets that hold the same channels stand one below the other, as rows of all channels.
  int64_t sheet_parts() const { return splits_ + (leftover_ > 0 ? 1 : 0); }
  int64_t parts() const { return sheets_ / (channels_ / columns_) * sheet_parts(); }
  int64_t tasks() const { return sheets_ * sheet_parts(); }
  bool is_leftover(int64_t part) const { return part % sheet_parts() == splits_; }
  int64_t first_block(int64_t part) const { return part % sheet_parts() * blocks_ / splits_; }
  int64_t last_block(int64_t part) const { return (part % sheet_parts() + 1) * blocks_ / splits_; }
  int64_t part_offset(int64_t task) const {
    const int64_t sheet = task / sheet_parts();
    const int64_t sheets_a_batch = channels_ / columns_;
    return (sheet / sheets_a_batch * sheet_parts() + task % sheet_parts()) * channels_ +
           first_channel(sheet);
  }
  int64_t part_values(int64_t part) const {
    if (is_leftover(part)) return leftover_;
    int64_t count = 0;
    for (int64_t b = first_block(part); b < last_block(part); ++b) count += block_rows(b);
    return count * copies();
  }

 private:
  int64_t sheet_elements() const { return (rows() * copies() + leftover_) * columns_; }

  // Axes that follow each other in memory become one; the innermost is that of the rows.
  void collapse(const evit::BatchNormActivationProblem& p) {
    const int64_t size[4] = {p.batch, p.size[0], p.size[1], p.size[2]};
    rows_ = 1;
    row_stride_ = p.channels;
    for (int axis = 3; axis >= 0; --axis) {
      const int64_t stride = p.in_strides[axis];
      if (size[axis] == 1) continue;
      if (rows_ == 1) {
        rows_ = size[axis];
        row_stride_ = stride;
      } else if (outer_ == 0 && stride == rows_ * row_stride_) {
        rows_ *= size[axis];
      } else {
        outer_size_[outer_] = size[axis];
        outer_stride_[outer_++] = stride;
        runs_ *= size[axis];
      }
    }
  }

  // Rows of tokens that follow each other: whole vectors, and at least four of them, which loops
  // take at a time. Sums of a short sheet use shorter rows, as tokens left over cost them more.
  void fill_rows(int64_t tokens, int64_t lanes, Use use) {
    const bool short_rows = use == Use::kSums && tokens * columns_ < 256 * lanes;
    const int64_t least = short_rows ? lanes : 4 * lanes;
    int64_t copies = 1;
    while (copies * columns_ % lanes != 0 || copies * columns_ < least) ++copies;
    rows_ = tokens / copies;
    leftover_ = tokens % copies;
    width_ = row_stride_ = copies * columns_;
  }

  int64_t channels_;
  int64_t values_ = 0;
  int64_t sheets_ = 1;
  int64_t columns_ = 1;
  int64_t rows_ = 1;  // of a run
  int64_t row_stride_ = 1;
  int64_t width_ = 1;
  int64_t leftover_ = 0;
  int64_t runs_ = 1;
  int outer_ = 0;
  int64_t outer_size_[3] = {};
  int64_t outer_stride_[3] = {};
  int64_t blocks_per_run_ = 1;
  int64_t blocks_ = 1;
  int64_t splits_ = 1;
  bool supported_ = true;
};

}  // namespace
