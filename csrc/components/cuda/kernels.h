// Connected components, and means over them, on a GPU. Nothing here synchronises, allocates or
// clears memory: scratch may hold anything, and calls may be captured in a CUDA graph.
//
// An image has fewer than 2^31 pixels (std::runtime_error); a batch may have more.
#pragma once
#include "../../common/device/device.h"
#include "../params.h"

namespace segunc::cuda {

// Bytes of params.scratch, which is aligned to 16; the pointers in params are not looked at.
int64_t components_scratch_bytes(const ComponentsParams& params);
void connected_components(const ComponentsParams& params, device::Stream stream);

// Values are added in 64-bit fixed point, so that no order of the sums shows in the result. A mean
// is within bound * pixels * 2^-60 of the exact one, or within bound * 2^-44 where that is more and
// the values are not float64, plus its rounding to float64 and to dtype: bound is the largest
// magnitude of the image's values where params.bound is 0 or infinite, pixels those of the image.
// float64 values are therefore good to about 12 digits of bound.
//
// The mean of a component with a value that is NaN, infinite, or of more than four times a given
// bound is NaN. Values of at most twice the bound are always added; those of ignored pixels never
// play a part.
int64_t component_mean_scratch_bytes(const ComponentMeanParams& params);
void component_mean(const ComponentMeanParams& params, device::Stream stream);

}  // namespace segunc::cuda
