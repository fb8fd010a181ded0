// How pixels are dealt to threads.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../class_map.h"
#include "../integer.h"

namespace segunc {

// Pixels that one unit of work covers. Sums are made per unit, in the order of units, so results
// depend neither on the number of threads nor on which of them did what.
constexpr int64_t kUnitPixels = 2048;

inline namespace SEGUNC_VARIANT {
SEGUNC_HD int64_t units_of(int64_t pixels) { return divide_up(pixels, kUnitPixels); }

// Units of interpolated results: a band of rows in those planes that share a lower neighbour among
// the source planes.
struct ResultBands {
  int64_t images, planes, height;  // source planes of an image, rows of a result plane
  int64_t rows, per_plane;         // rows of a band, bands of a plane

  ResultBands(const ClassMap& map, const Interpolation& interpolation)
      : images(map.images), planes(map.size[0]), height(interpolation.size[1]) {
    // Enough units for many threads; neighbouring bands enlarge the source rows between them twice.
    constexpr int64_t kUnits = 32, kMostRows = 32;
    rows = std::clamp<int64_t>(images * planes * height / kUnits, 1, kMostRows);
    per_plane = divide_up(height, rows);
  }

  int64_t units() const { return images * planes * per_plane; }

  struct Unit {
    int64_t image, plane, first, end;  // rows [first, end)
  };
  Unit unit(int64_t i) const {
    const int64_t first = i % per_plane * rows;
    return {i / per_plane / planes, i / per_plane % planes, first, std::min(first + rows, height)};
  }
};

SEGUNC_HD int64_t result_units(const ClassMap& map, const Interpolation& interpolation) {
  if (interpolation.used) return ResultBands(map, interpolation).units();
  return map.images * units_of(map.pixels);
}
}  // namespace SEGUNC_VARIANT

}  // namespace segunc
