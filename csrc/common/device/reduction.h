// How losses per pixel become one number on a GPU, for the families of losses. Nothing here
// synchronises or allocates.
#pragma once
#include "../reduction.h"
#include "device.h"

namespace segunc::cuda {

// normalizer[0] = sum of the valid pixels' class weights. params.partial holds params.partials
// doubles, which are normalizer_partials(params).
int64_t normalizer_partials(const NormalizerParams& params);
void normalizer(const NormalizerParams& params, double* normalizer, device::Stream stream);

// loss[0] = sum of partial[0 .. count) / normalizer[0] (no division if it is null); loss is of
// float, or double for Dtype::f64. No partials at all: the sum is 0.
void finish_loss(const double* partial, int64_t count, const double* normalizer, void* loss,
                 Dtype dtype, device::Stream stream);

}  // namespace segunc::cuda
