// In-place scaling: who implements it on a GPU.
#include "../common/device/backend.h"
#include "binding.h"
#include "cuda/kernels.h"

namespace segunc {
namespace {

struct Cuda : cuda::Backend {
  using Backend::Backend;

  void scale(const ScaleParams& p) const { cuda::scale(p, stream()); }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CUDA, m) {
  using namespace segunc;
  m.impl("scale_", TORCH_BOX(&scale<Cuda>));
}
