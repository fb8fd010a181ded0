// What losses are divided by.
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

}  // namespace segunc
