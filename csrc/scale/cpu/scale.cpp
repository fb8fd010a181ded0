// data *= factor on a CPU.
#include "../../common/cpu/tile.h"
#include "../params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {

void scale_elements(const ScaleParams& p, int64_t begin, int64_t end) {
  const double factor = p.factor_dtype == Dtype::f64 ? *static_cast<const double*>(p.factor)
                                                     : *static_cast<const float*>(p.factor);
  tiles::with_dtype(p.dtype, [&](auto s) {
    using S = decltype(s);
    using A = accumulate_t<S>;
    S* __restrict data = static_cast<S*>(p.data);
    const A by = A(factor);
    for (int64_t i = begin; i < end; ++i) data[i] = from_accumulate<S>(to_accumulate(data[i]) * by);
  });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
