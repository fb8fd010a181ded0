// How an image's rows are dealt to threads: in units of whole rows, so that no two units share a
// sum of a row.
#pragma once
#include "../../common/cpu/units.h"
#include "../params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {

// Of stored logits. Those of interpolated ones are bands.
SEGUNC_HD int64_t rows_of_unit(const BlocksParams& p) {
  return std::max<int64_t>(kUnitPixels / p.columns.size, 1);
}

SEGUNC_HD int64_t row_units(const BlocksParams& p) {
  if (p.interpolation.used) return ResultBands(p.map, p.interpolation).units();
  return p.map.images * divide_up(p.rows.size, rows_of_unit(p));
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
