// The kernels of uncertain binary labels on a GPU. Nothing here synchronises or allocates.
#pragma once
#include "../../common/device/device.h"
#include "../../common/plan.h"
#include "../params.h"

namespace segunc::cuda {

// Loss and gradients, as far as their pointers are set.
using LabelUncertaintyPlan = Plan<LabelUncertaintyParams, device::Stream>;

LabelUncertaintyPlan plan_label_uncertainty(const LabelUncertaintyParams& params);

}  // namespace segunc::cuda
