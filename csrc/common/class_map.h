// How a tensor of N images, C classes and P pixels lies in memory.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace segunc {

// The traversals that kernels have. planar: the pixels of a class are contiguous.
// channels_last: the classes of a pixel are contiguous and pixels follow each other.
// strided: anything else.
enum class Layout : int { planar, channels_last, strided };

// Strides are in elements. The pixel index runs over three spatial axes, the last one fastest;
// unused axes come first and have size 1. In a planar or channels_last map the spatial axes are
// merged into the last.
struct ClassMap {
  int64_t images, classes, pixels;  // N, C, P
  int64_t image_stride, class_stride;
  int64_t size[3], stride[3];  // of the spatial axes
  Layout layout;
};

// Logits that kernels interpolate on the fly: results have other pixels than the logits. Then the
// spatial axes of the logits' map are not merged: its size[] and stride[] are those of depth,
// height and width in any layout (depth 1 in 2-D).
struct Interpolation {
  bool used;        // else the pixels are the same
  int64_t size[3];  // of the results: depth, height, width (depth 1 in 2-D)
  bool align_corners;
};

inline namespace SEGUNC_VARIANT {
SEGUNC_HD bool is_empty(const ClassMap& map) {
  return map.images == 0 || map.classes == 0 || map.pixels == 0;
}

// Pixels of an image of the results.
SEGUNC_HD int64_t result_pixels(const ClassMap& map, const Interpolation& interpolation) {
  const int64_t* size = interpolation.size;
  return interpolation.used ? size[0] * size[1] * size[2] : map.pixels;
}

SEGUNC_HD int64_t pixel_offset(const ClassMap& map, int64_t pixel) {
  const int64_t row = pixel / map.size[2];
  return row / map.size[1] * map.stride[0] + row % map.size[1] * map.stride[1] +
         pixel % map.size[2] * map.stride[2];
}
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
