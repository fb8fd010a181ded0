// In-place scaling as torch sees it. A template over the backend.
#pragma once
#include "../common/tensors.h"
#include "params.h"

namespace segunc {

template <class Backend>
void scale(const Tensor& data, const Tensor& factor) {
  const Backend backend(data);
  // Any dense order will do: every element is treated alike.
  ScaleParams p{data.mutable_data_ptr(), factor.const_data_ptr(), data.numel(),
                dtype_of("self", data), dtype_of("factor", factor)};
  if (factor.numel() != 1 || (p.factor_dtype != Dtype::f32 && p.factor_dtype != Dtype::f64))
    fail("factor: expected one float32 or float64 element");
  if (p.count) backend.scale(p);
}

}  // namespace segunc
