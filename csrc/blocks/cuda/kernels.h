// The kernels of block means on a GPU. Nothing here synchronises or allocates.
#pragma once
#include "../../common/device/device.h"
#include "../../common/plan.h"
#include "../params.h"

namespace segunc::cuda {

// `partials` are doubles, for sums of cells.
using BlocksPlan = Plan<BlocksParams, device::Stream>;

BlocksPlan plan_block_means(const BlocksParams& params);

}  // namespace segunc::cuda
