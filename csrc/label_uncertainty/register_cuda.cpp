// Losses of uncertain binary labels: who implements them on a GPU.
#include "../common/device/loss_backend.h"
#include "binding.h"
#include "cuda/kernels.h"

namespace segunc {
namespace {

struct Cuda : cuda::LossBackend {
  using LossBackend::LossBackend;

  static cuda::LabelUncertaintyPlan plan(const LabelUncertaintyParams& p) {
    return cuda::plan_label_uncertainty(p);
  }

  void launch(const cuda::LabelUncertaintyPlan& plan, LabelUncertaintyParams& p) const {
    report_bad_targets(p);
    plan.launch(p, stream());
  }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CUDA, m) {
  using namespace segunc;
  m.impl("label_uncertainty_forward", TORCH_BOX((&label_uncertainty_forward<Cuda>)));
  m.impl("label_uncertainty_backward", TORCH_BOX((&label_uncertainty_backward<Cuda>)));
}
