// Losses of uncertain binary labels: their schemas, and who implements them on a CPU.
#include "../common/cpu/loss_backend.h"
#include "../common/plan.h"
#include "binding.h"

SEGUNC_CPU_ENTRY(label_uncertainty, LabelUncertaintyParams)

namespace segunc {
namespace {

struct Cpu : cpu::LossBackend {
  using LossBackend::LossBackend;

  static Plan<LabelUncertaintyParams> plan(const LabelUncertaintyParams& params) {
    const int64_t units = params.mean_map.images * units_of(params.mean_map.pixels);
    return {units, 0, [units](const LabelUncertaintyParams& p) {
              cpu::parallel(units, cpu::label_uncertainty, p);
            }};
  }

  static void launch(const Plan<LabelUncertaintyParams>& plan, LabelUncertaintyParams& p) {
    cpu::BadClass bad_target;
    p.bad_target = &bad_target.pixel;
    plan.launch(p);
    bad_target.raise("target", p.target, p.target_type, 2, p.ignore_index);
  }
};

}  // namespace
}  // namespace segunc

// What the operators take after their tensors.
#define SEGUNC_LABEL_UNCERTAINTY_OPTIONS                                                 \
  "SymInt ignore_index, int reduction, float threshold, float uncertainty_weight, "      \
  "float bootstrap_weight, bool detach_weight, bool grad_mean, bool grad_log_variance, " \
  "bool grad_pixel_weight"

STABLE_TORCH_LIBRARY_FRAGMENT(segunc_ops, m) {
  m.def(
      "label_uncertainty_forward(Tensor mean, Tensor log_variance, Tensor target, "
      "Tensor? pixel_weight, Tensor? bootstrap, " SEGUNC_LABEL_UNCERTAINTY_OPTIONS
      ") -> (Tensor loss, Tensor normalizer, Tensor grad_mean, Tensor grad_log_variance, "
      "Tensor grad_pixel_weight)");
  m.def(
      "label_uncertainty_backward(Tensor grad_output, Tensor mean, Tensor log_variance, "
      "Tensor target, Tensor? pixel_weight, Tensor? bootstrap, Tensor "
      "normalizer, " SEGUNC_LABEL_UNCERTAINTY_OPTIONS
      ") -> (Tensor grad_mean, Tensor grad_log_variance, Tensor grad_pixel_weight)");
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CPU, m) {
  using namespace segunc;
  m.impl("label_uncertainty_forward", TORCH_BOX((&label_uncertainty_forward<Cpu>)));
  m.impl("label_uncertainty_backward", TORCH_BOX((&label_uncertainty_backward<Cpu>)));
}
