// Pixels of each class and image, on a CPU.
#include "../../common/cpu/tile.h"
#include "../params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {

using namespace tiles;

void class_sizes_units(const ClassSizesParams& p, int64_t begin, int64_t end) {
  constexpr int T = 64;
  const auto run_tile = [&](int64_t image, int64_t pixel, auto n) __attribute__((always_inline)) {
    int64_t* const sizes = p.sizes + image * p.classes;
    with_index_type(p.target_type, [&](auto index) __attribute__((always_inline)) {
      const auto* target = static_cast<const decltype(index)*>(p.target) + image * p.pixels + pixel;
      for (int j = 0; j < n; ++j) {
        const int64_t y = int64_t(target[j]);
        if (y != p.ignore_index && y >= 0 && y < p.classes) ++sizes[y];
      }
    });
  };
  for (int64_t unit = begin; unit < end; ++unit) for_tiles<T>(unit, p.pixels, run_tile);
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
