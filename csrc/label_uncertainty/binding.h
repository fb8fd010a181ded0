// The losses of uncertain binary labels as torch sees them: checks, allocation, call. Templates
// over the backend, which plans and launches the kernels (see register_cpu.cpp and
// register_cuda.cpp).
#pragma once
#include <tuple>

#include "../common/loss.h"
#include "../common/tensors.h"
#include "params.h"

namespace segunc {

// Those of mean, log-variance and pixel weight; empty where not wanted.
using LabelUncertaintyGradients = std::tuple<Tensor, Tensor, Tensor>;

// Of a call, beside its tensors.
struct LabelUncertaintyOptions {
  int64_t ignore_index;
  Reduction reduction;
  double threshold, uncertainty_weight, bootstrap_weight;
  bool detach_weight;
  bool grad_mean, grad_log_variance, grad_pixel_weight;  // the gradients that are wanted
};

inline LabelUncertaintyParams params_of(const Tensor& mean, const Tensor& log_variance,
                                        const Tensor& target,
                                        const std::optional<Tensor>& pixel_weight,
                                        const std::optional<Tensor>& bootstrap,
                                        const LabelUncertaintyOptions& options) {
  LabelUncertaintyParams p{};
  const bool folds_images = !bootstrap;
  p.mean_map = p.grad_mean_map = class_map_of("mean", mean, folds_images);
  p.variance_map = p.grad_variance_map = class_map_of("log_variance", log_variance, folds_images);
  if (mean.size(1) != 1) fail("mean: expected shape (N, 1, *), got " + to_string(mean.sizes()));
  check_shape("log_variance", log_variance, mean.sizes());
  p.dtype = dtype_of("mean", mean);
  if (log_variance.scalar_type() != mean.scalar_type()) fail("log_variance: expected mean's type");
  if (log_variance.device() != mean.device()) fail("log_variance: expected mean's device");
  p.target_type = index_type_of("target", target);
  check_dense("target", target, without_classes(mean), target.scalar_type(), mean);
  if (pixel_weight)
    check_dense("pixel_weight", *pixel_weight, target.sizes(), accumulate_type(mean), mean);
  if (bootstrap) check_dense("bootstrap", *bootstrap, {mean.size(0)}, ScalarType::Bool, mean);
  p.mean = mean.const_data_ptr();
  p.log_variance = log_variance.const_data_ptr();
  p.target = target.const_data_ptr();
  p.pixel_weight = pixel_weight ? pixel_weight->const_data_ptr() : nullptr;
  p.bootstrap = bootstrap ? static_cast<const bool*>(bootstrap->const_data_ptr()) : nullptr;
  p.ignore_index = options.ignore_index;
  p.threshold = options.threshold;
  p.uncertainty_weight = options.uncertainty_weight;
  p.bootstrap_weight = options.bootstrap_weight;
  p.detach_weight = options.detach_weight;
  return p;
}

// Finds room for the gradients that are wanted.
template <class Backend>
LabelUncertaintyGradients gradients_for(LabelUncertaintyParams& p, const Tensor& mean,
                                        const Tensor& log_variance, const Tensor& target,
                                        const LabelUncertaintyOptions& options) {
  const auto room_for = [&](const Tensor& leaf, bool wanted, void*& data, ClassMap& map) {
    if (!wanted) return allocate(leaf, {0}, leaf.scalar_type());
    Tensor gradient = allocate_like(leaf);
    data = gradient.mutable_data_ptr();
    map = class_map_of("gradient", gradient, !p.bootstrap);
    Backend::prepare(data, leaf.numel() * int64_t(leaf.element_size()));
    return gradient;
  };
  Tensor of_mean = room_for(mean, options.grad_mean, p.grad_mean, p.grad_mean_map);
  Tensor of_log_variance =
      room_for(log_variance, options.grad_log_variance, p.grad_log_variance, p.grad_variance_map);
  Tensor of_weight = allocate(mean, options.grad_pixel_weight ? target.sizes() : Sizes({0}),
                              accumulate_type(mean));
  if (options.grad_pixel_weight) p.grad_pixel_weight = of_weight.mutable_data_ptr();
  return {of_mean, of_log_variance, of_weight};
}

// Returns the loss, its normalizer and the gradients of a scalar loss.
template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> label_uncertainty_forward(
    const Tensor& mean, const Tensor& log_variance, const Tensor& target,
    std::optional<Tensor> pixel_weight, std::optional<Tensor> bootstrap, int64_t ignore_index,
    int64_t reduction, double threshold, double uncertainty_weight, double bootstrap_weight,
    bool detach_weight, bool grad_mean, bool grad_log_variance, bool grad_pixel_weight) {
  const LabelUncertaintyOptions options{
      ignore_index,       Reduction(reduction), threshold,
      uncertainty_weight, bootstrap_weight,     detach_weight,
      grad_mean,          grad_log_variance,    grad_pixel_weight};
  const Backend backend(mean);
  LabelUncertaintyParams p =
      params_of(mean, log_variance, target, pixel_weight, bootstrap, options);
  auto [of_mean, of_log_variance, of_weight] =
      gradients_for<Backend>(p, mean, log_variance, target, options);
  NormalizerParams of_targets{};
  of_targets.target = p.target, of_targets.target_type = p.target_type;
  of_targets.dtype = p.dtype, of_targets.classes = 2, of_targets.ignore_index = ignore_index;
  Tensor normalizer = normalizer_of(backend, of_targets, target, options.reduction);
  if (divides(options.reduction))
    p.normalizer = static_cast<const double*>(normalizer.const_data_ptr());
  const auto plan = backend.plan(p);
  Tensor loss =
      loss_of(backend, plan, p, mean, target, options.reduction, [&] { backend.launch(plan, p); });
  return {loss, normalizer, of_mean, of_log_variance, of_weight};
}

// The gradients, recomputed: of a loss per pixel, or of a scalar loss of fp16. grad_output is the
// gradient that flows into the result, normalizer what the loss was divided by.
template <class Backend>
LabelUncertaintyGradients label_uncertainty_backward(
    const Tensor& grad_output, const Tensor& mean, const Tensor& log_variance, const Tensor& target,
    std::optional<Tensor> pixel_weight, std::optional<Tensor> bootstrap, const Tensor& normalizer,
    int64_t ignore_index, int64_t reduction, double threshold, double uncertainty_weight,
    double bootstrap_weight, bool detach_weight, bool grad_mean, bool grad_log_variance,
    bool grad_pixel_weight) {
  const LabelUncertaintyOptions options{
      ignore_index,       Reduction(reduction), threshold,
      uncertainty_weight, bootstrap_weight,     detach_weight,
      grad_mean,          grad_log_variance,    grad_pixel_weight};
  const Backend backend(mean);
  LabelUncertaintyParams p =
      params_of(mean, log_variance, target, pixel_weight, bootstrap, options);
  read_upstream(p, grad_output, normalizer, mean, target, options.reduction);
  const LabelUncertaintyGradients gradients =
      gradients_for<Backend>(p, mean, log_variance, target, options);
  if (grad_mean || grad_log_variance || grad_pixel_weight) backend.launch(backend.plan(p), p);
  return gradients;
}

}  // namespace segunc
