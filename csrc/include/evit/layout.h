// Copies between the two memory formats of a clip: planes (N, C, T, H, W), and channels-last rows
// (N, T, H, W, C). Bits are copied, whatever they mean.
#pragma once

#include "evit/common.h"

namespace evit {

struct LayoutProblem {
  int32_t element_size;  // 2, 4 or 8 bytes
  int32_t num_threads;
  int64_t batch;
  int64_t channels;
  int64_t size[3];            // T, H, W
  int64_t planar_strides[4];  // of n, c, t, h in elements; columns are neighbours
  int64_t rows_strides[4];    // of n, t, h, w in elements; channels are neighbours
};

namespace cpu {

// The source may repeat elements (strides of zero); the destination may not.
Status planar_to_rows(const LayoutProblem& problem, const void* planar, void* rows);
Status rows_to_planar(const LayoutProblem& problem, const void* rows, void* planar);

}  // namespace cpu
}  // namespace evit
