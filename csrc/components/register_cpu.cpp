// Connected components: their schemas, and who implements them on a CPU.
#include "../common/cpu/backend.h"
#include "binding.h"

SEGUNC_CPU_FUNCTION(connected_components,
                    (const ComponentsParams& params, const Parallel& parallel), (params, parallel))
SEGUNC_CPU_FUNCTION(component_mean, (const ComponentMeanParams& params, const Parallel& parallel),
                    (params, parallel))

namespace segunc {
namespace {

struct Cpu : cpu::Backend {
  using Backend::Backend;

  // The kernels have their own, of which they touch only what they need.
  template <class Params>
  static int64_t scratch_bytes(const Params&) {
    return 0;
  }
  void components(const ComponentsParams& p) const { cpu::connected_components(p, cpu::kThreads); }
  void component_mean(const ComponentMeanParams& p) const { cpu::component_mean(p, cpu::kThreads); }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_FRAGMENT(segunc_ops, m) {
  m.def(
      "connected_components(Tensor labels, int connectivity, SymInt? ignore_index) -> "
      "(Tensor components, Tensor counts)");
  m.def(
      "component_mean(Tensor values, Tensor labels, int connectivity, SymInt? ignore_index, "
      "float? bound) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CPU, m) {
  using namespace segunc;
  m.impl("connected_components", TORCH_BOX(&connected_components<Cpu>));
  m.impl("component_mean", TORCH_BOX(&component_mean<Cpu>));
}
