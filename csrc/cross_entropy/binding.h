// Cross-entropy as torch sees it: checks, allocation, call. A template over the backend, which
// plans and launches the kernels (see register_cpu.cpp and register_cuda.cpp).
#pragma once
#include <tuple>
#include <utility>

#include "../common/loss.h"
#include "../common/tensors.h"
#include "params.h"

namespace segunc {

// Of a call, beside its tensors.
struct CrossEntropyOptions {
  int64_t ignore_index;
  Reduction reduction;
  double label_smoothing;
  bool interpolate, align_corners;     // logits to the target's size, and how
  bool grad_input, grad_pixel_weight;  // the gradients that are wanted
  ModulationKind modulation;
  double modulation_rate, modulation_peak;
  bool detach_modulation;
  double logit_scale;
  bool offset_on_target;
  NoiseKind noise;
  double noise_sigma;
  bool overwrites;  // the logits by their gradient
};

// What a call reads beside logits and targets.
struct CrossEntropyTensors {
  std::optional<Tensor> weight, pixel_weight, image_factor, offset, noise_seed;
};

// Images become one where that helps kernels, unless these have to tell them apart.
inline ClassMap map_of(const char* name, const Tensor& logits, const CrossEntropyOptions& options,
                       bool fold_images) {
  return options.interpolate ? unmerged_map_of(name, logits)
                             : class_map_of(name, logits, fold_images);
}

inline CrossEntropyParams params_of(const Tensor& input, const Tensor& target,
                                    const CrossEntropyTensors& tensors,
                                    const CrossEntropyOptions& options) {
  const ScalarType type = accumulate_type(input);
  const auto data_of = [](const std::optional<Tensor>& tensor) {
    return tensor ? tensor->const_data_ptr() : nullptr;
  };
  const auto& [weight, pixel_weight, image_factor, offset, noise_seed] = tensors;
  CrossEntropyParams p{};
  p.map = p.grad_map = map_of("input", input, options, !image_factor);
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
  if (image_factor)
    check_dense("image_factor", *image_factor, {input.size(0), input.size(1)}, type, input);
  if (offset) check_dense("offset", *offset, {input.size(1)}, type, input);
  if (noise_seed) check_dense("noise_seed", *noise_seed, {}, ScalarType::Long, input);
  if (options.noise != NoiseKind::none && !(offset && noise_seed))
    fail("noise_seed: expected one, and an offset, for logits with noise");
  p.input = input.const_data_ptr();
  p.target = target.const_data_ptr();
  p.weight = data_of(weight);
  p.pixel_weight = data_of(pixel_weight);
  p.modulation = {options.modulation, options.modulation_rate, options.modulation_peak,
                  options.detach_modulation, data_of(image_factor)};
  p.adjustment = {data_of(offset),          options.logit_scale,
                  options.offset_on_target, options.noise,
                  options.noise_sigma,      static_cast<const int64_t*>(data_of(noise_seed))};
  p.ignore_index = options.ignore_index;
  p.label_smoothing = options.label_smoothing;
  return p;
}

// Finds room for the gradients that are wanted: returns fresh tensors, empty ones for the others
// and for what is written over the logits.
template <class Backend>
std::pair<Tensor, Tensor> gradients_for(CrossEntropyParams& p, const Tensor& input,
                                        const Tensor& target, const CrossEntropyOptions& options) {
  const ScalarType type = accumulate_type(input);
  const bool apart = options.grad_input && !options.overwrites;
  Tensor of_input = apart ? allocate_like(input) : allocate(input, {0}, input.scalar_type());
  Tensor of_weight = options.grad_pixel_weight ? allocate(input, target.sizes(), type)
                                               : allocate(input, {0}, type);
  if (options.overwrites) {
    if (options.interpolate) fail(kNotOverwritten);
    p.grad_input = input.mutable_data_ptr();
  }
  if (apart) {
    p.grad_input = of_input.mutable_data_ptr();
    p.grad_map = map_of("gradient", of_input, options, !p.modulation.image_factor);
    // Kernels with a fast traversal use it for both sides or for neither.
    if (p.grad_map.layout != p.map.layout) p.map.layout = p.grad_map.layout = Layout::strided;
    Backend::prepare(p.grad_input, input.numel() * int64_t(input.element_size()));
  }
  if (options.grad_pixel_weight) p.grad_pixel_weight = of_weight.mutable_data_ptr();
  return {of_input, of_weight};
}

template <class Backend, class Plan>
void launch(const Backend& backend, const Plan& plan, CrossEntropyParams& p, const Tensor& input) {
  const Tensor scratch = allocate(input, {plan.scratch_bytes}, ScalarType::Byte);
  p.scratch = scratch.mutable_data_ptr();
  backend.launch(plan, p);
}

// Returns the loss, its normalizer and the gradients of a scalar loss; where no gradient is wanted
// an empty tensor.
template <class Backend, bool kOverwrites>
std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_forward(
    const Tensor& input, const Tensor& target, std::optional<Tensor> weight,
    std::optional<Tensor> pixel_weight, int64_t ignore_index, int64_t reduction,
    double label_smoothing, bool interpolate, bool align_corners, bool grad_input,
    bool grad_pixel_weight, std::optional<Tensor> image_factor, std::optional<Tensor> offset,
    std::optional<Tensor> noise_seed, int64_t modulation, double modulation_rate,
    double modulation_peak, bool detach_modulation, double logit_scale, bool offset_on_target,
    int64_t noise, double noise_sigma) {
  const CrossEntropyOptions options{
      ignore_index,     Reduction(reduction), label_smoothing,   interpolate,
      align_corners,    grad_input,           grad_pixel_weight, ModulationKind(modulation),
      modulation_rate,  modulation_peak,      detach_modulation, logit_scale,
      offset_on_target, NoiseKind(noise),     noise_sigma,       kOverwrites};
  const Backend backend(input);
  CrossEntropyParams p =
      params_of(input, target, {weight, pixel_weight, image_factor, offset, noise_seed}, options);
  auto [of_input, of_weight] = gradients_for<Backend>(p, input, target, options);
  Tensor normalizer = normalizer_of(backend, class_targets_of(p), target, options.reduction);
  if (divides(options.reduction))
    p.normalizer = static_cast<const double*>(normalizer.const_data_ptr());
  const auto plan = backend.plan(p);
  Tensor loss = loss_of(backend, plan, p, input, target, options.reduction,
                        [&] { launch(backend, plan, p, input); });
  return {loss, normalizer, of_input, of_weight};
}

// The gradients, recomputed from the logits: of a loss per pixel, or of a scalar loss of fp16.
// grad_output is the gradient that flows into the result, normalizer what the loss was divided by.
template <class Backend, bool kOverwrites>
std::tuple<Tensor, Tensor> cross_entropy_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& target,
    std::optional<Tensor> weight, std::optional<Tensor> pixel_weight, const Tensor& normalizer,
    int64_t ignore_index, int64_t reduction, double label_smoothing, bool interpolate,
    bool align_corners, bool grad_input, bool grad_pixel_weight, std::optional<Tensor> image_factor,
    std::optional<Tensor> offset, std::optional<Tensor> noise_seed, int64_t modulation,
    double modulation_rate, double modulation_peak, bool detach_modulation, double logit_scale,
    bool offset_on_target, int64_t noise, double noise_sigma) {
  const CrossEntropyOptions options{
      ignore_index,     Reduction(reduction), label_smoothing,   interpolate,
      align_corners,    grad_input,           grad_pixel_weight, ModulationKind(modulation),
      modulation_rate,  modulation_peak,      detach_modulation, logit_scale,
      offset_on_target, NoiseKind(noise),     noise_sigma,       kOverwrites};
  const Backend backend(input);
  CrossEntropyParams p =
      params_of(input, target, {weight, pixel_weight, image_factor, offset, noise_seed}, options);
  read_upstream(p, grad_output, normalizer, input, target, options.reduction);
  auto [of_input, of_weight] = gradients_for<Backend>(p, input, target, options);
  if (grad_input || grad_pixel_weight) launch(backend, backend.plan(p), p, input);
  return {of_input, of_weight};
}

}  // namespace segunc
