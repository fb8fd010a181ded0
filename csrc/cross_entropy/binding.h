// Cross-entropy as torch sees it: checks, allocation, call. A template over the backend, which
// launches the kernels (see register_cpu.cpp and register_cuda.cpp).
#pragma once
#include "../common/loss_binding.h"
#include "params.h"

namespace segunc {

inline ClassMap folded_map_of(const char* name, const Tensor& tensor) {
  return class_map_of(name, tensor, true);
}

inline CrossEntropyParams cross_entropy_params(const Tensor& input, const Tensor& target,
                                               const std::optional<Tensor>& weight,
                                               const std::optional<Tensor>& pixel_weight,
                                               int64_t ignore_index, double label_smoothing) {
  CrossEntropyParams p{};
  p.map = p.grad_map = folded_map_of("input", input);
  check_shape("target", target, without_classes(input));
  set_loss_tensors(p, input, target, weight, pixel_weight, ignore_index, label_smoothing);
  return p;
}

// Returns the loss, its normalizer and the gradients of a scalar loss; where no gradient is wanted
// an empty tensor.
template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_forward(
    const Tensor& input, const Tensor& target, std::optional<Tensor> weight,
    std::optional<Tensor> pixel_weight, int64_t ignore_index, int64_t reduction,
    double label_smoothing, bool grad_input, bool grad_pixel_weight) {
  const Backend backend(input);
  CrossEntropyParams p =
      cross_entropy_params(input, target, weight, pixel_weight, ignore_index, label_smoothing);
  auto gradients =
      allocate_gradients<Backend>(p, input, target, grad_input, grad_pixel_weight, folded_map_of);
  return reduced_loss(
      backend, p, input, target, Reduction(reduction), gradients,
      [&] { return backend.cross_entropy_partials(p); }, [&] { backend.cross_entropy(p); });
}

// The gradients, recomputed from the logits: of a loss per pixel, or of a scalar loss of fp16.
template <class Backend>
std::tuple<Tensor, Tensor> cross_entropy_backward(const Tensor& grad_output, const Tensor& input,
                                                  const Tensor& target,
                                                  std::optional<Tensor> weight,
                                                  std::optional<Tensor> pixel_weight,
                                                  const Tensor& normalizer, int64_t ignore_index,
                                                  int64_t reduction, double label_smoothing,
                                                  bool grad_input, bool grad_pixel_weight) {
  const Backend backend(input);
  CrossEntropyParams p =
      cross_entropy_params(input, target, weight, pixel_weight, ignore_index, label_smoothing);
  set_upstream(p, grad_output, normalizer, Reduction(reduction), input, target);
  auto [of_input, of_weight] =
      allocate_gradients<Backend>(p, input, target, grad_input, grad_pixel_weight, folded_map_of);
  if (grad_input || grad_pixel_weight) backend.cross_entropy(p);
  return {of_input, of_weight};
}

// ---- interpolated logits ----

inline UpsampledCrossEntropyParams upsampled_cross_entropy_params(
    const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& pixel_weight, int64_t ignore_index, double label_smoothing,
    bool align_corners) {
  UpsampledCrossEntropyParams p{};
  p.map = p.grad_map = unmerged_map_of("input", input);
  p.interpolation = interpolation_to("input", input, p.map, target.sizes(), align_corners);
  set_loss_tensors(p, input, target, weight, pixel_weight, ignore_index, label_smoothing);
  return p;
}

template <class Backend>
void run_upsampled_cross_entropy(const Backend& backend, UpsampledCrossEntropyParams& p,
                                 const Tensor& input) {
  Tensor scratch = allocate(input, {backend.scratch_bytes(p)}, ScalarType::Byte);
  p.scratch = scratch.mutable_data_ptr();
  backend.upsampled_cross_entropy(p);
}

// Returns the loss, its normalizer and the gradients of a scalar loss; where no gradient is wanted
// an empty tensor.
template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> upsampled_cross_entropy_forward(
    const Tensor& input, const Tensor& target, std::optional<Tensor> weight,
    std::optional<Tensor> pixel_weight, int64_t ignore_index, int64_t reduction,
    double label_smoothing, bool align_corners, bool grad_input, bool grad_pixel_weight) {
  const Backend backend(input);
  UpsampledCrossEntropyParams p = upsampled_cross_entropy_params(
      input, target, weight, pixel_weight, ignore_index, label_smoothing, align_corners);
  auto gradients =
      allocate_gradients<Backend>(p, input, target, grad_input, grad_pixel_weight, unmerged_map_of);
  return reduced_loss(
      backend, p, input, target, Reduction(reduction), gradients,
      [&] { return backend.upsampled_cross_entropy_partials(p); },
      [&] { run_upsampled_cross_entropy(backend, p, input); });
}

// The gradients, recomputed from the logits: of a loss per pixel, or of a scalar loss of fp16.
template <class Backend>
std::tuple<Tensor, Tensor> upsampled_cross_entropy_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& target,
    std::optional<Tensor> weight, std::optional<Tensor> pixel_weight, const Tensor& normalizer,
    int64_t ignore_index, int64_t reduction, double label_smoothing, bool align_corners,
    bool grad_input, bool grad_pixel_weight) {
  const Backend backend(input);
  UpsampledCrossEntropyParams p = upsampled_cross_entropy_params(
      input, target, weight, pixel_weight, ignore_index, label_smoothing, align_corners);
  set_upstream(p, grad_output, normalizer, Reduction(reduction), input, target);
  auto [of_input, of_weight] =
      allocate_gradients<Backend>(p, input, target, grad_input, grad_pixel_weight, unmerged_map_of);
  if (grad_input || grad_pixel_weight) run_upsampled_cross_entropy(backend, p, input);
  return {of_input, of_weight};
}

}  // namespace segunc
