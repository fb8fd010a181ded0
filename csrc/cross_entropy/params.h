// What the cross-entropy kernels read and write. N images, C classes; `source` are the spatial
// sizes of the logits, `size` those of the target. They differ only where logits are interpolated.
#pragma once
#include <cstdint>

#include "../common/class_map.h"
#include "../common/element.h"
#include "../math/modulation.h"
#include "../math/philox.h"

namespace segunc {

// A factor of a pixel's loss: by the probability of its class (math/modulation.h), by its class and
// image, or by both.
struct Modulation {
  ModulationKind kind;
  double rate, peak;         // 0 and 1 of no kind
  bool detached;             // no gradient goes through the first of these
  const void* image_factor;  // [N, C] of A, by the label, or null

  SEGUNC_HD bool used() const { return kind != ModulationKind::none || image_factor; }
};

// The logits that a loss is of: scale * z_c + offset_c, with the offset of the labelled class
// alone, or times |delta|, a random number of its own for each pixel and class.
struct Adjustment {
  const void* offset;  // [C] of A, or null: no adjustment
  double scale;
  bool on_target;
  NoiseKind noise;  // of delta, if it is random
  double sigma;
  const int64_t* seed;  // [1]
};

// A is float, or double for double logits. The gradient of target pixel p, which is sent to the
// source positions that p blends, has the factor
//   k_p = pixel_weight_p * upstream_p / normalizer     (absent factors are 1).
struct CrossEntropyParams {
  const void* input;         // [N, C, *source] of dtype, laid out as map
  const void* target;        // [N, *size] of target_type, contiguous
  const void* weight;        // [C] of A, or null
  const void* pixel_weight;  // [N, *size] of A, contiguous, or null
  const void* upstream;      // [N, *size] of A, or [1] if upstream_is_scalar, or null
  const double* normalizer;  // [1] or null: the gradient is divided by it
  void* loss;                // [N, *size] of A, or null
  double* partial;           // [partials] sums of the loss in a fixed order, or null
  void* grad_input;          // [N, C, *source] of dtype, laid out as grad_map, or null
  void* grad_pixel_weight;   // [N, *size] of A, or null
  void* scratch;             // as many bytes as the backend asks for
  ClassMap map, grad_map;    // of the logits
  Interpolation interpolation;
  Modulation modulation;
  Adjustment adjustment;
  Dtype dtype;
  IndexType target_type;
  bool upstream_is_scalar;
  int64_t ignore_index;
  double label_smoothing;
  // The first target outside [0, C) that is not ignore_index. CPU: its pixel's index in
  // [0, N * product of size), the lowest one wins. CUDA: host-mapped, {1, the value}; the pixel's
  // loss is NaN.
  int64_t* bad_target;
};

}  // namespace segunc
