// The coefficients of the gradient in the type that is computed in, times the upstream gradient.
#pragma once
#include "policy.h"

namespace segunc::cuda {

inline int64_t slopes_of(const OverlapParams& p) {
  return (p.by_image ? p.map.images : 1) * kDiceSlopes * p.map.classes;
}

// Bytes of scratch memory, whose multiple of 16 what follows is aligned to.
inline int64_t slopes_bytes(const OverlapParams& p) {
  const int64_t bytes = slopes_of(p) * (p.dtype == Dtype::f64 ? 8 : 4);
  return divide_up(bytes, 16) * 16;
}

// The factor of the pixels' cross-entropies.
template <class A>
SEGUNC_DEVICE A cross_entropy_factor(const OverlapParams& p) {
  return A(*p.factor * double(*static_cast<const A*>(p.upstream)));
}

// The coefficients of an image, times the upstream gradient.
template <class A>
struct DiceSlopes {
  const A* by_predicted;  // [C]
  const A* by_common;     // [C]

  SEGUNC_DEVICE DiceSlopes(const OverlapParams& p, const A* slopes, int64_t image)
      : by_predicted(slopes +
                     ((p.by_image ? image : 0) * kDiceSlopes + kByPredicted) * p.map.classes),
        by_common(slopes + ((p.by_image ? image : 0) * kDiceSlopes + kByCommon) * p.map.classes) {}
};

// Puts them into scratch memory.
void launch_slopes(const OverlapParams& params, Stream stream);

}  // namespace segunc::cuda
