// data *= factor, elementwise and in place; nothing is touched where factor is 1.
#pragma once
#include <cstdint>

#include "../common/element.h"

namespace segunc {

struct ScaleParams {
  void* data;          // [count] of dtype, contiguous
  const void* factor;  // [1] of factor_dtype: f32 or f64
  int64_t count;
  Dtype dtype, factor_dtype;
};

}  // namespace segunc
