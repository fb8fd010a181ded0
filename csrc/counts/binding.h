// Counting as torch sees it: checks and calls. A template over the backend. Nothing is allocated:
// the caller's tables are added to.
#pragma once
#include "../common/tensors.h"
#include "params.h"

namespace segunc {

using OptionalTensor = std::optional<Tensor>;

inline int64_t* table_of(const char* name, const OptionalTensor& table, Sizes sizes,
                         const Tensor& like) {
  if (!table) return nullptr;
  check_dense(name, *table, sizes, ScalarType::Long, like);
  return static_cast<int64_t*>(table->mutable_data_ptr());
}

inline CountTables tables_of(const OptionalTensor& confusion, const OptionalTensor& uncertainty,
                             const OptionalTensor& calibration, const OptionalTensor& scores,
                             const OptionalTensor& histogram, int64_t classes, const Tensor& like) {
  CountTables t{};
  t.bins = calibration && calibration->dim() == 2 ? calibration->size(0) - 1 : 1;
  if (t.bins < 1) fail("calibration: expected a row for at least one bin and one more");
  t.confusion = table_of("confusion", confusion, {classes, classes}, like);
  t.uncertainty = table_of("uncertainty_sums", uncertainty, {2, classes, classes}, like);
  t.calibration = table_of("calibration", calibration, {t.bins + 1, kCalibrationColumns}, like);
  t.scores = table_of("scores", scores, {kScores}, like);
  t.histogram = table_of("histogram", histogram, {2, kUncertaintyBins + 1}, like);
  return t;
}

// Counts of uncertainties need a map of them.
inline const void* uncertainty_of(const OptionalTensor& uncertainty, const CountTables& tables,
                                  Sizes sizes, ScalarType type, const Tensor& like) {
  if (!uncertainty) {
    if (tables.uncertainty || tables.histogram) fail("uncertainty: expected a map, got none");
    return nullptr;
  }
  check_dense("uncertainty", *uncertainty, sizes, type, like);
  return uncertainty->const_data_ptr();
}

inline uint8_t* outcome_of(const OptionalTensor& outcome, Sizes sizes, const Tensor& like) {
  if (!outcome) return nullptr;
  check_dense("outcome", *outcome, sizes, ScalarType::Byte, like);
  return static_cast<uint8_t*>(outcome->mutable_data_ptr());
}

template <class Backend>
void accumulate_counts(const Tensor& input, const Tensor& target, OptionalTensor uncertainty,
                       int64_t ignore_index, bool probabilities, bool align_corners,
                       OptionalTensor confusion, OptionalTensor uncertainty_sums,
                       OptionalTensor calibration, OptionalTensor scores, OptionalTensor histogram,
                       OptionalTensor outcome) {
  const Backend backend(input);
  CountsParams p{};
  set_pixels(p, "input", input, target.sizes(), align_corners, true);
  p.dtype = dtype_of("input", input);
  p.target_type = index_type_of("target", target);
  const Sizes pixels = target.sizes();
  check_dense("target", target, pixels, target.scalar_type(), input);
  p.tables =
      tables_of(confusion, uncertainty_sums, calibration, scores, histogram, p.map.classes, input);
  p.uncertainty = uncertainty_of(uncertainty, p.tables, pixels, accumulate_type(input), input);
  p.outcome = outcome_of(outcome, pixels, input);
  p.input = input.const_data_ptr();
  p.target = target.const_data_ptr();
  p.probabilities = probabilities;
  p.ignore_index = ignore_index;
  backend.counts(p);
}

template <class Backend>
void accumulate_map_counts(const Tensor& prediction, OptionalTensor confidence,
                           const Tensor& target, OptionalTensor uncertainty, int64_t num_classes,
                           int64_t ignore_index, OptionalTensor confusion,
                           OptionalTensor uncertainty_sums, OptionalTensor calibration,
                           OptionalTensor histogram, OptionalTensor outcome) {
  const Backend backend(prediction);
  const Sizes pixels = prediction.sizes();
  MapCountsParams p{};
  p.classes = num_classes;
  p.pixels = prediction.numel();
  p.prediction_type = index_type_of("prediction", prediction);
  p.target_type = index_type_of("target", target);
  check_dense("prediction", prediction, pixels, prediction.scalar_type(), prediction);
  check_dense("target", target, pixels, target.scalar_type(), prediction);
  p.tables = tables_of(confusion, uncertainty_sums, calibration, std::nullopt, histogram,
                       num_classes, prediction);
  const OptionalTensor& any = confidence ? confidence : uncertainty;
  const ScalarType type = any ? accumulate_type(*any) : ScalarType::Float;
  p.dtype = type == ScalarType::Double ? Dtype::f64 : Dtype::f32;
  p.uncertainty = uncertainty_of(uncertainty, p.tables, pixels, type, prediction);
  if (p.tables.calibration && !confidence) fail("confidence: expected a map, got none");
  if (confidence) {
    check_dense("confidence", *confidence, pixels, type, prediction);
    p.confidence = confidence->const_data_ptr();
  }
  p.outcome = outcome_of(outcome, pixels, prediction);
  p.prediction = prediction.const_data_ptr();
  p.target = target.const_data_ptr();
  p.ignore_index = ignore_index;
  backend.map_counts(p);
}

template <class Backend>
void accumulate_patch_counts(const Tensor& outcome, const Tensor& uncertainty,
                             const Tensor& thresholds, int64_t window, double accuracy_threshold,
                             Tensor counts) {
  const Backend backend(outcome);
  const Sizes sizes = outcome.sizes();
  if (sizes.size() < 2) fail("outcome: expected shape (*, rows, columns), got " + to_string(sizes));
  if (window < 1) fail("window: expected at least 1, got " + std::to_string(window));
  check_dense("outcome", outcome, sizes, ScalarType::Byte, outcome);
  const ScalarType type = accumulate_type(uncertainty);
  check_dense("uncertainty", uncertainty, sizes, type, outcome);
  check_dense("thresholds", thresholds, {thresholds.numel()}, ScalarType::Double, outcome);
  check_dense("counts", counts, {thresholds.numel(), kPatchCounts}, ScalarType::Long, outcome);
  PatchCountsParams p{};
  p.outcome = static_cast<const uint8_t*>(outcome.const_data_ptr());
  p.uncertainty = uncertainty.const_data_ptr();
  p.thresholds = static_cast<const double*>(thresholds.const_data_ptr());
  p.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  p.rows = sizes[sizes.size() - 2], p.columns = sizes[sizes.size() - 1];
  p.images = 1;
  for (size_t i = 0; i + 2 < sizes.size(); ++i) p.images *= sizes[i];
  p.window = window;
  p.count = thresholds.numel();
  p.accuracy_threshold = accuracy_threshold;
  p.dtype = type == ScalarType::Double ? Dtype::f64 : Dtype::f32;
  backend.patch_counts(p);
}

template <class Backend>
void accumulate_class_sizes(const Tensor& target, int64_t ignore_index, Tensor sizes) {
  const Backend backend(target);
  if (target.dim() < 1) fail("target: expected shape (N, *), got ()");
  if (sizes.dim() != 2) fail("sizes: expected shape (N, C), got " + to_string(sizes.sizes()));
  check_dense("target", target, target.sizes(), target.scalar_type(), target);
  check_dense("sizes", sizes, {target.size(0), sizes.size(1)}, ScalarType::Long, target);
  ClassSizesParams p{};
  p.target = target.const_data_ptr();
  p.target_type = index_type_of("target", target);
  p.sizes = static_cast<int64_t*>(sizes.mutable_data_ptr());
  p.images = target.size(0), p.classes = sizes.size(1);
  p.pixels = p.images ? target.numel() / p.images : 0;
  p.ignore_index = ignore_index;
  backend.class_sizes(p);
}

}  // namespace segunc
