// The kernels of Dice and cross-entropy on a GPU. Nothing here synchronises or allocates.
#pragma once
#include "../../common/device/device.h"
#include "../../common/plan.h"
#include "../params.h"

namespace segunc::cuda {

// `partials` are doubles, scratch memory is aligned to 16.
using DicePlan = Plan<DiceParams, device::Stream>;
using DiceBcePlan = Plan<DiceBceParams, device::Stream>;

// The sums, of logits in memory and of those that are interpolated to the target's size.
DicePlan plan_dice_sums(const DiceParams& params);

// The gradients, as far as their pointers are set.
DicePlan plan_stored_dice_gradient(const DiceParams& params);
DicePlan plan_interpolated_dice_gradient(const DiceParams& params);

inline DicePlan plan_dice_gradient(const DiceParams& params) {
  return params.interpolation.used ? plan_interpolated_dice_gradient(params)
                                   : plan_stored_dice_gradient(params);
}

// Of regions.
DiceBcePlan plan_dice_bce_sums(const DiceBceParams& params);
DiceBcePlan plan_dice_bce_gradient(const DiceBceParams& params);

}  // namespace segunc::cuda
