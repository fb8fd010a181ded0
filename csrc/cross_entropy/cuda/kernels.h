// The cross-entropy kernels on a GPU. Nothing here synchronises or allocates.
#pragma once
#include "../../common/device/device.h"
#include "../../common/reduction.h"
#include "../params.h"

namespace segunc::cuda {

// Loss and gradients, as far as their pointers are set. params.partial holds
// cross_entropy_partials(params) doubles.
int64_t cross_entropy_partials(const CrossEntropyParams& params);
void cross_entropy(const CrossEntropyParams& params, device::Stream stream);

// normalizer[0] = sum of the valid pixels' class weights. params.partial holds
// normalizer_partials(params) doubles.
int64_t normalizer_partials(const NormalizerParams& params);
void normalizer(const NormalizerParams& params, double* normalizer, device::Stream stream);

// loss[0] = sum of partial[0 .. count) / normalizer[0] (no division if it is null); loss is of
// float, or double for Dtype::f64. No partials at all: the sum is 0.
void finish_loss(const double* partial, int64_t count, const double* normalizer, void* loss,
                 Dtype dtype, device::Stream stream);

// ---- interpolated logits ----

// Loss and gradients, as far as their pointers are set. params.partial holds
// cross_entropy_interpolated_partials(params) doubles, params.scratch is
// cross_entropy_interpolated_scratch_bytes(params) long, none without grad_input, and aligned
// to 16.
int64_t cross_entropy_interpolated_partials(const CrossEntropyParams& params);
int64_t cross_entropy_interpolated_scratch_bytes(const CrossEntropyParams& params);
void cross_entropy_interpolated(const CrossEntropyParams& params, device::Stream stream);

}  // namespace segunc::cuda
