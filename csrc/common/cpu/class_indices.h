// Class indices that are none. Kernels leave such pixels out and go on; what is told in the end is
// the lowest of them.
#pragma once
#include <cstdint>

#include "../host_device.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace tiles {

// *lowest: so far, of all threads.
inline void record_lowest(int64_t pixel, int64_t* lowest) {
  int64_t seen = __atomic_load_n(lowest, __ATOMIC_RELAXED);
  while (pixel < seen && !__atomic_compare_exchange_n(lowest, &seen, pixel, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
}

// Of n pixels from `at` on, of which at least one has an index of Y that is neither a class nor
// ignored. bad: as *lowest.
template <class Y>
void record_bad_class(const void* indices, int64_t at, int n, int64_t classes, int64_t ignored,
                      int64_t* bad) {
  const Y* index = static_cast<const Y*>(indices) + at;
  for (int j = 0; j < n; ++j) {
    const int64_t y = int64_t(index[j]);
    if (y != ignored && (y < 0 || y >= classes)) return record_lowest(at + j, bad);
  }
}

}  // namespace tiles
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
