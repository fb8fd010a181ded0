// Expected cross-entropy as torch sees it: checks, allocation, call. A template over the backend,
// which plans and launches the kernels (see register_cpu.cpp and register_cuda.cpp).
#pragma once
#include <tuple>
#include <utility>

#include "../common/loss.h"
#include "../common/tensors.h"
#include "params.h"

namespace segunc {

// Of a call, beside its tensors.
struct ExpectedCrossEntropyOptions {
  int64_t ignore_index;
  Reduction reduction;
  int64_t draws;
  bool antithetic;
  bool grad_mean, grad_scale, grad_pixel_weight;  // the gradients that are wanted
};

// Of mean, scale and pixel_weight, empty where not wanted.
using ExpectedCrossEntropyGradients = std::tuple<Tensor, Tensor, Tensor>;

inline ExpectedCrossEntropyParams params_of(const Tensor& mean, const Tensor& scale,
                                            const Tensor& target,
                                            const std::optional<Tensor>& weight,
                                            const std::optional<Tensor>& pixel_weight,
                                            const Tensor& seed,
                                            const ExpectedCrossEntropyOptions& options) {
  const ScalarType type = accumulate_type(mean);
  ExpectedCrossEntropyParams p{};
  p.map = p.grad_map = class_map_of("mean", mean, true);
  p.scale_map = p.grad_scale_map = class_map_of("scale", scale, true);
  p.dtype = dtype_of("mean", mean);
  p.target_type = index_type_of("target", target);
  const std::vector<int64_t> pixels = without_classes(mean);
  check_dense("target", target, pixels, target.scalar_type(), mean);
  const int64_t classes = mean.size(1), channels = scale.size(1);
  if (without_classes(scale) != pixels ||
      (channels != classes && channels != classes * (classes + 1) / 2))
    fail("scale: expected " + std::to_string(classes) + " channels, or those of a triangle, and " +
         "the pixels of mean " + to_string(mean.sizes()) + ", got " + to_string(scale.sizes()));
  if (scale.scalar_type() != mean.scalar_type()) fail("scale: expected mean's type");
  if (scale.device() != mean.device()) fail("scale: expected mean's device");
  if (classes < 2) fail("mean: expected at least 2 classes, got " + std::to_string(classes));
  if (options.draws < 1 || (options.antithetic && options.draws % 2))
    fail("num_draws: expected at least 1, and an even number of antithetic ones, got " +
         std::to_string(options.draws));
  if (weight) check_dense("weight", *weight, {classes}, type, mean);
  if (pixel_weight) check_dense("pixel_weight", *pixel_weight, pixels, type, mean);
  check_dense("seed", seed, {}, ScalarType::Long, mean);
  p.mean = mean.const_data_ptr();
  p.scale = scale.const_data_ptr();
  p.target = target.const_data_ptr();
  p.weight = weight ? weight->const_data_ptr() : nullptr;
  p.pixel_weight = pixel_weight ? pixel_weight->const_data_ptr() : nullptr;
  p.seed = static_cast<const int64_t*>(seed.const_data_ptr());
  p.antithetic = options.antithetic;
  p.draws = options.draws;
  p.ignore_index = options.ignore_index;
  return p;
}

// Finds room for the gradients that are wanted.
template <class Backend>
ExpectedCrossEntropyGradients gradients_for(ExpectedCrossEntropyParams& p, const Tensor& mean,
                                            const Tensor& scale, const Tensor& target,
                                            const ExpectedCrossEntropyOptions& options) {
  const ScalarType type = accumulate_type(mean);
  const auto like = [](const Tensor& tensor, bool wanted, void*& data, ClassMap& map) {
    if (!wanted) return allocate(tensor, {0}, tensor.scalar_type());
    Tensor fresh = allocate_like(tensor);
    data = fresh.mutable_data_ptr();
    map = class_map_of("gradient", fresh, true);
    Backend::prepare(data, tensor.numel() * int64_t(tensor.element_size()));
    return fresh;
  };
  Tensor of_mean = like(mean, options.grad_mean, p.grad_mean, p.grad_map);
  Tensor of_scale = like(scale, options.grad_scale, p.grad_scale, p.grad_scale_map);
  Tensor of_weight =
      options.grad_pixel_weight ? allocate(mean, target.sizes(), type) : allocate(mean, {0}, type);
  if (options.grad_pixel_weight) p.grad_pixel_weight = of_weight.mutable_data_ptr();
  return {of_mean, of_scale, of_weight};
}

// Returns the loss, its normalizer and the gradients of a scalar loss; where no gradient is wanted
// an empty tensor.
template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> expected_cross_entropy_forward(
    const Tensor& mean, const Tensor& scale, const Tensor& target, std::optional<Tensor> weight,
    std::optional<Tensor> pixel_weight, const Tensor& seed, int64_t ignore_index, int64_t reduction,
    int64_t num_draws, bool antithetic, bool grad_mean, bool grad_scale, bool grad_pixel_weight) {
  const ExpectedCrossEntropyOptions options{
      ignore_index, Reduction(reduction), num_draws,        antithetic,
      grad_mean,    grad_scale,           grad_pixel_weight};
  const Backend backend(mean);
  ExpectedCrossEntropyParams p =
      params_of(mean, scale, target, weight, pixel_weight, seed, options);
  auto [of_mean, of_scale, of_weight] = gradients_for<Backend>(p, mean, scale, target, options);
  Tensor normalizer = normalizer_of(backend, class_targets_of(p), target, options.reduction);
  if (divides(options.reduction))
    p.normalizer = static_cast<const double*>(normalizer.const_data_ptr());
  const auto plan = backend.plan(p);
  Tensor loss =
      loss_of(backend, plan, p, mean, target, options.reduction, [&] { backend.launch(plan, p); });
  return {loss, normalizer, of_mean, of_scale, of_weight};
}

// The gradients, recomputed: of a loss per pixel, or of a scalar loss of fp16. grad_output is the
// gradient that flows into the result, normalizer what the loss was divided by.
template <class Backend>
ExpectedCrossEntropyGradients expected_cross_entropy_backward(
    const Tensor& grad_output, const Tensor& mean, const Tensor& scale, const Tensor& target,
    std::optional<Tensor> weight, std::optional<Tensor> pixel_weight, const Tensor& seed,
    const Tensor& normalizer, int64_t ignore_index, int64_t reduction, int64_t num_draws,
    bool antithetic, bool grad_mean, bool grad_scale, bool grad_pixel_weight) {
  const ExpectedCrossEntropyOptions options{
      ignore_index, Reduction(reduction), num_draws,        antithetic,
      grad_mean,    grad_scale,           grad_pixel_weight};
  const Backend backend(mean);
  ExpectedCrossEntropyParams p =
      params_of(mean, scale, target, weight, pixel_weight, seed, options);
  read_upstream(p, grad_output, normalizer, mean, target, options.reduction);
  ExpectedCrossEntropyGradients gradients = gradients_for<Backend>(p, mean, scale, target, options);
  if (grad_mean || grad_scale || grad_pixel_weight) backend.launch(backend.plan(p), p);
  return gradients;
}

}  // namespace segunc
