// How the CPU kernel of interpolated logits deals work out, and what of the gradient waits in
// scratch memory.
#pragma once
#include <algorithm>

#include "../../common/integer.h"
#include "../params.h"

namespace segunc {

// A unit has the target rows whose lower neighbours are a band of source rows in one source plane.
// Its gradients belong to the rows of the band, to the row below it, which the next band shares,
// and in volumes to the same rows of the next plane. What is shared waits in scratch memory and is
// added in a fixed order.
struct Bands {
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
SEGUNC_HD Bands make_bands(const CrossEntropyParams& p) {
  // Enough units for many threads; a band enlarges one row more than it has.
  constexpr int64_t kUnits = 32, kMostRows = 8;
  Bands bands{};
  bands.images = p.map.images;
  bands.depth = p.map.size[0];
  bands.height = p.map.size[1];
  bands.row = p.map.classes * p.map.size[2];
  const int64_t source_rows = bands.images * bands.depth * bands.height;
  bands.rows = std::clamp<int64_t>(source_rows / kUnits, 1, kMostRows);
  bands.per_plane = divide_up(bands.height, bands.rows);
  bands.units = bands.images * bands.depth * bands.per_plane;
  bands.planes = bands.depth > 1 ? 2 : 1;
  const bool rounded = p.dtype == Dtype::bf16 || p.dtype == Dtype::f16;
  bands.buffered = rounded || p.grad_map.stride[2] != 1;
  if (!p.grad_input) return bands;
  bands.own_elements = bands.buffered ? source_rows * bands.row : 0;
  bands.next_elements = bands.depth > 1 ? source_rows * bands.row : 0;
  bands.below_elements = bands.units * bands.planes * bands.row;
  bands.scratch_bytes = (bands.own_elements + bands.next_elements + bands.below_elements) *
                        int64_t(p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float));
  return bands;
}
}  // namespace SEGUNC_VARIANT

}  // namespace segunc
