// How the gradient of interpolated logits is dealt out on a CPU, and what of it waits in scratch
// memory.
#pragma once
#include <algorithm>

#include "../class_map.h"
#include "../element.h"
#include "../integer.h"

namespace segunc {

// Logits of which a kernel makes the gradient from pixels that interpolate them.
struct InterpolatedLogits {
  ClassMap map, grad_map;
  Interpolation interpolation;
  Dtype dtype;
  const void* input;  // [N, C, *source] of dtype, laid out as map
  void* grad_input;   // the same as grad_map, or null
  void* scratch;      // as many bytes as the bands say
};

// A unit has the target rows whose lower neighbours are a band of source rows in one source plane.
// Its gradients belong to the rows of the band, to the row below it, which the next band shares,
// and in volumes to the same rows of the next plane. What is shared waits in scratch memory and is
// added in a fixed order.
struct GradientBands {
  int64_t images, depth, height;  // source planes and rows of an image
  int64_t row;                    // C * width, the elements of a source row
  int64_t rows, per_plane;        // source rows of a band, bands of a plane
  int64_t units;
  int planes;     // that a unit's gradients are in
  bool buffered;  // whether even a band's own rows cannot gather in the gradient
  // Elements of scratch memory: own rows, rows of the next plane, rows below bands.
  int64_t own_elements, next_elements, below_elements;
  int64_t scratch_bytes;
};

inline namespace SEGUNC_VARIANT {
SEGUNC_HD GradientBands make_gradient_bands(const InterpolatedLogits& logits) {
  // Enough units for many threads; a band enlarges one row more than it has.
  constexpr int64_t kUnits = 32, kMostRows = 8;
  GradientBands bands{};
  bands.images = logits.map.images;
  bands.depth = logits.map.size[0];
  bands.height = logits.map.size[1];
  bands.row = logits.map.classes * logits.map.size[2];
  const int64_t source_rows = bands.images * bands.depth * bands.height;
  bands.rows = std::clamp<int64_t>(source_rows / kUnits, 1, kMostRows);
  bands.per_plane = divide_up(bands.height, bands.rows);
  bands.units = bands.images * bands.depth * bands.per_plane;
  bands.planes = bands.depth > 1 ? 2 : 1;
  const bool rounded = logits.dtype == Dtype::bf16 || logits.dtype == Dtype::f16;
  bands.buffered = rounded || logits.grad_map.stride[2] != 1;
  if (!logits.grad_input) return bands;
  bands.own_elements = bands.buffered ? source_rows * bands.row : 0;
  bands.next_elements = bands.depth > 1 ? source_rows * bands.row : 0;
  bands.below_elements = bands.units * bands.planes * bands.row;
  bands.scratch_bytes = (bands.own_elements + bands.next_elements + bands.below_elements) *
                        int64_t(logits.dtype == Dtype::f64 ? sizeof(double) : sizeof(float));
  return bands;
}
}  // namespace SEGUNC_VARIANT

}  // namespace segunc
