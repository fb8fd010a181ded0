// Dice and cross-entropy: who implements them on a GPU.
#include "../common/device/backend.h"
#include "binding.h"
#include "cuda/kernels.h"

namespace segunc {
namespace {

struct Cuda : cuda::Backend {
  using Backend::Backend;

  static cuda::DicePlan plan_sums(const DiceParams& p) { return cuda::plan_dice_sums(p); }
  static cuda::DicePlan plan_gradient(const DiceParams& p) { return cuda::plan_dice_gradient(p); }
  static cuda::DiceBcePlan plan_sums(const DiceBceParams& p) { return cuda::plan_dice_bce_sums(p); }
  static cuda::DiceBcePlan plan_gradient(const DiceBceParams& p) {
    return cuda::plan_dice_bce_gradient(p);
  }

  template <class Params>
  void launch(const Plan<Params, device::Stream>& plan, Params& p) const {
    report_bad_targets(p);
    plan.launch(p, stream());
  }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CUDA, m) {
  using namespace segunc;
  m.impl("dice_cross_entropy_forward", TORCH_BOX(&dice_cross_entropy_forward<Cuda>));
  m.impl("dice_cross_entropy_backward", TORCH_BOX((&dice_cross_entropy_backward<Cuda, false>)));
  m.impl("dice_cross_entropy_backward_", TORCH_BOX((&dice_cross_entropy_backward<Cuda, true>)));
  m.impl("dice_bce_forward", TORCH_BOX(&dice_bce_forward<Cuda>));
  m.impl("dice_bce_backward", TORCH_BOX((&dice_bce_backward<Cuda, false>)));
  m.impl("dice_bce_backward_", TORCH_BOX((&dice_bce_backward<Cuda, true>)));
}
