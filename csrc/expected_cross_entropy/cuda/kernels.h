// The kernels of expected cross-entropy on a GPU. Nothing here synchronises or allocates.
#pragma once
#include "../../common/device/device.h"
#include "../../common/plan.h"
#include "../params.h"

namespace segunc::cuda {

// Loss and gradients, as far as their pointers are set.
using ExpectedCrossEntropyPlan = Plan<ExpectedCrossEntropyParams, device::Stream>;

// Throws std::invalid_argument for more draws than a warp has room for.
ExpectedCrossEntropyPlan plan_expected_cross_entropy(const ExpectedCrossEntropyParams& params);

}  // namespace segunc::cuda
