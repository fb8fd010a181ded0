// Cross-entropy: its schemas, and who implements it on a CPU.
#include "../common/cpu/backend.h"
#include "binding.h"
#include "cpu/bands.h"

SEGUNC_CPU_ENTRY(cross_entropy_units, CrossEntropyParams)
SEGUNC_CPU_FUNCTION(cross_entropy_interpolated,
                    (const CrossEntropyParams& params, const Parallel& parallel),
                    (params, parallel))
SEGUNC_CPU_ENTRY(normalizer_units, NormalizerParams)

namespace segunc {
namespace {

struct Cpu : cpu::Backend {
  using Backend::Backend;

  struct Plan {
    int64_t partials, scratch_bytes;
  };
  Plan plan(const CrossEntropyParams& p) const {
    if (!p.interpolation.used) return {p.map.images * units_of(p.map.pixels), 0};
    const Bands bands(p);
    return {bands.units(), bands.scratch_bytes(p)};
  }
  void launch(const Plan& plan, CrossEntropyParams& p) const {
    cpu::BadClass bad_target;
    p.bad_target = &bad_target.pixel;
    if (p.interpolation.used)
      cpu::cross_entropy_interpolated(p, cpu::kThreads);
    else
      cpu::parallel(plan.partials, cpu::cross_entropy_units, p);
    bad_target.raise("target", p.target, p.target_type, p.map.classes, p.ignore_index);
  }

  int64_t normalizer_partials(const NormalizerParams& p) const { return units_of(p.count); }
  void normalizer(const NormalizerParams& p, double* normalizer) const {
    cpu::parallel(normalizer_partials(p), cpu::normalizer_units, p);
    *normalizer = cpu::ordered_sum(p.partial, normalizer_partials(p));
  }
  void finish_loss(const double* partial, int64_t count, const double* normalizer, void* loss,
                   Dtype dtype) const {
    const double sum = cpu::ordered_sum(partial, count) / (normalizer ? *normalizer : 1);
    if (dtype == Dtype::f64)
      *static_cast<double*>(loss) = sum;
    else
      *static_cast<float*>(loss) = float(sum);
  }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_FRAGMENT(segunc_ops, m) {
  m.def(
      "cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, Tensor? pixel_weight, "
      "SymInt ignore_index, int reduction, float label_smoothing, bool interpolate, "
      "bool align_corners, bool grad_input, bool grad_pixel_weight) -> (Tensor loss, "
      "Tensor normalizer, Tensor grad_input, Tensor grad_pixel_weight)");
  m.def(
      "cross_entropy_backward(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, "
      "Tensor? pixel_weight, Tensor normalizer, SymInt ignore_index, int reduction, "
      "float label_smoothing, bool interpolate, bool align_corners, bool grad_input, "
      "bool grad_pixel_weight) -> (Tensor grad_input, Tensor grad_pixel_weight)");
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CPU, m) {
  using namespace segunc;
  m.impl("cross_entropy_forward", TORCH_BOX(&cross_entropy_forward<Cpu>));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward<Cpu>));
}
