// Cross-entropy: its schemas, and who implements it on a CPU.
#include "../common/cpu/gradient_bands.h"
#include "../common/cpu/loss_backend.h"
#include "../common/plan.h"
#include "binding.h"

SEGUNC_CPU_ENTRY(cross_entropy_stored, CrossEntropyParams)
SEGUNC_CPU_FUNCTION(cross_entropy_interpolated,
                    (const CrossEntropyParams& params, const GradientBands& bands,
                     const Parallel& parallel),
                    (params, bands, parallel))

namespace segunc {
namespace {

struct Cpu : cpu::LossBackend {
  using LossBackend::LossBackend;

  static Plan<CrossEntropyParams> plan(const CrossEntropyParams& params) {
    if (params.interpolation.used) {
      const GradientBands bands =
          make_gradient_bands({params.map, params.grad_map, params.interpolation, params.dtype,
                               params.input, params.grad_input, nullptr});
      return {bands.units, bands.scratch_bytes, [bands](const CrossEntropyParams& p) {
                cpu::cross_entropy_interpolated(p, bands, cpu::kThreads);
              }};
    }
    const int64_t units = params.map.images * units_of(params.map.pixels);
    return {units, 0, [units](const CrossEntropyParams& p) {
              cpu::parallel(units, cpu::cross_entropy_stored, p);
            }};
  }

  static void launch(const Plan<CrossEntropyParams>& plan, CrossEntropyParams& p) {
    cpu::BadClass bad_target;
    p.bad_target = &bad_target.pixel;
    plan.launch(p);
    bad_target.raise("target", p.target, p.target_type, p.map.classes, p.ignore_index);
  }
};

}  // namespace
}  // namespace segunc

// What the operators take after their tensors.
#define SEGUNC_CROSS_ENTROPY_OPTIONS                                                            \
  "SymInt ignore_index, int reduction, float label_smoothing, bool interpolate, "               \
  "bool align_corners, bool grad_input, bool grad_pixel_weight, Tensor? image_factor=None, "    \
  "Tensor? offset=None, Tensor? noise_seed=None, int modulation=0, float modulation_rate=0.0, " \
  "float modulation_peak=1.0, bool detach_modulation=False, float logit_scale=1.0, "            \
  "bool offset_on_target=False, int noise=0, float noise_sigma=0.0"
// Those that end in _ write the gradient over the logits, and return an empty one.
#define SEGUNC_CROSS_ENTROPY_FORWARD                                                   \
  "Tensor target, Tensor? weight, Tensor? pixel_weight, " SEGUNC_CROSS_ENTROPY_OPTIONS \
  ") -> (Tensor loss, Tensor normalizer, Tensor grad_input, Tensor grad_pixel_weight)"
#define SEGUNC_CROSS_ENTROPY_BACKWARD                            \
  "Tensor target, Tensor? weight, Tensor? pixel_weight, Tensor " \
  "normalizer, " SEGUNC_CROSS_ENTROPY_OPTIONS ") -> (Tensor grad_input, Tensor grad_pixel_weight)"

STABLE_TORCH_LIBRARY_FRAGMENT(segunc_ops, m) {
  m.def("cross_entropy_forward(Tensor input, " SEGUNC_CROSS_ENTROPY_FORWARD);
  m.def("cross_entropy_forward_(Tensor(a!) input, " SEGUNC_CROSS_ENTROPY_FORWARD);
  m.def("cross_entropy_backward(Tensor grad_output, Tensor input, " SEGUNC_CROSS_ENTROPY_BACKWARD);
  m.def(
      "cross_entropy_backward_(Tensor grad_output, Tensor(a!) "
      "input, " SEGUNC_CROSS_ENTROPY_BACKWARD);
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CPU, m) {
  using namespace segunc;
  m.impl("cross_entropy_forward", TORCH_BOX((&cross_entropy_forward<Cpu, false>)));
  m.impl("cross_entropy_forward_", TORCH_BOX((&cross_entropy_forward<Cpu, true>)));
  m.impl("cross_entropy_backward", TORCH_BOX((&cross_entropy_backward<Cpu, false>)));
  m.impl("cross_entropy_backward_", TORCH_BOX((&cross_entropy_backward<Cpu, true>)));
}
