// The statistics kernels on a GPU. Nothing here synchronises or allocates.
#pragma once
#include "../../common/device/device.h"
#include "../params.h"

namespace segunc::cuda {

// The most samples that one call takes unless their addresses are equally spaced.
constexpr int64_t kMaxScatteredSamples = 128;  // tuning

void predictive_statistics(const StatisticsParams& params, device::Stream stream);
void accumulate(const AccumulateParams& params, device::Stream stream);
void finalize(const FinalizeParams& params, device::Stream stream);

}  // namespace segunc::cuda
