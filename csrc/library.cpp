// Every operator's schema, and what the library tells of itself.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(segunc_ops, m) {
  m.def(
      "cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, Tensor? pixel_weight, "
      "SymInt ignore_index, int reduction, float label_smoothing, bool grad_input, "
      "bool grad_pixel_weight) -> (Tensor loss, Tensor normalizer, Tensor grad_input, "
      "Tensor grad_pixel_weight)");
  m.def(
      "cross_entropy_backward(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, "
      "Tensor? pixel_weight, Tensor normalizer, SymInt ignore_index, int reduction, "
      "float label_smoothing, bool grad_input, bool grad_pixel_weight) -> (Tensor grad_input, "
      "Tensor grad_pixel_weight)");
  m.def(
      "upsampled_cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, "
      "Tensor? pixel_weight, SymInt ignore_index, int reduction, float label_smoothing, "
      "bool align_corners, bool grad_input, bool grad_pixel_weight) -> (Tensor loss, "
      "Tensor normalizer, Tensor grad_input, Tensor grad_pixel_weight)");
  m.def(
      "upsampled_cross_entropy_backward(Tensor grad_output, Tensor input, Tensor target, "
      "Tensor? weight, Tensor? pixel_weight, Tensor normalizer, SymInt ignore_index, "
      "int reduction, float label_smoothing, bool align_corners, bool grad_input, "
      "bool grad_pixel_weight) -> (Tensor grad_input, Tensor grad_pixel_weight)");
  m.def("scale_(Tensor(a!) self, Tensor factor) -> ()");
  m.def(
      "predictive_statistics(Tensor[] samples, SymInt[] size, bool align_corners, "
      "bool return_mean) -> (Tensor prediction, Tensor confidence, Tensor std, Tensor entropy, "
      "Tensor expected_entropy, "
      "Tensor mutual_information, Tensor mean)");
  m.def(
      "accumulate_statistics_(Tensor(a!) mean, Tensor(b!) squared_deviations, "
      "Tensor(c!) entropy_sum, Tensor logits, SymInt count, bool align_corners) -> ()");
  m.def(
      "finalize_statistics(Tensor mean, Tensor squared_deviations, Tensor entropy_sum, "
      "SymInt count) -> (Tensor prediction, Tensor confidence, Tensor std, Tensor entropy, "
      "Tensor expected_entropy, Tensor mutual_information)");
  m.def(
      "connected_components(Tensor labels, int connectivity, SymInt? ignore_index) -> "
      "(Tensor components, Tensor counts)");
  m.def(
      "component_mean(Tensor values, Tensor labels, int connectivity, SymInt? ignore_index, "
      "float? bound) -> Tensor");
  m.def(
      "accumulate_counts_(Tensor input, Tensor target, Tensor? uncertainty, SymInt ignore_index, "
      "bool probabilities, bool align_corners, Tensor(a!)? confusion, Tensor(b!)? "
      "uncertainty_sums, "
      "Tensor(c!)? calibration, Tensor(d!)? scores, Tensor(e!)? histogram, Tensor(f!)? outcome) "
      "-> ()");
  m.def(
      "accumulate_map_counts_(Tensor prediction, Tensor? confidence, Tensor target, "
      "Tensor? uncertainty, SymInt num_classes, SymInt ignore_index, Tensor(a!)? confusion, "
      "Tensor(b!)? uncertainty_sums, Tensor(c!)? calibration, Tensor(d!)? histogram, "
      "Tensor(e!)? outcome) -> ()");
  m.def(
      "accumulate_patch_counts_(Tensor outcome, Tensor uncertainty, Tensor thresholds, "
      "SymInt window, float accuracy_threshold, Tensor(a!) counts) -> ()");
  m.def("cpu_isa() -> str");
  m.def("cpu_isas() -> str");
  m.def("cuda_targets() -> str");
  m.def("check() -> ()");
}
