// In-place scaling: its schema, and who implements it on a CPU.
#include "../common/cpu/backend.h"
#include "binding.h"

SEGUNC_CPU_ENTRY(scale_elements, ScaleParams)

namespace segunc {
namespace {

struct Cpu : cpu::Backend {
  using Backend::Backend;

  void scale(const ScaleParams& p) const {
    constexpr int64_t kGrain = 1 << 15;  // elements
    const double factor = p.factor_dtype == Dtype::f64 ? *static_cast<const double*>(p.factor)
                                                       : *static_cast<const float*>(p.factor);
    if (factor != 1) cpu::parallel(p.count, cpu::scale_elements, p, kGrain);
  }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_FRAGMENT(segunc_ops, m) {
  m.def("scale_(Tensor(a!) self, Tensor factor) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CPU, m) {
  using namespace segunc;
  m.impl("scale_", TORCH_BOX(&scale<Cpu>));
}
