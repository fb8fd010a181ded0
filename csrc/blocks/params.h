// What the kernels of block means read and write. N images, C classes, Q pixels of an image's
// logits; blocks lie in the pixels of the results, which are the same unless logits are
// interpolated.
#pragma once
#include <cstdint>

#include "../common/class_map.h"
#include "../common/element.h"
#include "../math/blocks.h"

namespace segunc {

struct BlocksParams {
  const void* logits;  // [N, C, Q] of dtype, laid out as map
  ClassMap map;        // of unmerged axes: size[] and stride[] are those of height and width
  Interpolation interpolation;
  Dtype dtype;
  BlockAxis rows, columns;
  double factor;    // from the sum of a block's entropies in nats to their mean
  double* partial;  // of cells, as many as the plan says
  void* means;      // [N, rows.count, columns.count] of float, or double for double logits
};

}  // namespace segunc
