// Expected cross-entropy: its schemas, and who implements it on a CPU.
#include "../common/cpu/loss_backend.h"
#include "../common/plan.h"
#include "binding.h"

SEGUNC_CPU_ENTRY(expected_cross_entropy_units, ExpectedCrossEntropyParams)

namespace segunc {
namespace {

struct Cpu : cpu::LossBackend {
  using LossBackend::LossBackend;

  static Plan<ExpectedCrossEntropyParams> plan(const ExpectedCrossEntropyParams& params) {
    const int64_t units = params.map.images * units_of(params.map.pixels);
    return {units, 0, [units](const ExpectedCrossEntropyParams& p) {
              cpu::parallel(units, cpu::expected_cross_entropy_units, p);
            }};
  }

  static void launch(const Plan<ExpectedCrossEntropyParams>& plan, ExpectedCrossEntropyParams& p) {
    cpu::BadClass bad_target;
    p.bad_target = &bad_target.pixel;
    plan.launch(p);
    bad_target.raise("target", p.target, p.target_type, p.map.classes, p.ignore_index);
  }
};

}  // namespace
}  // namespace segunc

// What the operators take after their tensors.
#define SEGUNC_EXPECTED_OPTIONS                                                          \
  "SymInt ignore_index, int reduction, int num_draws, bool antithetic, bool grad_mean, " \
  "bool grad_scale, bool grad_pixel_weight"
#define SEGUNC_EXPECTED_INPUTS \
  "Tensor mean, Tensor scale, Tensor target, Tensor? weight, Tensor? pixel_weight, Tensor seed, "
#define SEGUNC_EXPECTED_GRADIENTS "Tensor grad_mean, Tensor grad_scale, Tensor grad_pixel_weight)"

STABLE_TORCH_LIBRARY_FRAGMENT(segunc_ops, m) {
  m.def("expected_cross_entropy_forward(" SEGUNC_EXPECTED_INPUTS SEGUNC_EXPECTED_OPTIONS
        ") -> (Tensor loss, Tensor normalizer, " SEGUNC_EXPECTED_GRADIENTS);
  m.def("expected_cross_entropy_backward(Tensor grad_output, " SEGUNC_EXPECTED_INPUTS
        "Tensor normalizer, " SEGUNC_EXPECTED_OPTIONS ") -> (" SEGUNC_EXPECTED_GRADIENTS);
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CPU, m) {
  using namespace segunc;
  m.impl("expected_cross_entropy_forward", TORCH_BOX(&expected_cross_entropy_forward<Cpu>));
  m.impl("expected_cross_entropy_backward", TORCH_BOX(&expected_cross_entropy_backward<Cpu>));
}
