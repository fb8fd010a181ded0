// The counting kernels on a GPU. Nothing here synchronises or allocates; tables are added to by
// integer atomics, so they are the same for every order.
#pragma once
#include "../../common/device/device.h"
#include "../params.h"

namespace segunc::cuda {

void counts(const CountsParams& params, device::Stream stream);
void map_counts(const MapCountsParams& params, device::Stream stream);
void patch_counts(const PatchCountsParams& params, device::Stream stream);
void class_sizes(const ClassSizesParams& params, device::Stream stream);

}  // namespace segunc::cuda
