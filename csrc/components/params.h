// What the component kernels read and write. N images of D x H x W pixels; D is 1 in two
// dimensions.
//
// A component is a maximal connected set of pixels of one label. Pixels of the ignored label belong
// to none.
#pragma once
#include <cstdint>

#include "../common/element.h"

namespace segunc {

struct LabelMap {
  const void* labels;  // [N, D, H, W] contiguous; compared, never computed with
  int label_bytes;     // 1, 2, 4 or 8
  int64_t images, depth, height, width;
  bool diagonal;    // 8 or 26 neighbours instead of 4 or 6
  bool ignores;     // whether there is an ignored label
  int64_t ignored;  // it, sign-extended or zero-extended: its low label_bytes count
};

// Labels to ids: 1..K in the raster order of each component's first pixel, 0 where ignored.
struct ComponentsParams {
  LabelMap map;
  int32_t* components;  // [N, D, H, W]
  int64_t* counts;      // [N]: K of each image
  void* scratch;        // of as many bytes as the backend asks for
};

// Values to their means over each pixel's component, 0 where ignored.
struct ComponentMeanParams {
  LabelMap map;
  const void* values;  // [N, D, H, W] contiguous, of dtype
  void* means;         // likewise
  Dtype dtype;
  double bound;   // the values' largest magnitude, as far as it is known; else 0
  void* scratch;  // of as many bytes as the backend asks for
};

}  // namespace segunc
