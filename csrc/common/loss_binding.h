// What the bindings of cross-entropies share: their tensors, and the way from losses per pixel to
// the result. Params has the pointers of CrossEntropyParams.
#pragma once
#include <tuple>
#include <utility>

#include "reduction.h"
#include "tensors.h"

namespace segunc {

// Everything but the maps and the sizes of the target, which the caller has checked.
template <class Params>
void set_loss_tensors(Params& p, const Tensor& input, const Tensor& target,
                      const std::optional<Tensor>& weight,
                      const std::optional<Tensor>& pixel_weight, int64_t ignore_index,
                      double label_smoothing) {
  const ScalarType type = accumulate_type(input);
  p.dtype = dtype_of("input", input);
  p.target_type = index_type_of("target", target);
  check_dense("target", target, target.sizes(), target.scalar_type(), input);
  if (weight) check_dense("weight", *weight, {input.size(1)}, type, input);
  if (pixel_weight) check_dense("pixel_weight", *pixel_weight, target.sizes(), type, input);
  p.input = input.const_data_ptr();
  p.target = target.const_data_ptr();
  p.weight = weight ? weight->const_data_ptr() : nullptr;
  p.pixel_weight = pixel_weight ? pixel_weight->const_data_ptr() : nullptr;
  p.ignore_index = ignore_index;
  p.label_smoothing = label_smoothing;
}

// Allocates the gradients that are wanted, empty tensors for the others. map_of: as for p.map.
template <class Backend, class Params, class MapOf>
std::pair<Tensor, Tensor> allocate_gradients(Params& p, const Tensor& input, const Tensor& target,
                                             bool grad_input, bool grad_pixel_weight,
                                             MapOf map_of) {
  Tensor of_input = grad_input ? allocate_like(input) : allocate(input, {0}, input.scalar_type());
  Tensor of_weight = grad_pixel_weight ? allocate(input, target.sizes(), accumulate_type(input))
                                       : allocate(input, {0}, accumulate_type(input));
  if (grad_input) {
    p.grad_input = of_input.mutable_data_ptr();
    p.grad_map = map_of("gradient", of_input);
    // Kernels with a fast traversal use it for both sides or for neither.
    if (p.grad_map.layout != p.map.layout) p.map.layout = p.grad_map.layout = Layout::strided;
    Backend::prepare(p.grad_input, input.numel() * int64_t(input.element_size()));
  }
  if (grad_pixel_weight) p.grad_pixel_weight = of_weight.mutable_data_ptr();
  return {of_input, of_weight};
}

// Returns the loss, its normalizer and the given gradients of a scalar loss. partials_of() counts
// the partial sums; run() launches the kernels over p.
template <class Backend, class Params, class PartialsOf, class Run>
std::tuple<Tensor, Tensor, Tensor, Tensor> reduced_loss(const Backend& backend, Params& p,
                                                        const Tensor& input, const Tensor& target,
                                                        Reduction reduction,
                                                        std::pair<Tensor, Tensor> gradients,
                                                        PartialsOf partials_of, Run run) {
  const ScalarType type = accumulate_type(input);
  auto& [of_input, of_weight] = gradients;
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
    run();
    return {loss, normalizer, of_input, of_weight};
  }
  Tensor loss = allocate(input, {}, type);
  const int64_t partials = partials_of();
  Tensor partial = allocate(input, {partials}, ScalarType::Double);
  p.partial = static_cast<double*>(partial.mutable_data_ptr());
  run();
  backend.finish_loss(p.partial, partials, p.normalizer, loss.mutable_data_ptr(), p.dtype);
  return {loss, normalizer, of_input, of_weight};
}

// The gradient that flows into the result, and what the result was divided by.
template <class Params>
void set_upstream(Params& p, const Tensor& grad_output, const Tensor& normalizer,
                  Reduction reduction, const Tensor& input, const Tensor& target) {
  p.upstream_is_scalar = reduction != Reduction::none;
  const std::vector<int64_t> scalar;
  check_dense("grad_output", grad_output, p.upstream_is_scalar ? Sizes(scalar) : target.sizes(),
              accumulate_type(input), input);
  p.upstream = grad_output.const_data_ptr();
  if (reduction == Reduction::mean || reduction == Reduction::mean_all) {
    check_dense("normalizer", normalizer, scalar, ScalarType::Double, input);
    p.normalizer = static_cast<const double*>(normalizer.const_data_ptr());
  }
}

}  // namespace segunc
