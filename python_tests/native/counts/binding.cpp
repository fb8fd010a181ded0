// Counts behind metrics.
#include "binding.h"

#include "counts/cuda/kernels.h"

namespace segunc {
namespace {

CountTables count_tables(Fields& fields) {
  CountTables tables{};
  tables.confusion = fields.contiguous<int64_t>("confusion");
  tables.uncertainty = fields.contiguous<int64_t>("uncertainty_sums");
  tables.calibration = fields.contiguous<int64_t>("calibration");
  tables.scores = fields.contiguous<int64_t>("scores");
  tables.histogram = fields.contiguous<int64_t>("histogram");
  tables.bins = fields.value<int64_t>("bins");
  return tables;
}

void counts(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  CountsParams params{};
  const py::array input = fields.array("input");
  params.input = input.data();
  set_pixels(fields, input, fields.array("target"), 1, params);
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  params.target_type = index_type_of(fields.array("target"));
  params.target = fields.contiguous("target");
  params.uncertainty = fields.contiguous("uncertainty");
  params.outcome = fields.contiguous<uint8_t>("outcome");
  params.tables = count_tables(fields);
  params.probabilities = fields.value<bool>("probabilities");
  params.ignore_index = fields.value<int64_t>("ignore_index");
  params.bad_target = fields.contiguous<int64_t>("bad_target");
  fields.finish();
  cuda::counts(params, {});
}

void map_counts(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  MapCountsParams params{};
  const py::array prediction = fields.array("prediction");
  params.prediction = fields.contiguous("prediction");
  params.prediction_type = index_type_of(prediction);
  params.pixels = prediction.size();
  params.confidence = fields.contiguous("confidence");
  params.target_type = index_type_of(fields.array("target"));
  params.target = fields.contiguous("target");
  params.uncertainty = fields.contiguous("uncertainty");
  params.outcome = fields.contiguous<uint8_t>("outcome");
  params.tables = count_tables(fields);
  params.classes = fields.value<int64_t>("classes");
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  params.ignore_index = fields.value<int64_t>("ignore_index");
  params.bad_target = fields.contiguous<int64_t>("bad_target");
  fields.finish();
  cuda::map_counts(params, {});
}

void patch_counts(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  PatchCountsParams params{};
  const py::array outcome = fields.array("outcome");
  params.outcome = fields.contiguous<const uint8_t>("outcome");
  params.images = outcome.shape(0);
  params.rows = outcome.shape(1);
  params.columns = outcome.shape(2);
  params.uncertainty = fields.contiguous("uncertainty");
  params.count = fields.array("thresholds").size();
  params.thresholds = fields.contiguous<const double>("thresholds");
  params.counts = fields.contiguous<int64_t>("counts");
  params.window = fields.value<int64_t>("window");
  params.accuracy_threshold = fields.value<double>("accuracy_threshold");
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  fields.finish();
  cuda::patch_counts(params, {});
}

void class_sizes(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  ClassSizesParams params{};
  const py::array target = fields.array("target"), sizes = fields.array("sizes");
  params.target = fields.contiguous("target");
  params.target_type = index_type_of(target);
  params.sizes = fields.contiguous<int64_t>("sizes");
  params.images = sizes.shape(0);
  params.classes = sizes.shape(1);
  params.pixels = params.images ? target.size() / params.images : 0;
  params.ignore_index = fields.value<int64_t>("ignore_index");
  fields.finish();
  cuda::class_sizes(params, {});
}

const Binding binding_of_counts([](py::module_& m) {
  m.def("counts", counts);
  m.def("map_counts", map_counts);
  m.def("patch_counts", patch_counts);
  m.def("class_sizes", class_sizes);
});

}  // namespace
}  // namespace segunc
