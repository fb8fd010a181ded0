// What the counting kernels read, and the tables that they add to. N images, C classes, P pixels an
// image, B bins of confidence, U = kUncertaintyBins.
#pragma once
#include <array>
#include <cstdint>

#include "../common/class_map.h"
#include "../common/element.h"
#include "../math/counts.h"

namespace segunc {

enum CalibrationColumn { kBinPixels, kBinCorrect, kBinConfidence, kCalibrationColumns };
enum Score { kScorePixels, kBrierSum, kLikelihoodSum, kImpossible, kUndefined, kScores };
enum Outcome : uint8_t { kWrong = 0, kRight = 1, kIgnoredPixel = 2 };
enum PatchCount {
  kAccurateCertain,
  kAccurateUncertain,
  kInaccurateCertain,
  kInaccurateUncertain,
  kUndefinedPatch,
  kPatchCounts
};

// Added to, each null where it is not wanted. Sums are in units of 2^-24.
struct CountTables {
  int64_t* confusion;    // [C, C] pixels: row target, column prediction
  int64_t* uncertainty;  // [2, C, C] sums of it, and the pixels where it cannot be summed
  int64_t* calibration;  // [B + 1, 3] as CalibrationColumn; the last row: confidences that are none
  int64_t* scores;       // [5] as Score: impossible pixels have probability 0, undefined ones NaN
  int64_t* histogram;    // [2, U + 1] pixels: wrong, right; the last column as in uncertainty
  int64_t bins;          // B
};

// The tables one by one.
struct TableSpan {
  int64_t* data;
  int64_t size;
};
inline std::array<TableSpan, 5> spans_of(const CountTables& t, int64_t classes) {
  return {{{t.confusion, classes * classes},
           {t.uncertainty, 2 * classes * classes},
           {t.calibration, (t.bins + 1) * kCalibrationColumns},
           {t.scores, kScores},
           {t.histogram, 2 * (kUncertaintyBins + 1)}}};
}

// A is float, or double for double inputs.
struct CountsParams {
  const void* input;        // [N, C, Q] of dtype, laid out as map: logits, or probabilities
  const void* target;       // [N, P] of target_type, contiguous
  const void* uncertainty;  // [N, P] of A, contiguous, or null
  uint8_t* outcome;         // [N, P], overwritten, or null
  CountTables tables;
  ClassMap map;
  Interpolation interpolation;
  Dtype dtype;
  IndexType target_type;
  bool probabilities;
  int64_t ignore_index;
  // The first target outside [0, C) that is not ignore_index. CPU: its pixel's index in [0, N P),
  // the lowest one wins. CUDA: host-mapped, {1, the value}; the pixel is in no count.
  int64_t* bad_target;
};

// The same from maps of the prediction. There are no scores.
struct MapCountsParams {
  const void* prediction;   // [pixels] of prediction_type
  const void* confidence;   // [pixels] of A, or null
  const void* target;       // [pixels] of target_type
  const void* uncertainty;  // [pixels] of A, or null
  uint8_t* outcome;         // [pixels], overwritten, or null
  CountTables tables;
  int64_t pixels, classes;
  Dtype dtype;  // f32 or f64: tells A
  IndexType prediction_type, target_type;
  int64_t ignore_index;
  int64_t* bad_target;      // as above
  int64_t* bad_prediction;  // CPU: as bad_target. On CUDA both share its flag
};

// Patches of window x window pixels side by side; what is left of an image at its border is not
// counted, and neither is a patch without valid pixels.
struct PatchCountsParams {
  const uint8_t* outcome;    // [images, rows, columns] as Outcome
  const void* uncertainty;   // [images, rows, columns] of A
  const double* thresholds;  // [count] of the mean uncertainty
  int64_t* counts;           // [count, 5] as PatchCount, added to
  int64_t images, rows, columns, window, count;
  double accuracy_threshold;
  Dtype dtype;  // f32 or f64: tells A
};

// Pixels of each class and image. Targets that are no class count nothing.
struct ClassSizesParams {
  const void* target;  // [N, P] of target_type
  int64_t* sizes;      // [N, C], added to
  int64_t images, pixels, classes, ignore_index;
  IndexType target_type;
};

inline namespace SEGUNC_VARIANT {

// Of a patch with `valid` pixels that have an uncertainty each, `right` ones among them.
SEGUNC_HD PatchCount patch_count(int64_t valid, int64_t right, int64_t uncertainty_sum,
                                 double accuracy_threshold, double uncertainty_threshold) {
  const bool accurate = double(right) > accuracy_threshold * double(valid);
  const bool uncertain = double(uncertainty_sum) > uncertainty_threshold * double(valid << 24);
  if (accurate) return uncertain ? kAccurateUncertain : kAccurateCertain;
  return uncertain ? kInaccurateUncertain : kInaccurateCertain;
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
