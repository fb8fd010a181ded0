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

// What both losses have, that of classes and that of regions. A is float, or double for double
// logits.
struct OverlapParams {
  const void* input;         // [N, C, *source] of dtype, laid out as map
  const void* target;        // of target_type
  const void* pixel_weight;  // [N, *size] of A, contiguous, or null: of the cross-entropy
  ClassMap map, grad_map;    // of the logits
  Interpolation interpolation;
  Dtype dtype;
  bool by_image;  // whether images have tables of their own
  bool squared;   // whether m(p) is p^2
  // The first target that is none and not ignored: outside [0, C), or neither 0 nor 1. CPU: its
  // index in the target, the lowest one wins. CUDA: host-mapped, {1, the value}; the pixel's loss
  // is NaN.
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

// Of classes that exclude each other. target: [N, *size], contiguous.
struct DiceParams : OverlapParams {
  const void* weight;  // [C] of A, or null: of the cross-entropy
  IndexType target_type;
  int64_t ignore_index;
  double label_smoothing;  // of the cross-entropy
};

// Numbers that are 0 or 1.
enum class BinaryType : int { i64, i32, i16, u8, f64, f32, bf16, f16 };

// Of regions, each with a sigmoid of its own. target: [N, C, *size], its images contiguous and
// target_stride apart; no interpolation.
struct DiceBceParams : OverlapParams {
  const void* pos_weight;  // [C] of A, or null: of the cross-entropy where the target is 1
  const bool* mask;        // [N, *size], contiguous, or null: false where a pixel counts nothing
  BinaryType target_type;
  int64_t target_stride;  // elements
};

}  // namespace segunc
