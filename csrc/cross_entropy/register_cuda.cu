// Cross-entropy: who implements it on a GPU.
#include "../common/device/backend.h"
#include "binding.h"
#include "cuda/kernels.h"

namespace segunc {
namespace {

struct Cuda : cuda::Backend {
  using Backend::Backend;

  struct Plan {
    int64_t partials, scratch_bytes;
  };
  Plan plan(const CrossEntropyParams& p) const {
    if (!p.interpolation.used) return {cuda::cross_entropy_partials(p), 0};
    return {cuda::cross_entropy_interpolated_partials(p),
            cuda::cross_entropy_interpolated_scratch_bytes(p)};
  }
  void launch(const Plan&, CrossEntropyParams& p) const {
    report_bad_targets(p);
    if (p.interpolation.used)
      cuda::cross_entropy_interpolated(p, stream());
    else
      cuda::cross_entropy(p, stream());
  }

  int64_t normalizer_partials(const NormalizerParams& p) const {
    return cuda::normalizer_partials(p);
  }
  void normalizer(const NormalizerParams& p, double* normalizer) const {
    cuda::normalizer(p, normalizer, stream());
  }
  void finish_loss(const double* partial, int64_t count, const double* normalizer, void* loss,
                   Dtype dtype) const {
    cuda::finish_loss(partial, count, normalizer, loss, dtype, stream());
  }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CUDA, m) {
  using namespace segunc;
  m.impl("cross_entropy_forward", TORCH_BOX(&cross_entropy_forward<Cuda>));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward<Cuda>));
}
