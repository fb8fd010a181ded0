// What the CUDA library tells of itself.
#include <tuple>

#include "common/device/backend.h"

namespace segunc {
namespace {

void check() { cuda::raise_pending(); }

std::string cuda_targets() { return SEGUNC_CUDA_TARGETS; }

// As CUDA writes them, 13020 for 13.2: the newest that the driver supports, 0 without a driver, and
// what these kernels were compiled by.
std::tuple<int64_t, int64_t> cuda_versions() {
  int driver = 0;
  cuda::check_cuda(cudaDriverGetVersion(&driver));
  return {driver, CUDART_VERSION};
}

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CompositeExplicitAutograd, m) {
  m.impl("check", TORCH_BOX(&segunc::check));
  m.impl("cuda_targets", TORCH_BOX(&segunc::cuda_targets));
  m.impl("cuda_versions", TORCH_BOX(&segunc::cuda_versions));
}
