// How the CPU kernel deals work out, and what of the gradient waits in scratch memory.
#pragma once
#include <algorithm>

#include "../params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {

// A unit has the target rows whose lower neighbours are a band of source rows in one source plane.
// Its gradients belong to the rows of the band, to the row below it, which the next band shares,
// and in volumes to the same rows of the next plane. What is shared waits in scratch memory and is
// added in a fixed order.
struct Bands {
  int64_t images, depth, height;  // source planes and rows of an image
  int64_t row;                    // C * width, the elements of a source row
  int64_t rows, per_plane;        // source rows of a band, bands of a plane
  bool buffered;                  // whether even a band's own rows cannot gather in the gradient

  explicit Bands(const CrossEntropyParams& p)
      : images(p.map.images),
        depth(p.map.size[0]),
        height(p.map.size[1]),
        row(p.map.classes * p.map.size[2]) {
    // Enough units for many threads; a band enlarges one row more than it has.
    constexpr int64_t kUnits = 32, kMostRows = 8;
    rows = std::clamp<int64_t>(images * depth * height / kUnits, 1, kMostRows);
    per_plane = (height + rows - 1) / rows;
    const bool rounded = p.dtype == Dtype::bf16 || p.dtype == Dtype::f16;
    buffered = rounded || p.grad_map.stride[2] != 1;
  }

  int64_t units() const { return images * depth * per_plane; }
  int64_t planes() const { return depth > 1 ? 2 : 1; }  // that a unit's gradients are in

  // Elements of scratch memory: own rows, rows of the next plane, rows below bands.
  int64_t own_elements() const { return buffered ? images * depth * height * row : 0; }
  int64_t next_elements() const { return depth > 1 ? images * depth * height * row : 0; }
  int64_t below_elements() const { return units() * planes() * row; }
  int64_t scratch_bytes(const CrossEntropyParams& p) const {
    if (!p.grad_input) return 0;
    const int64_t elements = own_elements() + next_elements() + below_elements();
    return elements * int64_t(p.dtype == Dtype::f64 ? sizeof(double) : sizeof(float));
  }
};

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
