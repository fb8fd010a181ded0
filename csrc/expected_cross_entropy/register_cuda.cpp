// Expected cross-entropy: who implements it on a GPU.
#include "../common/device/loss_backend.h"
#include "binding.h"
#include "cuda/kernels.h"

namespace segunc {
namespace {

struct Cuda : cuda::LossBackend {
  using LossBackend::LossBackend;

  static cuda::ExpectedCrossEntropyPlan plan(const ExpectedCrossEntropyParams& p) {
    return cuda::plan_expected_cross_entropy(p);
  }

  void launch(const cuda::ExpectedCrossEntropyPlan& plan, ExpectedCrossEntropyParams& p) const {
    report_bad_targets(p);
    plan.launch(p, stream());
  }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CUDA, m) {
  using namespace segunc;
  m.impl("expected_cross_entropy_forward", TORCH_BOX(&expected_cross_entropy_forward<Cuda>));
  m.impl("expected_cross_entropy_backward", TORCH_BOX(&expected_cross_entropy_backward<Cuda>));
}
