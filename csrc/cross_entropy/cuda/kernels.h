// The cross-entropy kernels on a GPU. Nothing here synchronises or allocates.
#pragma once
#include "../../common/device/device.h"
#include "../../common/plan.h"
#include "../params.h"

namespace segunc::cuda {

// Loss and gradients, as far as their pointers are set. Scratch memory is aligned to 16.
using CrossEntropyPlan = Plan<CrossEntropyParams, device::Stream>;

// Of logits as they are stored, of the target's size.
CrossEntropyPlan plan_stored_cross_entropy(const CrossEntropyParams& params);
// Of logits that are interpolated to it.
CrossEntropyPlan plan_interpolated_cross_entropy(const CrossEntropyParams& params);

inline CrossEntropyPlan plan_cross_entropy(const CrossEntropyParams& params) {
  return params.interpolation.used ? plan_interpolated_cross_entropy(params)
                                   : plan_stored_cross_entropy(params);
}

}  // namespace segunc::cuda
