// What the kernels of Dice and cross-entropy read and write. N images, C classes; `source` are the
// spatial sizes of the logits, `size` those of the target. They differ only where logits are
// interpolated. Images have tables of their own, or share one: M is N or 1.
#pragma once
#include <cstdint>

#include "../common/class_map.h"
#include "../common/element.h"

namespace segunc {

// Sums over the valid pixels: of m(p_c) (math/dice.h), of [y = c] and of p_c [y = c].
enum DiceSum { kPredicted, kLabelled, kCommon, kDiceSums };
// Derivatives of the loss by the first and the last of these.
enum DiceSlope { kByPredicted, kByCommon, kDiceSlopes };

// A is float, or double for double logits.
struct DiceParams {
  const void* input;         // [N, C, *source] of dtype, laid out as map
  const void* target;        // [N, *size] of target_type, contiguous
  const void* weight;        // [C] of A, or null: of the cross-entropy
  const void* pixel_weight;  // [N, *size] of A, contiguous, or null: of the cross-entropy
  ClassMap map, grad_map;    // of the logits
  Interpolation interpolation;
  Dtype dtype;
  IndexType target_type;
  bool by_image;  // whether images have tables of their own
  bool squared;   // whether m(p) is p^2
  int64_t ignore_index;
  double label_smoothing;  // of the cross-entropy
  // The first target outside [0, C) that is not ignore_index. CPU: its pixel's index in
  // [0, N * product of size), the lowest one wins. CUDA: host-mapped, {1, the value}; the pixel's
  // loss is NaN.
  int64_t* bad_target;

  // Of the sums.
  bool cross_entropy;  // whether its sum is wanted, else it is 0
  double* partial;     // as many as the backend asks for
  double* sums;        // [M, kDiceSums, C]
  double* surprise;    // [1], the sum of the pixels' cross-entropies

  // Of the gradient: of the cross-entropy with the factor of each pixel
  //   k_p = pixel_weight_p * factor * upstream.
  const double* coefficients;  // [M, kDiceSlopes, C]
  const double* factor;        // [1]
  const void* upstream;        // [1] of A, of the whole loss
  void* grad_input;            // [N, C, *source] of dtype, laid out as grad_map, or null
  void* grad_pixel_weight;     // [N, *size] of A, or null
  void* scratch;               // as many bytes as the backend asks for
};

}  // namespace segunc
