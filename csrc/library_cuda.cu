// What the CUDA library tells of itself.
#include "common/device/backend.h"

namespace segunc {
namespace {

void check() { cuda::raise_pending(); }

std::string cuda_targets() { return SEGUNC_CUDA_TARGETS; }

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CompositeExplicitAutograd, m) {
  m.impl("check", TORCH_BOX(&segunc::check));
  m.impl("cuda_targets", TORCH_BOX(&segunc::cuda_targets));
}
