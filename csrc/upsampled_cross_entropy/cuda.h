// The kernels of cross-entropy of interpolated logits on a GPU. Nothing here synchronises or
// allocates.
#pragma once
#include "../common/device/device.h"
#include "params.h"

namespace segunc::cuda {

// Loss and gradients, as far as their pointers are set. params.partial holds
// upsampled_cross_entropy_partials(params) doubles, params.scratch is
// upsampled_cross_entropy_scratch_bytes(params) long, none without grad_input, and aligned to 16.
int64_t upsampled_cross_entropy_partials(const UpsampledCrossEntropyParams& params);
int64_t upsampled_cross_entropy_scratch_bytes(const UpsampledCrossEntropyParams& params);
void upsampled_cross_entropy(const UpsampledCrossEntropyParams& params, device::Stream stream);

}  // namespace segunc::cuda
