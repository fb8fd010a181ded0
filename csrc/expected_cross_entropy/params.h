// What the kernels of expected cross-entropy read and write. N images, C classes, P pixels, S
// draws.
#pragma once
#include <cstdint>

#include "../common/class_map.h"
#include "../common/element.h"

namespace segunc {

// A is float, or double for double logits. Scales are the diagonal of the logits' factor, K = C, or
// the rows of its lower triangle, K = C (C + 1) / 2. The gradient of pixel p has the factor
//   k_p = pixel_weight_p * upstream_p / normalizer     (absent factors are 1).
struct ExpectedCrossEntropyParams {
  const void* mean;          // [N, C, P] of dtype, laid out as map
  const void* scale;         // [N, K, P] of dtype, laid out as scale_map
  const void* target;        // [N, P] of target_type, contiguous
  const void* weight;        // [C] of A, or null
  const void* pixel_weight;  // [N, P] of A, contiguous, or null
  const void* upstream;      // [N, P] of A, or [1] if upstream_is_scalar, or null
  const double* normalizer;  // [1] or null: the gradient is divided by it
  const int64_t* seed;       // [1]
  void* loss;                // [N, P] of A, or null
  double* partial;           // [partials] sums of the loss in a fixed order, or null
  void* grad_mean;           // [N, C, P] of dtype, laid out as grad_map, or null
  void* grad_scale;          // [N, K, P] of dtype, laid out as grad_scale_map, or null
  void* grad_pixel_weight;   // [N, P] of A, or null
  ClassMap map, grad_map;    // of the mean
  ClassMap scale_map, grad_scale_map;
  Dtype dtype;
  IndexType target_type;
  bool upstream_is_scalar;
  bool antithetic;  // draws 2k and 2k + 1 are eps and -eps; there is an even number of them
  int64_t draws;    // S
  int64_t ignore_index;
  // The first target outside [0, C) that is not ignore_index. CPU: its pixel's index in [0, N * P),
  // the lowest one wins. CUDA: host-mapped, {1, the value}; the pixel's loss is NaN.
  int64_t* bad_target;

  SEGUNC_HD bool is_triangular() const { return scale_map.classes != map.classes; }
  SEGUNC_HD bool makes_gradients() const { return grad_mean || grad_scale; }
  // Normal numbers of a pixel and class.
  SEGUNC_HD int64_t numbers() const { return antithetic ? draws / 2 : draws; }
};

}  // namespace segunc
