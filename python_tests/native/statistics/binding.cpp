// Predictive statistics of samples, and of a stream of them.
#include "binding.h"

#include "statistics/cuda/kernels.h"

namespace segunc {
namespace {

StatisticsMaps statistics_maps(Fields& fields) {
  StatisticsMaps maps{};
  maps.prediction = fields.contiguous<int64_t>("prediction");
  maps.confidence = fields.contiguous("confidence");
  maps.std = fields.contiguous("std");
  maps.entropy = fields.contiguous("entropy");
  maps.expected_entropy = fields.contiguous("expected_entropy");
  maps.mutual_information = fields.contiguous("mutual_information");
  return maps;
}

void predictive_statistics(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  StatisticsParams params{};
  const auto samples = fields.value<std::vector<py::array>>("samples");
  std::vector<const void*> addresses;
  for (const py::array& sample : samples) addresses.push_back(sample.data());
  params.samples = addresses.data();
  params.count = int64_t(samples.size());
  set_pixels(fields, samples.at(0), fields.array("prediction"), 1, params);
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  params.maps = statistics_maps(fields);
  params.mean = fields.contiguous("mean");
  fields.finish();
  cuda::predictive_statistics(params, {});
}

void accumulate(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  AccumulateParams params{};
  const py::array sample = fields.array("sample");
  params.sample = sample.data();
  set_pixels(fields, sample, fields.array("mean"), 2, params);
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  params.mean = fields.contiguous("mean");
  params.squared_deviations = fields.contiguous("squared_deviations");
  params.entropy_sum = fields.contiguous("entropy_sum");
  params.count = fields.value<int64_t>("count");
  fields.finish();
  cuda::accumulate(params, {});
}

void finalize(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  FinalizeParams params{};
  const py::array mean = fields.array("mean");
  params.mean = fields.contiguous("mean");
  params.squared_deviations = fields.contiguous("squared_deviations");
  params.entropy_sum = fields.contiguous("entropy_sum");
  params.count = fields.value<int64_t>("count");
  params.images = mean.shape(0);
  params.classes = mean.shape(1);
  params.pixels = 1;
  for (py::ssize_t axis = 2; axis < mean.ndim(); axis++) params.pixels *= mean.shape(axis);
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  params.maps = statistics_maps(fields);
  fields.finish();
  cuda::finalize(params, {});
}

const Binding binding_of_statistics([](py::module_& m) {
  m.def("predictive_statistics", predictive_statistics);
  m.def("accumulate", accumulate);
  m.def("finalize", finalize);
  m.attr("max_scattered_samples") = cuda::kMaxScatteredSamples;
});

}  // namespace
}  // namespace segunc
