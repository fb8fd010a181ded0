// Dice and cross-entropy as torch sees them, of classes and of regions: checks, allocation, call.
// Templates over the backend, which plans and launches the kernels (see register_cpu.cpp and
// register_cuda.cpp).
#pragma once
#include <tuple>
#include <utility>

#include "../common/tensors.h"
#include "params.h"

namespace segunc {

// The sums [M, kDiceSums, C], and that of the pixels' cross-entropies.
using DiceForward = std::tuple<Tensor, Tensor>;
// Those of input and of pixel_weight, empty where not wanted or written over the logits.
using DiceGradients = std::tuple<Tensor, Tensor>;

// ---- both losses ----

// pixels: (N, *size).
inline void set_overlap(OverlapParams& p, const Tensor& input, const ClassMap& map, Sizes pixels,
                        const std::optional<Tensor>& pixel_weight, bool by_image, bool squared) {
  p.map = p.grad_map = map;
  p.dtype = dtype_of("input", input);
  if (pixel_weight)
    check_dense("pixel_weight", *pixel_weight, pixels, accumulate_type(input), input);
  p.input = input.const_data_ptr();
  p.pixel_weight = pixel_weight ? pixel_weight->const_data_ptr() : nullptr;
  p.by_image = by_image;
  p.squared = squared;
}

// Checks (C,) numbers and returns where they are.
inline const void* class_weight_of(const char* name, const std::optional<Tensor>& weight,
                                   const Tensor& input) {
  if (!weight) return nullptr;
  check_dense(name, *weight, {input.size(1)}, accumulate_type(input), input);
  return weight->const_data_ptr();
}

template <class Backend, class Params>
DiceForward overlap_sums(const Backend& backend, Params& p, const Tensor& input,
                         bool cross_entropy) {
  p.cross_entropy = cross_entropy;
  Tensor sums = allocate(input, {p.by_image ? input.size(0) : 1, kDiceSums, input.size(1)},
                         ScalarType::Double);
  Tensor surprise = allocate(input, {}, ScalarType::Double);
  p.sums = static_cast<double*>(sums.mutable_data_ptr());
  p.surprise = static_cast<double*>(surprise.mutable_data_ptr());
  const auto plan = backend.plan_sums(p);
  Tensor partial = allocate(input, {plan.partials}, ScalarType::Double);
  p.partial = static_cast<double*>(partial.mutable_data_ptr());
  backend.launch(plan, p);
  return {sums, surprise};
}

// What the gradients are made of: how the loss depends on the sums, and the gradient that flows
// into it.
struct DiceUpstream {
  const Tensor &grad_output, &coefficients, &factor;
  bool grad_input, grad_pixel_weight;  // which are wanted
  bool overwrites;                     // the logits by their gradient
};

// map_of: of a gradient like the input.
template <class Backend, class Params, class MapOf>
DiceGradients overlap_gradients(const Backend& backend, Params& p, const Tensor& input,
                                Sizes pixels, const DiceUpstream& upstream, MapOf map_of) {
  const ScalarType type = accumulate_type(input);
  const std::vector<int64_t> scalar;
  check_dense("grad_output", upstream.grad_output, scalar, type, input);
  check_dense("coefficients", upstream.coefficients,
              {p.by_image ? input.size(0) : 1, kDiceSlopes, input.size(1)}, ScalarType::Double,
              input);
  check_dense("factor", upstream.factor, scalar, ScalarType::Double, input);
  p.upstream = upstream.grad_output.const_data_ptr();
  p.coefficients = static_cast<const double*>(upstream.coefficients.const_data_ptr());
  p.factor = static_cast<const double*>(upstream.factor.const_data_ptr());
  const bool of_weight_too = upstream.grad_pixel_weight;
  const bool apart = upstream.grad_input && !upstream.overwrites;
  Tensor of_input = apart ? allocate_like(input) : allocate(input, {0}, input.scalar_type());
  Tensor of_weight = of_weight_too ? allocate(input, pixels, type) : allocate(input, {0}, type);
  if (upstream.overwrites) p.grad_input = input.mutable_data_ptr();
  if (apart) {
    p.grad_input = of_input.mutable_data_ptr();
    p.grad_map = map_of(of_input);
    // Kernels with a fast traversal use it for both sides or for neither.
    if (p.grad_map.layout != p.map.layout) p.map.layout = p.grad_map.layout = Layout::strided;
    Backend::prepare(p.grad_input, input.numel() * int64_t(input.element_size()));
  }
  if (of_weight_too) p.grad_pixel_weight = of_weight.mutable_data_ptr();
  if (!upstream.grad_input && !of_weight_too) return {of_input, of_weight};
  const auto plan = backend.plan_gradient(p);
  Tensor scratch = allocate(input, {plan.scratch_bytes}, ScalarType::Byte);
  p.scratch = scratch.mutable_data_ptr();
  backend.launch(plan, p);
  return {of_input, of_weight};
}

// ---- classes that exclude each other ----

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
  DiceParams p{};
  const ClassMap map = map_of("input", input, options);
  if (options.interpolate)
    p.interpolation = interpolation_to("input", input, map, target.sizes(), options.align_corners);
  else
    check_shape("target", target, without_classes(input));
  p.target_type = index_type_of("target", target);
  check_dense("target", target, target.sizes(), target.scalar_type(), input);
  set_overlap(p, input, map, target.sizes(), pixel_weight, options.by_image, options.squared);
  p.target = target.const_data_ptr();
  p.weight = class_weight_of("weight", weight, input);
  p.ignore_index = options.ignore_index;
  p.label_smoothing = options.label_smoothing;
  return p;
}

template <class Backend>
DiceForward dice_cross_entropy_forward(const Tensor& input, const Tensor& target,
                                       std::optional<Tensor> weight,
                                       std::optional<Tensor> pixel_weight, int64_t ignore_index,
                                       double label_smoothing, bool interpolate, bool align_corners,
                                       bool by_image, bool squared, bool cross_entropy) {
  const Backend backend(input);
  DiceParams p =
      params_of(input, target, weight, pixel_weight,
                {ignore_index, label_smoothing, interpolate, align_corners, by_image, squared});
  return overlap_sums(backend, p, input, cross_entropy);
}

template <class Backend, bool kOverwrites>
DiceGradients dice_cross_entropy_backward(const Tensor& grad_output, const Tensor& input,
                                          const Tensor& target, std::optional<Tensor> weight,
                                          std::optional<Tensor> pixel_weight,
                                          const Tensor& coefficients, const Tensor& factor,
                                          int64_t ignore_index, double label_smoothing,
                                          bool interpolate, bool align_corners, bool by_image,
                                          bool squared, bool grad_input, bool grad_pixel_weight) {
  const DiceOptions options{ignore_index,  label_smoothing, interpolate,
                            align_corners, by_image,        squared};
  if (kOverwrites && interpolate) fail(kNotOverwritten);
  const Backend backend(input);
  DiceParams p = params_of(input, target, weight, pixel_weight, options);
  return overlap_gradients(
      backend, p, input, target.sizes(),
      {grad_output, coefficients, factor, grad_input, grad_pixel_weight, kOverwrites},
      [&](const Tensor& gradient) { return map_of("gradient", gradient, options); });
}

// ---- regions ----

inline BinaryType binary_type_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Long:
      return BinaryType::i64;
    case ScalarType::Int:
      return BinaryType::i32;
    case ScalarType::Short:
      return BinaryType::i16;
    case ScalarType::Byte:
    case ScalarType::Bool:
      return BinaryType::u8;
    case ScalarType::Double:
      return BinaryType::f64;
    case ScalarType::Float:
      return BinaryType::f32;
    case ScalarType::BFloat16:
      return BinaryType::bf16;
    case ScalarType::Half:
      return BinaryType::f16;
    default:
      fail(std::string(name) + ": expected bool, an integer or a floating-point type, got " +
           torch::headeronly::toString(tensor.scalar_type()));
  }
}

// Whether its images are contiguous, whatever lies between them.
inline bool has_dense_images(const Tensor& tensor) {
  int64_t stride = 1;
  for (int64_t axis = tensor.dim(); --axis > 0; stride *= tensor.size(axis))
    if (tensor.size(axis) != 1 && tensor.stride(axis) != stride) return false;
  return true;
}

inline DiceBceParams region_params_of(const Tensor& input, const Tensor& target,
                                      const std::optional<Tensor>& pos_weight,
                                      const std::optional<Tensor>& pixel_weight,
                                      const std::optional<Tensor>& mask, bool by_image,
                                      bool squared) {
  DiceBceParams p{};
  const std::vector<int64_t> pixels = without_classes(input);
  set_overlap(p, input, class_map_of("input", input, false), pixels, pixel_weight, by_image,
              squared);
  check_shape("target", target, input.sizes());
  if (target.device() != input.device()) fail("target: expected input's device");
  if (!has_dense_images(target) && target.numel() > 0) fail("target: expected contiguous images");
  if (mask) check_dense("mask", *mask, pixels, ScalarType::Bool, input);
  p.target = target.const_data_ptr();
  p.target_type = binary_type_of("target", target);
  p.target_stride = target.stride(0);
  p.pos_weight = class_weight_of("pos_weight", pos_weight, input);
  p.mask = mask ? static_cast<const bool*>(mask->const_data_ptr()) : nullptr;
  return p;
}

template <class Backend>
DiceForward dice_bce_forward(const Tensor& input, const Tensor& target,
                             std::optional<Tensor> pos_weight, std::optional<Tensor> pixel_weight,
                             std::optional<Tensor> mask, bool by_image, bool squared,
                             bool cross_entropy) {
  const Backend backend(input);
  DiceBceParams p =
      region_params_of(input, target, pos_weight, pixel_weight, mask, by_image, squared);
  return overlap_sums(backend, p, input, cross_entropy);
}

template <class Backend, bool kOverwrites>
DiceGradients dice_bce_backward(const Tensor& grad_output, const Tensor& input,
                                const Tensor& target, std::optional<Tensor> pos_weight,
                                std::optional<Tensor> pixel_weight, std::optional<Tensor> mask,
                                const Tensor& coefficients, const Tensor& factor, bool by_image,
                                bool squared, bool grad_input, bool grad_pixel_weight) {
  const Backend backend(input);
  DiceBceParams p =
      region_params_of(input, target, pos_weight, pixel_weight, mask, by_image, squared);
  return overlap_gradients(
      backend, p, input, without_classes(input),
      {grad_output, coefficients, factor, grad_input, grad_pixel_weight, kOverwrites},
      [](const Tensor& gradient) { return class_map_of("gradient", gradient, false); });
}

}  // namespace segunc
