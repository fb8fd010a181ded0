// Integers on hosts and devices.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {

SEGUNC_HD constexpr int64_t divide_up(int64_t n, int64_t divisor) {
  return (n + divisor - 1) / divisor;
}

SEGUNC_HD int smaller(int a, int b) { return a < b ? a : b; }

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
