// What the kernels of uncertain binary labels read and write. N images of P pixels; maps have one
// class.
#pragma once
#include <cstdint>

#include "../common/class_map.h"
#include "../common/element.h"

namespace segunc {

// A is float, or double for double means. The gradient of pixel p has the factor
//   k_p = pixel_weight_p * upstream_p / normalizer     (absent factors are 1).
struct LabelUncertaintyParams {
  const void* mean;                 // [N, P] of dtype, laid out as mean_map
  const void* log_variance;         // [N, P] of dtype, laid out as variance_map
  const void* target;               // [N, P] of target_type, contiguous
  const void* pixel_weight;         // [N, P] of A, contiguous, or null
  const bool* bootstrap;            // [N], whether an image's labels may flip, or null: all may
  const void* upstream;             // [N, P] of A, or [1] if upstream_is_scalar, or null
  const double* normalizer;         // [1] or null: the gradient is divided by it
  void* loss;                       // [N, P] of A, or null
  double* partial;                  // [partials] sums of the loss in a fixed order, or null
  void* grad_mean;                  // [N, P] of dtype, laid out as grad_mean_map, or null
  void* grad_log_variance;          // [N, P] of dtype, laid out as grad_variance_map, or null
  void* grad_pixel_weight;          // [N, P] of A, or null
  ClassMap mean_map, variance_map;  // of the same images and pixels
  ClassMap grad_mean_map, grad_variance_map;
  Dtype dtype;
  IndexType target_type;
  bool upstream_is_scalar;
  int64_t ignore_index;
  double threshold, uncertainty_weight, bootstrap_weight;
  bool detach_weight;
  // The first target that is neither 0, 1 nor ignore_index. CPU: its pixel's index in [0, N * P),
  // the lowest one wins. CUDA: host-mapped, {1, the value}; the pixel's loss is NaN.
  int64_t* bad_target;
};

}  // namespace segunc
