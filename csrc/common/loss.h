// What losses are divided by, and how their kernels' results become a tensor and their gradients
// come back: the same for every loss of pixels.
#pragma once
#include "reduction.h"
#include "tensors.h"

namespace segunc {

// What the normalizer reads of a loss of several classes.
template <class Params>
NormalizerParams class_targets_of(const Params& p) {
  NormalizerParams of{};
  of.target = p.target, of.target_type = p.target_type;
  of.weight = p.weight, of.dtype = p.dtype;
  of.classes = p.map.classes, of.ignore_index = p.ignore_index;
  return of;
}

// The sum of the valid pixels' class weights, all pixels, all images or 1. of: what is read for the
// first.
template <class Backend>
Tensor normalizer_of(const Backend& backend, NormalizerParams of, const Tensor& target,
                     Reduction reduction) {
  Tensor normalizer = allocate(target, {}, ScalarType::Double);
  if (reduction == Reduction::mean) {
    of.count = target.numel();
    of.partials = backend.normalizer_partials(of);
    Tensor partial = allocate(target, {of.partials}, ScalarType::Double);
    of.partial = static_cast<double*>(partial.mutable_data_ptr());
    backend.normalizer(of, static_cast<double*>(normalizer.mutable_data_ptr()));
  } else {
    backend.fill(normalizer, reduction == Reduction::mean_all      ? double(target.numel())
                             : reduction == Reduction::mean_images ? double(target.size(0))
                                                                   : 1.0);
  }
  return normalizer;
}

// Launches what computes the loss: returns it for every pixel of target, or reduced. p has the
// normalizer where it is divided.
template <class Backend, class Plan, class Params, class Launch>
Tensor loss_of(const Backend& backend, const Plan& plan, Params& p, const Tensor& input,
               const Tensor& target, Reduction reduction, const Launch& launch) {
  const ScalarType type = accumulate_type(input);
  if (reduction == Reduction::none) {
    Tensor loss = allocate(input, target.sizes(), type);
    p.loss = loss.mutable_data_ptr();
    launch();
    return loss;
  }
  Tensor loss = allocate(input, {}, type);
  Tensor partial = allocate(input, {plan.partials}, ScalarType::Double);
  p.partial = static_cast<double*>(partial.mutable_data_ptr());
  launch();
  backend.finish_loss(p.partial, plan.partials, p.normalizer, loss.mutable_data_ptr(), p.dtype);
  return loss;
}

// What the backward of a loss reads beside its inputs: the gradient that flows into the result, and
// what the loss was divided by.
template <class Params>
void read_upstream(Params& p, const Tensor& grad_output, const Tensor& normalizer,
                   const Tensor& input, const Tensor& target, Reduction reduction) {
  const std::vector<int64_t> scalar;
  p.upstream_is_scalar = reduction != Reduction::none;
  check_dense("grad_output", grad_output, p.upstream_is_scalar ? Sizes(scalar) : target.sizes(),
              accumulate_type(input), input);
  p.upstream = grad_output.const_data_ptr();
  if (divides(reduction)) {
    check_dense("normalizer", normalizer, scalar, ScalarType::Double, input);
    p.normalizer = static_cast<const double*>(normalizer.const_data_ptr());
  }
}

}  // namespace segunc
