// Cross-entropy: who implements it on a GPU.
#include "../common/device/loss_backend.h"
#include "binding.h"
#include "cuda/kernels.h"

namespace segunc {
namespace {

struct Cuda : cuda::LossBackend {
  using LossBackend::LossBackend;

  static cuda::CrossEntropyPlan plan(const CrossEntropyParams& p) {
    return cuda::plan_cross_entropy(p);
  }

  void launch(const cuda::CrossEntropyPlan& plan, CrossEntropyParams& p) const {
    report_bad_targets(p);
    plan.launch(p, stream());
  }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CUDA, m) {
  using namespace segunc;
  m.impl("cross_entropy_forward", TORCH_BOX((&cross_entropy_forward<Cuda, false>)));
  m.impl("cross_entropy_forward_", TORCH_BOX((&cross_entropy_forward<Cuda, true>)));
  m.impl("cross_entropy_backward", TORCH_BOX((&cross_entropy_backward<Cuda, false>)));
  m.impl("cross_entropy_backward_", TORCH_BOX((&cross_entropy_backward<Cuda, true>)));
}
