// Cross-entropy as torch sees it: checks, allocation, call. A template over the backend, which
// launches the kernels (see register_cpu.cpp and register_cuda.cpp).
#pragma once
#include <tuple>

#include "../common/tensors.h"
#include "params.h"

namespace segunc {

inline CrossEntropyParams cross_entropy_params(const Tensor& input, const Tensor& target,
                                               const std::optional<Tensor>& weight,
                                               const std::optional<Tensor>& pixel_weight,
                                               int64_t ignore_index, double label_smoothing) {
  const ScalarType type = accumulate_type(input);
  CrossEntropyParams p{};
  p.map = p.grad_map = class_map_of("input", input, true);
  p.dtype = dtype_of("input", input);
  p.target_type = index_type_of("target", target);
  check_dense("target", target, without_classes(input), target.scalar_type(), input);
  if (weight) check_dense("weight", *weight, {input.size(1)}, type, input);
  if (pixel_weight) check_dense("pixel_weight", *pixel_weight, target.sizes(), type, input);
  p.input = input.const_data_ptr();
  p.target = target.const_data_ptr();
  p.weight = weight ? weight->const_data_ptr() : nullptr;
  p.pixel_weight = pixel_weight ? pixel_weight->const_data_ptr() : nullptr;
  p.ignore_index = ignore_index;
  p.label_smoothing = label_smoothing;
  return p;
}

// Allocates the gradients that are wanted, empty tensors for the others.
template <class Backend>
std::pair<Tensor, Tensor> allocate_gradients(CrossEntropyParams& p, const Tensor& input,
                                             const Tensor& target, bool grad_input,
                                             bool grad_pixel_weight) {
  Tensor of_input = grad_input ? allocate_like(input) : allocate(input, {0}, input.scalar_type());
  Tensor of_weight = grad_pixel_weight ? allocate(input, target.sizes(), accumulate_type(input))
                                       : allocate(input, {0}, accumulate_type(input));
  if (grad_input) {
    p.grad_input = of_input.mutable_data_ptr();
    p.grad_map = class_map_of("gradient", of_input, true);
    // Kernels with a fast traversal use it for both sides or for neither.
    if (p.grad_map.layout != p.map.layout) p.map.layout = p.grad_map.layout = Layout::strided;
    Backend::prepare(p.grad_input, input.numel() * int64_t(input.element_size()));
  }
  if (grad_pixel_weight) p.grad_pixel_weight = of_weight.mutable_data_ptr();
  return {of_input, of_weight};
}

// Returns the loss, its normalizer and the gradients of a scalar loss; where no gradient is wanted
// an empty tensor.
template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_forward(
    const Tensor& input, const Tensor& target, std::optional<Tensor> weight,
    std::optional<Tensor> pixel_weight, int64_t ignore_index, int64_t reduction_index,
    double label_smoothing, bool grad_input, bool grad_pixel_weight) {
  const Backend backend(input);
  const auto reduction = Reduction(reduction_index);
  const ScalarType type = accumulate_type(input);
  CrossEntropyParams p =
      cross_entropy_params(input, target, weight, pixel_weight, ignore_index, label_smoothing);
  auto [of_input, of_weight] =
      allocate_gradients<Backend>(p, input, target, grad_input, grad_pixel_weight);

  const bool divides = reduction == Reduction::mean || reduction == Reduction::mean_all;
  Tensor normalizer = allocate(input, {}, ScalarType::Double);
  auto* divisor = static_cast<double*>(normalizer.mutable_data_ptr());
  if (reduction == Reduction::mean) {
    NormalizerParams n{p.target,      p.weight,       nullptr,       target.numel(),
                       p.map.classes, p.ignore_index, p.target_type, p.dtype};
    Tensor partial = allocate(input, {backend.normalizer_partials(n)}, ScalarType::Double);
    n.partial = static_cast<double*>(partial.mutable_data_ptr());
    backend.normalizer(n, divisor);
  } else {
    backend.fill(normalizer, reduction == Reduction::mean_all ? double(target.numel()) : 1.0);
  }
  if (divides) p.normalizer = divisor;

  if (reduction == Reduction::none) {
    Tensor loss = allocate(input, target.sizes(), type);
    p.loss = loss.mutable_data_ptr();
    backend.cross_entropy(p);
    return {loss, normalizer, of_input, of_weight};
  }
  Tensor loss = allocate(input, {}, type);
  const int64_t partials = backend.cross_entropy_partials(p);
  Tensor partial = allocate(input, {partials}, ScalarType::Double);
  p.partial = static_cast<double*>(partial.mutable_data_ptr());
  backend.cross_entropy(p);
  backend.finish_loss(p.partial, partials, p.normalizer, loss.mutable_data_ptr(), p.dtype);
  return {loss, normalizer, of_input, of_weight};
}

// The gradients, recomputed from the logits: of a loss per pixel, or of a scalar loss of fp16.
template <class Backend>
std::tuple<Tensor, Tensor> cross_entropy_backward(const Tensor& grad_output, const Tensor& input,
                                                  const Tensor& target,
                                                  std::optional<Tensor> weight,
                                                  std::optional<Tensor> pixel_weight,
                                                  const Tensor& normalizer, int64_t ignore_index,
                                                  int64_t reduction_index, double label_smoothing,
                                                  bool grad_input, bool grad_pixel_weight) {
  const Backend backend(input);
  const auto reduction = Reduction(reduction_index);
  CrossEntropyParams p =
      cross_entropy_params(input, target, weight, pixel_weight, ignore_index, label_smoothing);
  p.upstream_is_scalar = reduction != Reduction::none;
  const std::vector<int64_t> scalar;
  check_dense("grad_output", grad_output, p.upstream_is_scalar ? Sizes(scalar) : target.sizes(),
              accumulate_type(input), input);
  p.upstream = grad_output.const_data_ptr();
  if (reduction == Reduction::mean || reduction == Reduction::mean_all) {
    check_dense("normalizer", normalizer, scalar, ScalarType::Double, input);
    p.normalizer = static_cast<const double*>(normalizer.const_data_ptr());
  }
  auto [of_input, of_weight] =
      allocate_gradients<Backend>(p, input, target, grad_input, grad_pixel_weight);
  if (grad_input || grad_pixel_weight) backend.cross_entropy(p);
  return {of_input, of_weight};
}

}  // namespace segunc
