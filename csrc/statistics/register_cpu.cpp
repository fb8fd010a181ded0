// Predictive statistics: their schemas, and who implements them on a CPU.
#include "../common/cpu/backend.h"
#include "binding.h"

SEGUNC_CPU_ENTRY(statistics_units, StatisticsParams)
SEGUNC_CPU_ENTRY(accumulate_units, AccumulateParams)
SEGUNC_CPU_ENTRY(finalize_units, FinalizeParams)

namespace segunc {
namespace {

struct Cpu : cpu::Backend {
  using Backend::Backend;

  void statistics(const StatisticsParams& p) const {
    cpu::parallel(result_units(p.map, p.interpolation), cpu::statistics_units, p);
  }
  void accumulate(const AccumulateParams& p) const {
    cpu::parallel(result_units(p.map, p.interpolation), cpu::accumulate_units, p);
  }
  void finalize(const FinalizeParams& p) const {
    cpu::parallel(p.images * units_of(p.pixels), cpu::finalize_units, p);
  }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_FRAGMENT(segunc_ops, m) {
  m.def(
      "predictive_statistics(Tensor[] samples, SymInt[] size, bool align_corners, "
      "bool return_mean) -> (Tensor prediction, Tensor confidence, Tensor std, Tensor entropy, "
      "Tensor expected_entropy, Tensor mutual_information, Tensor mean)");
  m.def(
      "accumulate_statistics_(Tensor(a!) mean, Tensor(b!) squared_deviations, "
      "Tensor(c!) entropy_sum, Tensor logits, SymInt count, bool align_corners) -> ()");
  m.def(
      "finalize_statistics(Tensor mean, Tensor squared_deviations, Tensor entropy_sum, "
      "SymInt count) -> (Tensor prediction, Tensor confidence, Tensor std, Tensor entropy, "
      "Tensor expected_entropy, Tensor mutual_information)");
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CPU, m) {
  using namespace segunc;
  m.impl("predictive_statistics", TORCH_BOX(&predictive_statistics<Cpu>));
  m.impl("accumulate_statistics_", TORCH_BOX(&accumulate_statistics<Cpu>));
  m.impl("finalize_statistics", TORCH_BOX(&finalize_statistics<Cpu>));
}
