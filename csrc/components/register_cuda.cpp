// Connected components: who implements them on a GPU.
#include "../common/device/backend.h"
#include "binding.h"
#include "cuda/kernels.h"

namespace segunc {
namespace {

struct Cuda : cuda::Backend {
  using Backend::Backend;

  int64_t scratch_bytes(const ComponentsParams& p) const {
    return cuda::components_scratch_bytes(p);
  }
  int64_t scratch_bytes(const ComponentMeanParams& p) const {
    return cuda::component_mean_scratch_bytes(p);
  }
  void components(const ComponentsParams& p) const { cuda::connected_components(p, stream()); }
  void component_mean(const ComponentMeanParams& p) const { cuda::component_mean(p, stream()); }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CUDA, m) {
  using namespace segunc;
  m.impl("connected_components", TORCH_BOX(&connected_components<Cuda>));
  m.impl("component_mean", TORCH_BOX(&component_mean<Cuda>));
}
