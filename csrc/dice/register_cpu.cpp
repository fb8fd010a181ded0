// Dice and cross-entropy: their schemas, and who implements them on a CPU.
#include <sstream>

#include "../common/cpu/backend.h"
#include "../common/cpu/gradient_bands.h"
#include "../common/plan.h"
#include "binding.h"

SEGUNC_CPU_ENTRY(dice_sums, DiceParams)
SEGUNC_CPU_ENTRY(dice_gradient_stored, DiceParams)
SEGUNC_CPU_ENTRY(dice_bce_sums, DiceBceParams)
SEGUNC_CPU_ENTRY(dice_bce_gradient, DiceBceParams)
SEGUNC_CPU_FUNCTION(dice_gradient_interpolated,
                    (const DiceParams& params, const GradientBands& bands,
                     const Parallel& parallel),
                    (params, bands, parallel))

namespace segunc {
namespace {

double load_binary(const void* data, BinaryType type, int64_t i) {
  switch (type) {
    case BinaryType::i64:
      return double(static_cast<const int64_t*>(data)[i]);
    case BinaryType::i32:
      return static_cast<const int32_t*>(data)[i];
    case BinaryType::i16:
      return static_cast<const int16_t*>(data)[i];
    case BinaryType::f64:
      return static_cast<const double*>(data)[i];
    case BinaryType::f32:
      return static_cast<const float*>(data)[i];
    case BinaryType::bf16:
      return to_accumulate(static_cast<const bfloat16*>(data)[i]);
    case BinaryType::f16:
      return to_accumulate(static_cast<const float16*>(data)[i]);
    default:
      return static_cast<const uint8_t*>(data)[i];
  }
}

struct Cpu : cpu::Backend {
  using Backend::Backend;

  // Units add up in their order, whatever thread did which.
  static void finish(const OverlapParams& p, int64_t units) {
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

  static Plan<DiceBceParams> plan_sums(const DiceBceParams& params) {
    const int64_t units = params.map.images * units_of(params.map.pixels);
    return {units * (kDiceSums * params.map.classes + 1), 0, [units](const DiceBceParams& p) {
              cpu::parallel(units, cpu::dice_bce_sums, p);
              finish(p, units);
            }};
  }

  static Plan<DiceBceParams> plan_gradient(const DiceBceParams& params) {
    const int64_t units = params.map.images * units_of(params.map.pixels);
    return {0, 0,
            [units](const DiceBceParams& p) { cpu::parallel(units, cpu::dice_bce_gradient, p); }};
  }

  static void launch(const Plan<DiceBceParams>& plan, DiceBceParams& p) {
    cpu::BadClass bad_target;
    p.bad_target = &bad_target.pixel;
    plan.launch(p);
    if (bad_target.pixel == INT64_MAX) return;
    const int64_t image = p.map.classes * p.map.pixels, i = bad_target.pixel;
    std::ostringstream message;
    message << "target: expected 0 or 1, got "
            << load_binary(p.target, p.target_type, i / image * p.target_stride + i % image);
    fail(message.str());
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

// What the operators of classes take after their tensors.
#define SEGUNC_DICE_OPTIONS                                                            \
  "SymInt ignore_index, float label_smoothing, bool interpolate, bool align_corners, " \
  "bool by_image, bool squared"
#define SEGUNC_DICE_GRADIENTS \
  "bool grad_input, bool grad_pixel_weight) -> (Tensor grad_input, Tensor grad_pixel_weight)"
// Those that end in _ write the gradient over the logits, and return an empty one.
#define SEGUNC_DICE_BACKWARD                                                          \
  "Tensor target, Tensor? weight, Tensor? pixel_weight, Tensor coefficients, Tensor " \
  "factor, " SEGUNC_DICE_OPTIONS ", " SEGUNC_DICE_GRADIENTS
#define SEGUNC_DICE_BCE_BACKWARD                                                                 \
  "Tensor target, Tensor? pos_weight, Tensor? pixel_weight, Tensor? mask, Tensor coefficients, " \
  "Tensor factor, bool by_image, bool squared, " SEGUNC_DICE_GRADIENTS

STABLE_TORCH_LIBRARY_FRAGMENT(segunc_ops, m) {
  m.def(
      "dice_cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, Tensor? "
      "pixel_weight, " SEGUNC_DICE_OPTIONS
      ", bool cross_entropy) -> (Tensor sums, Tensor surprise)");
  m.def("dice_cross_entropy_backward(Tensor grad_output, Tensor input, " SEGUNC_DICE_BACKWARD);
  m.def("dice_cross_entropy_backward_(Tensor grad_output, Tensor(a!) input, " SEGUNC_DICE_BACKWARD);
  m.def(
      "dice_bce_forward(Tensor input, Tensor target, Tensor? pos_weight, Tensor? pixel_weight, "
      "Tensor? mask, bool by_image, bool squared, bool cross_entropy) -> (Tensor sums, Tensor "
      "surprise)");
  m.def("dice_bce_backward(Tensor grad_output, Tensor input, " SEGUNC_DICE_BCE_BACKWARD);
  m.def("dice_bce_backward_(Tensor grad_output, Tensor(a!) input, " SEGUNC_DICE_BCE_BACKWARD);
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CPU, m) {
  using namespace segunc;
  m.impl("dice_cross_entropy_forward", TORCH_BOX(&dice_cross_entropy_forward<Cpu>));
  m.impl("dice_cross_entropy_backward", TORCH_BOX((&dice_cross_entropy_backward<Cpu, false>)));
  m.impl("dice_cross_entropy_backward_", TORCH_BOX((&dice_cross_entropy_backward<Cpu, true>)));
  m.impl("dice_bce_forward", TORCH_BOX(&dice_bce_forward<Cpu>));
  m.impl("dice_bce_backward", TORCH_BOX((&dice_bce_backward<Cpu, false>)));
  m.impl("dice_bce_backward_", TORCH_BOX((&dice_bce_backward<Cpu, true>)));
}
