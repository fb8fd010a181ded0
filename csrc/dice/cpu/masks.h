// Masks of pixels that count: all bits where they do, else 0.
#pragma once
#include "../../common/cpu/pack.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace dice {

using namespace tiles;

// Clears the numbers whose mask is 0, NaN too: these must not survive at ignored pixels.
SEGUNC_HD float keep(int32_t mask, float v) { return bit_cast<float>(bit_cast<int32_t>(v) & mask); }
SEGUNC_HD double keep(int32_t mask, double v) {
  return bit_cast<double>(bit_cast<int64_t>(v) & int64_t(mask));
}
template <class A>
SEGUNC_HD Pack<A> keep_pack(const int32_t* mask, Pack<A> v) {
  if constexpr (kLanes<A> > 1)
    return bit_cast<Pack<A>>(bit_cast<IndexPack<A>>(v) & load_indices<A>(mask));
  else
    return keep(*mask, v);
}

}  // namespace dice
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
