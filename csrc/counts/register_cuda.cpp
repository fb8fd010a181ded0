// Counts: who implements them on a GPU.
#include "../common/device/backend.h"
#include "binding.h"
#include "cuda/kernels.h"

namespace segunc {
namespace {

struct Cuda : cuda::Backend {
  using Backend::Backend;

  void counts(CountsParams& p) const {
    report_bad_targets(p);
    cuda::counts(p, stream());
  }
  void map_counts(MapCountsParams& p) const {
    report_bad_targets(p);
    cuda::map_counts(p, stream());
  }
  void patch_counts(const PatchCountsParams& p) const { cuda::patch_counts(p, stream()); }
  void class_sizes(const ClassSizesParams& p) const { cuda::class_sizes(p, stream()); }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CUDA, m) {
  using namespace segunc;
  m.impl("accumulate_counts_", TORCH_BOX(&accumulate_counts<Cuda>));
  m.impl("accumulate_map_counts_", TORCH_BOX(&accumulate_map_counts<Cuda>));
  m.impl("accumulate_patch_counts_", TORCH_BOX(&accumulate_patch_counts<Cuda>));
  m.impl("accumulate_class_sizes_", TORCH_BOX(&accumulate_class_sizes<Cuda>));
}
