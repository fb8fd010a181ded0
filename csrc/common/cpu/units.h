// How pixels are dealt to threads.
#pragma once
#include <cstdint>

#include "../host_device.h"

namespace segunc {

// Pixels that one unit of work covers. Sums are made per unit, in the order of units, so results
// depend neither on the number of threads nor on which of them did what.
constexpr int64_t kUnitPixels = 2048;

inline namespace SEGUNC_VARIANT {
SEGUNC_HD int64_t units_of(int64_t pixels) { return (pixels + kUnitPixels - 1) / kUnitPixels; }
}  // namespace SEGUNC_VARIANT

}  // namespace segunc
