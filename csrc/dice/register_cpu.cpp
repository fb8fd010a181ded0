// Dice and cross-entropy: their schemas, and who implements them on a CPU.
#include "../common/cpu/backend.h"
#include "../common/cpu/gradient_bands.h"
#include "../common/plan.h"
#include "binding.h"

SEGUNC_CPU_ENTRY(dice_sums, DiceParams)
SEGUNC_CPU_ENTRY(dice_gradient_stored, DiceParams)
SEGUNC_CPU_FUNCTION(dice_gradient_interpolated,
                    (const DiceParams& params, const GradientBands& bands,
                     const Parallel& parallel),
                    (params, bands, parallel))

namespace segunc {
namespace {

struct Cpu : cpu::Backend {
  using Backend::Backend;

  // Units add up in their order, whatever thread did which.
  static void finish(const DiceParams& p, int64_t units) {
    const int64_t sums = kDiceSums * p.map.classes, row = sums + 1;
    const int64_t per_image = p.map.images > 0 ? units / p.map.images : 0;
    std::fill_n(p.sums, sums * (p.by_image ? p.map.images : 1), 0.0);
    *p.surprise = 0;
    for (int64_t unit = 0; unit < units; ++unit) {
      const double* partial = p.partial + unit * row;
      double* table = p.sums + (p.by_image ? unit / per_image * sums : 0);
      for (int64_t i = 0; i < sums; ++i) table[i] += partial[i];
      *p.surprise += partial[sums];
    }
  }

  static Plan<DiceParams> plan_sums(const DiceParams& params) {
    const int64_t units = result_units(params.map, params.interpolation);
    return {units * (kDiceSums * params.map.classes + 1), 0, [units](const DiceParams& p) {
              cpu::parallel(units, cpu::dice_sums, p);
              finish(p, units);
            }};
  }

  static Plan<DiceParams> plan_gradient(const DiceParams& params) {
    if (params.interpolation.used) {
      const GradientBands bands =
          make_gradient_bands({params.map, params.grad_map, params.interpolation, params.dtype,
                               params.input, params.grad_input, nullptr});
      return {0, bands.scratch_bytes, [bands](const DiceParams& p) {
                cpu::dice_gradient_interpolated(p, bands, cpu::kThreads);
              }};
    }
    const int64_t units = params.map.images * units_of(params.map.pixels);
    return {0, 0,
            [units](const DiceParams& p) { cpu::parallel(units, cpu::dice_gradient_stored, p); }};
  }

  static void launch(const Plan<DiceParams>& plan, DiceParams& p) {
    cpu::BadClass bad_target;
    p.bad_target = &bad_target.pixel;
    plan.launch(p);
    bad_target.raise("target", p.target, p.target_type, p.map.classes, p.ignore_index);
  }
};

}  // namespace
}  // namespace segunc

// What both operators take after their tensors.
#define SEGUNC_DICE_OPTIONS                                                            \
  "SymInt ignore_index, float label_smoothing, bool interpolate, bool align_corners, " \
  "bool by_image, bool squared"

STABLE_TORCH_LIBRARY_FRAGMENT(segunc_ops, m) {
  m.def(
      "dice_cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, Tensor? "
      "pixel_weight, " SEGUNC_DICE_OPTIONS
      ", bool cross_entropy) -> (Tensor sums, Tensor surprise)");
  m.def(
      "dice_cross_entropy_backward(Tensor grad_output, Tensor input, Tensor target, Tensor? "
      "weight, Tensor? pixel_weight, Tensor coefficients, Tensor factor, " SEGUNC_DICE_OPTIONS
      ", bool grad_input, bool grad_pixel_weight) -> (Tensor grad_input, Tensor "
      "grad_pixel_weight)");
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CPU, m) {
  using namespace segunc;
  m.impl("dice_cross_entropy_forward", TORCH_BOX(&dice_cross_entropy_forward<Cpu>));
  m.impl("dice_cross_entropy_backward", TORCH_BOX(&dice_cross_entropy_backward<Cpu>));
}
