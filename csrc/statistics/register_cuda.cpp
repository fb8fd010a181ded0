// Predictive statistics: who implements them on a GPU.
#include "../common/device/backend.h"
#include "binding.h"
#include "cuda/kernels.h"

namespace segunc {
namespace {

struct Cuda : cuda::Backend {
  using Backend::Backend;

  void statistics(const StatisticsParams& p) const { cuda::predictive_statistics(p, stream()); }
  void accumulate(const AccumulateParams& p) const { cuda::accumulate(p, stream()); }
  void finalize(const FinalizeParams& p) const { cuda::finalize(p, stream()); }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CUDA, m) {
  using namespace segunc;
  m.impl("predictive_statistics", TORCH_BOX(&predictive_statistics<Cuda>));
  m.impl("accumulate_statistics_", TORCH_BOX(&accumulate_statistics<Cuda>));
  m.impl("finalize_statistics", TORCH_BOX(&finalize_statistics<Cuda>));
}
