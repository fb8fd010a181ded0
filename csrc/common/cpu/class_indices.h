// Class indices that are none. Kernels leave such pixels out and go on; what is told in the end is
// the lowest of them.
#pragma once
#include <cstdint>

#include "../element.h"

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

template <class A>
SEGUNC_HD A where_valid(int32_t valid, A v) {
  return valid ? v : A(0);
}

// NaN at an ignored pixel must not survive, so the bits are cleared instead of multiplied.
SEGUNC_HD float clear_unless(int32_t valid, float v) {
  return bit_cast<float>(bit_cast<int32_t>(v) & valid);
}
SEGUNC_HD double clear_unless(int32_t valid, double v) {
  return bit_cast<double>(bit_cast<int64_t>(v) & int64_t(valid));
}

// Labels of n pixels from `at` on, 0 where ignored, and all bits of valid where a pixel counts.
// Returns whether every one that does has a class.
template <class Y>
SEGUNC_HD bool read_labels(const void* targets, int64_t at, int n, int64_t classes, int64_t ignored,
                           int32_t* __restrict label, int32_t* __restrict valid) {
  const Y* __restrict target = static_cast<const Y*>(targets) + at;
  int32_t outside = 0;
  for (int j = 0; j < n; ++j) {
    const int64_t y = int64_t(target[j]);
    const int32_t counts = -int32_t(y != ignored);
    const int32_t inside = -int32_t(y >= 0 && y < classes);
    outside |= counts & ~inside;
    valid[j] = counts;
    label[j] = int32_t(y) & counts & inside;
  }
  return outside == 0;
}

}  // namespace tiles
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
