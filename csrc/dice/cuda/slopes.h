// The coefficients of the gradient in the type that is computed in, times the upstream gradient.
#pragma once
#include "pixel.h"

namespace segunc::cuda {

inline int64_t slopes_of(const DiceParams& p) {
  return (p.by_image ? p.map.images : 1) * kDiceSlopes * p.map.classes;
}

// Bytes of scratch memory, whose multiple of 16 what follows is aligned to.
inline int64_t slopes_bytes(const DiceParams& p) {
  const int64_t bytes = slopes_of(p) * (p.dtype == Dtype::f64 ? 8 : 4);
  return divide_up(bytes, 16) * 16;
}

// The factor of the pixels' cross-entropies.
template <class A>
SEGUNC_DEVICE A cross_entropy_factor(const DiceParams& p) {
  return A(*p.factor * double(*static_cast<const A*>(p.upstream)));
}

// Puts them into scratch memory.
void launch_slopes(const DiceParams& params, Stream stream);

}  // namespace segunc::cuda
