// Dice and cross-entropy as torch sees them: checks, allocation, call. A template over the backend,
// which plans and launches the kernels (see register_cpu.cpp and register_cuda.cpp).
#pragma once
#include <tuple>
#include <utility>

#include "../common/tensors.h"
#include "params.h"

namespace segunc {

// Of a call, beside its tensors.
struct DiceOptions {
  int64_t ignore_index;
  double label_smoothing;
  bool interpolate, align_corners;  // logits to the target's size, and how
  bool by_image, squared;
};

inline ClassMap map_of(const char* name, const Tensor& logits, const DiceOptions& options) {
  return options.interpolate ? unmerged_map_of(name, logits)
                             : class_map_of(name, logits, !options.by_image);
}

inline DiceParams params_of(const Tensor& input, const Tensor& target,
                            const std::optional<Tensor>& weight,
                            const std::optional<Tensor>& pixel_weight, const DiceOptions& options) {
  const ScalarType type = accumulate_type(input);
  DiceParams p{};
  p.map = p.grad_map = map_of("input", input, options);
  if (options.interpolate)
    p.interpolation =
        interpolation_to("input", input, p.map, target.sizes(), options.align_corners);
  else
    check_shape("target", target, without_classes(input));
  p.dtype = dtype_of("input", input);
  p.target_type = index_type_of("target", target);
  check_dense("target", target, target.sizes(), target.scalar_type(), input);
  if (weight) check_dense("weight", *weight, {input.size(1)}, type, input);
  if (pixel_weight) check_dense("pixel_weight", *pixel_weight, target.sizes(), type, input);
  p.input = input.const_data_ptr();
  p.target = target.const_data_ptr();
  p.weight = weight ? weight->const_data_ptr() : nullptr;
  p.pixel_weight = pixel_weight ? pixel_weight->const_data_ptr() : nullptr;
  p.by_image = options.by_image;
  p.squared = options.squared;
  p.ignore_index = options.ignore_index;
  p.label_smoothing = options.label_smoothing;
  return p;
}

// Returns the sums [M, kDiceSums, C] and that of the pixels' cross-entropies.
template <class Backend>
std::tuple<Tensor, Tensor> dice_cross_entropy_forward(
    const Tensor& input, const Tensor& target, std::optional<Tensor> weight,
    std::optional<Tensor> pixel_weight, int64_t ignore_index, double label_smoothing,
    bool interpolate, bool align_corners, bool by_image, bool squared, bool cross_entropy) {
  const Backend backend(input);
  DiceParams p =
      params_of(input, target, weight, pixel_weight,
                {ignore_index, label_smoothing, interpolate, align_corners, by_image, squared});
  p.cross_entropy = cross_entropy;
  Tensor sums =
      allocate(input, {by_image ? input.size(0) : 1, kDiceSums, input.size(1)}, ScalarType::Double);
  Tensor surprise = allocate(input, {}, ScalarType::Double);
  p.sums = static_cast<double*>(sums.mutable_data_ptr());
  p.surprise = static_cast<double*>(surprise.mutable_data_ptr());
  const auto plan = backend.plan_sums(p);
  Tensor partial = allocate(input, {plan.partials}, ScalarType::Double);
  p.partial = static_cast<double*>(partial.mutable_data_ptr());
  backend.launch(plan, p);
  return {sums, surprise};
}

// The gradients, from the logits and from how the loss depends on the sums over them. grad_output
// is the gradient that flows into the loss.
template <class Backend>
std::tuple<Tensor, Tensor> dice_cross_entropy_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& target,
    std::optional<Tensor> weight, std::optional<Tensor> pixel_weight, const Tensor& coefficients,
    const Tensor& factor, int64_t ignore_index, double label_smoothing, bool interpolate,
    bool align_corners, bool by_image, bool squared, bool grad_input, bool grad_pixel_weight) {
  const DiceOptions options{ignore_index,  label_smoothing, interpolate,
                            align_corners, by_image,        squared};
  const Backend backend(input);
  DiceParams p = params_of(input, target, weight, pixel_weight, options);
  const ScalarType type = accumulate_type(input);
  const std::vector<int64_t> scalar;
  check_dense("grad_output", grad_output, scalar, type, input);
  check_dense("coefficients", coefficients,
              {by_image ? input.size(0) : 1, kDiceSlopes, input.size(1)}, ScalarType::Double,
              input);
  check_dense("factor", factor, scalar, ScalarType::Double, input);
  p.upstream = grad_output.const_data_ptr();
  p.coefficients = static_cast<const double*>(coefficients.const_data_ptr());
  p.factor = static_cast<const double*>(factor.const_data_ptr());
  Tensor of_input = grad_input ? allocate_like(input) : allocate(input, {0}, input.scalar_type());
  Tensor of_weight =
      grad_pixel_weight ? allocate(input, target.sizes(), type) : allocate(input, {0}, type);
  if (grad_input) {
    p.grad_input = of_input.mutable_data_ptr();
    p.grad_map = map_of("gradient", of_input, options);
    // Kernels with a fast traversal use it for both sides or for neither.
    if (p.grad_map.layout != p.map.layout) p.map.layout = p.grad_map.layout = Layout::strided;
    Backend::prepare(p.grad_input, input.numel() * int64_t(input.element_size()));
  }
  if (grad_pixel_weight) p.grad_pixel_weight = of_weight.mutable_data_ptr();
  if (!grad_input && !grad_pixel_weight) return {of_input, of_weight};
  const auto plan = backend.plan_gradient(p);
  Tensor scratch = allocate(input, {plan.scratch_bytes}, ScalarType::Byte);
  p.scratch = scratch.mutable_data_ptr();
  backend.launch(plan, p);
  return {of_input, of_weight};
}

}  // namespace segunc
