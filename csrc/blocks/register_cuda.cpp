// Block means: who implements them on a GPU.
#include "../common/device/backend.h"
#include "binding.h"
#include "cuda/kernels.h"

namespace segunc {
namespace {

struct Cuda : cuda::Backend {
  using Backend::Backend;

  static cuda::BlocksPlan plan_blocks(const BlocksParams& p) { return cuda::plan_block_means(p); }
  void launch(const cuda::BlocksPlan& plan, const BlocksParams& p) const {
    plan.launch(p, stream());
  }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CUDA, m) {
  m.impl("block_uncertainty", TORCH_BOX(&segunc::block_uncertainty<segunc::Cuda>));
}
