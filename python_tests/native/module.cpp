// The Python face of the native tests: the formulas of csrc/math, the kernels of csrc/*/cuda run
// on the host, and the probes. One object file serves all builds: each imports under its own name.
//
// Arrays are used in place. bfloat16 and float16 travel as uint16; `dtype` says which it is.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/class_map.h"
#include "common/element.h"
#include "components/cuda/kernels.h"
#include "counts/cuda/kernels.h"
#include "cross_entropy/cuda/kernels.h"
#include "host_execution/host_execution.h"
#include "math/counts.h"
#include "math/cross_entropy.h"
#include "math/exp_log.h"
#include "math/interpolate.h"
#include "math/moments.h"
#include "probes.h"
#include "scale/cuda/kernels.h"
#include "statistics/cuda/kernels.h"

namespace py = pybind11;
using namespace py::literals;
using namespace segunc;

namespace {

template <class T>
T lookup(const std::map<std::string, T>& names, const std::string& name) {
  const auto found = names.find(name);
  if (found == names.end()) throw std::invalid_argument("unknown: " + name);
  return found->second;
}

Dtype dtype_of(const std::string& name) {
  static const std::map<std::string, Dtype> names = {
      {"f64", Dtype::f64}, {"f32", Dtype::f32}, {"bf16", Dtype::bf16}, {"f16", Dtype::f16}};
  return lookup(names, name);
}

IndexType index_type_of(const py::array& target) {
  static const std::map<std::string, IndexType> names = {
      {"int64", IndexType::i64}, {"int32", IndexType::i32}, {"uint8", IndexType::u8}};
  return lookup(names, py::str(target.dtype()));
}

// How an array [N, C, *spatial] lies, its spatial axes merged where they can be or left as they
// are. Any map may also be called strided.
ClassMap class_map(const py::array& a, bool as_strided, bool merges = true) {
  constexpr int kMaxAxes = 5;
  if (a.ndim() < 2 || a.ndim() > kMaxAxes) throw std::invalid_argument("expected [N, C, *spatial]");
  const auto stride = [&](py::ssize_t axis) { return a.strides(axis) / a.itemsize(); };
  ClassMap map{};
  map.images = a.shape(0);
  map.classes = a.shape(1);
  map.image_stride = stride(0);
  map.class_stride = stride(1);
  map.pixels = 1;
  for (int axis = 0; axis < 3; axis++) map.size[axis] = 1;
  for (py::ssize_t axis = a.ndim() - 1, i = 2; axis >= 2; axis--, i--) {
    map.size[i] = a.shape(axis);
    map.stride[i] = stride(axis);
    map.pixels *= a.shape(axis);
  }
  const auto merges_into = [&](int64_t pixel_stride) {
    int64_t expected = pixel_stride;
    for (int i = 2; i >= 0; i--) {
      if (map.size[i] != 1 && map.stride[i] != expected) return false;
      expected *= map.size[i];
    }
    return true;
  };
  const bool planar = merges_into(1);
  const bool channels_last = map.class_stride == 1 && merges_into(map.classes);
  if (as_strided || (!planar && !channels_last)) {
    map.layout = Layout::strided;
    return map;
  }
  map.layout = planar ? Layout::planar : Layout::channels_last;
  if (!merges) return map;
  for (int i = 0; i < 2; i++) {
    map.size[i] = 1;
    map.stride[i] = 0;
  }
  map.size[2] = map.pixels;
  map.stride[2] = planar ? 1 : map.classes;
  return map;
}

// Keyword arguments, each of which must be asked for.
class Fields {
 public:
  explicit Fields(const py::kwargs& values) : values_(values) {
    for (const auto& item : values) unused_.insert(py::cast<std::string>(item.first));
  }
  void finish() const {
    if (!unused_.empty()) throw std::invalid_argument("unknown argument " + *unused_.begin());
  }
  std::optional<py::array> optional_array(const char* name) {
    unused_.erase(name);
    if (!values_.contains(name) || values_[name].is_none()) return std::nullopt;
    return py::cast<py::array>(values_[name]);
  }
  py::array array(const char* name) { return py::cast<py::array>(required(name)); }
  template <class T>
  T value(const char* name) {
    return py::cast<T>(required(name));
  }
  template <class T>
  T value(const char* name, T otherwise) {
    unused_.erase(name);
    return values_.contains(name) ? py::cast<T>(values_[name]) : otherwise;
  }
  // The address of a contiguous array, null where there is none.
  template <class T = void>
  T* contiguous(const char* name) {
    const std::optional<py::array> a = optional_array(name);
    if (!a) return nullptr;
    if ((a->flags() & py::array::c_style) == 0) {
      throw std::invalid_argument(std::string(name) + " is not contiguous");
    }
    return static_cast<T*>(const_cast<void*>(a->data()));
  }

 private:
  py::object required(const char* name) {
    unused_.erase(name);
    if (!values_.contains(name)) throw std::invalid_argument(std::string("missing ") + name);
    return values_[name];
  }

  py::kwargs values_;
  std::set<std::string> unused_;
};

// Logits for results [N, *spatial], or [N, C, *spatial] with results_axis 2: interpolated to their
// size where align_corners is given.
template <class Params>
void set_pixels(Fields& fields, const py::array& logits, const py::array& results, int results_axis,
                Params& params) {
  const auto align_corners = fields.value<std::optional<bool>>("align_corners", std::nullopt);
  params.map = class_map(logits, fields.value("as_strided", false), !align_corners);
  if (!align_corners) return;
  params.interpolation = {true, {1, 1, 1}, *align_corners};
  for (py::ssize_t axis = results.ndim() - 1, i = 2; axis >= results_axis; axis--, i--) {
    params.interpolation.size[i] = results.shape(axis);
  }
}

// What both structs of cross-entropy have.
template <class Params>
void set_cross_entropy_params(Fields& fields, bool merges, Params& params) {
  const py::array input = fields.array("input");
  const py::array target = fields.array("target");
  params.input = input.data();
  params.target = fields.contiguous("target");
  params.target_type = index_type_of(target);
  params.weight = fields.contiguous("weight");
  params.pixel_weight = fields.contiguous("pixel_weight");
  params.upstream = fields.contiguous("upstream");
  const std::optional<py::array> upstream = fields.optional_array("upstream");
  params.upstream_is_scalar = upstream && upstream->ndim() == 0;
  params.normalizer = fields.contiguous<double>("normalizer");
  params.loss = fields.contiguous("loss");
  params.partial = fields.contiguous<double>("partial");
  params.grad_pixel_weight = fields.contiguous("grad_pixel_weight");
  const bool as_strided = fields.value("as_strided", false);
  params.map = params.grad_map = class_map(input, as_strided, merges);
  if (const auto grad_input = fields.optional_array("grad_input")) {
    params.grad_input = const_cast<void*>(grad_input->data());
    params.grad_map = class_map(*grad_input, as_strided, merges);
    // Kernels with a fast traversal use it for both sides or for neither.
    if (params.map.layout != params.grad_map.layout) {
      params.map.layout = params.grad_map.layout = Layout::strided;
    }
  }
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  params.ignore_index = fields.value<int64_t>("ignore_index");
  params.label_smoothing = fields.value<double>("label_smoothing");
  params.bad_target = fields.contiguous<int64_t>("bad_target");
}

CrossEntropyParams cross_entropy_params(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  CrossEntropyParams params{};
  set_cross_entropy_params(fields, true, params);
  fields.finish();
  return params;
}

UpsampledCrossEntropyParams upsampled_cross_entropy_params(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  UpsampledCrossEntropyParams params{};
  set_cross_entropy_params(fields, false, params);
  const py::array target = fields.array("target");
  for (py::ssize_t i = 2, axis = target.ndim() - 1; i >= 0; i--, axis--) {
    params.interpolation.size[i] = axis >= 1 ? target.shape(axis) : 1;
  }
  params.interpolation.used = true;
  params.interpolation.align_corners = fields.value<bool>("align_corners");
  params.scratch = fields.contiguous("scratch");
  fields.finish();
  return params;
}

NormalizerParams normalizer_params(Fields& fields) {
  NormalizerParams params{};
  const py::array target = fields.array("target");
  params.target = fields.contiguous("target");
  params.target_type = index_type_of(target);
  params.count = target.size();
  params.weight = fields.contiguous("weight");
  params.partial = fields.contiguous<double>("partial");
  params.classes = fields.value<int64_t>("classes");
  params.ignore_index = fields.value<int64_t>("ignore_index");
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  return params;
}

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

// Labels [N, H, W] or [N, D, H, W], contiguous.
LabelMap label_map(Fields& fields) {
  const py::array labels = fields.array("labels");
  const py::ssize_t axes = labels.ndim();
  if (axes != 3 && axes != 4) throw std::invalid_argument("expected [N, H, W] or [N, D, H, W]");
  LabelMap map{};
  map.labels = fields.contiguous("labels");
  map.label_bytes = int(labels.itemsize());
  map.images = labels.shape(0);
  map.depth = axes == 4 ? labels.shape(1) : 1;
  map.height = labels.shape(axes - 2);
  map.width = labels.shape(axes - 1);
  map.diagonal = fields.value<bool>("diagonal");
  const auto ignored = fields.value<std::optional<int64_t>>("ignored", std::nullopt);
  map.ignores = ignored.has_value();
  map.ignored = ignored.value_or(0);
  return map;
}

ComponentsParams components_params(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  ComponentsParams params{};
  params.map = label_map(fields);
  params.components = fields.contiguous<int32_t>("components");
  params.counts = fields.contiguous<int64_t>("counts");
  params.scratch = fields.contiguous("scratch");
  fields.finish();
  return params;
}

ComponentMeanParams component_mean_params(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  ComponentMeanParams params{};
  params.map = label_map(fields);
  params.values = fields.contiguous("values");
  params.means = fields.contiguous("means");
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  params.bound = fields.value<double>("bound");
  params.scratch = fields.contiguous("scratch");
  fields.finish();
  return params;
}

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

void define_kernels(py::module_& m) {
  m.def("cross_entropy_partials", [](const py::kwargs& kwargs) {
    return cuda::cross_entropy_partials(cross_entropy_params(kwargs));
  });
  m.def("cross_entropy",
        [](const py::kwargs& kwargs) { cuda::cross_entropy(cross_entropy_params(kwargs), {}); });
  m.def("upsampled_cross_entropy_partials", [](const py::kwargs& kwargs) {
    return cuda::upsampled_cross_entropy_partials(upsampled_cross_entropy_params(kwargs));
  });
  m.def("upsampled_cross_entropy_scratch_bytes", [](const py::kwargs& kwargs) {
    return cuda::upsampled_cross_entropy_scratch_bytes(upsampled_cross_entropy_params(kwargs));
  });
  m.def("upsampled_cross_entropy", [](const py::kwargs& kwargs) {
    cuda::upsampled_cross_entropy(upsampled_cross_entropy_params(kwargs), {});
  });
  m.def("normalizer_partials", [](const py::kwargs& kwargs) {
    Fields fields(kwargs);
    const NormalizerParams params = normalizer_params(fields);
    fields.finish();
    return cuda::normalizer_partials(params);
  });
  m.def("normalizer", [](const py::kwargs& kwargs) {
    Fields fields(kwargs);
    const NormalizerParams params = normalizer_params(fields);
    auto* const normalizer = fields.contiguous<double>("normalizer");
    fields.finish();
    cuda::normalizer(params, normalizer, {});
  });
  m.def("finish_loss", [](const py::kwargs& kwargs) {
    Fields fields(kwargs);
    const auto* const partial = fields.contiguous<const double>("partial");
    const auto count = fields.value<int64_t>("count");
    const auto* const normalizer = fields.contiguous<const double>("normalizer");
    void* const loss = fields.contiguous("loss");
    const Dtype dtype = dtype_of(fields.value<std::string>("dtype"));
    fields.finish();
    cuda::finish_loss(partial, count, normalizer, loss, dtype, {});
  });
  m.def("scale", [](const py::kwargs& kwargs) {
    Fields fields(kwargs);
    ScaleParams params{};
    params.count = fields.array("data").size();
    params.data = fields.contiguous("data");
    params.factor = fields.contiguous("factor");
    params.dtype = dtype_of(fields.value<std::string>("dtype"));
    params.factor_dtype = dtype_of(fields.value<std::string>("factor_dtype"));
    fields.finish();
    cuda::scale(params, {});
  });
  m.def("components_scratch_bytes", [](const py::kwargs& kwargs) {
    return cuda::components_scratch_bytes(components_params(kwargs));
  });
  m.def("connected_components", [](const py::kwargs& kwargs) {
    cuda::connected_components(components_params(kwargs), {});
  });
  m.def("component_mean_scratch_bytes", [](const py::kwargs& kwargs) {
    return cuda::component_mean_scratch_bytes(component_mean_params(kwargs));
  });
  m.def("component_mean",
        [](const py::kwargs& kwargs) { cuda::component_mean(component_mean_params(kwargs), {}); });
  m.def("predictive_statistics", predictive_statistics);
  m.def("accumulate", accumulate);
  m.def("finalize", finalize);
  m.def("counts", counts);
  m.def("map_counts", map_counts);
  m.def("patch_counts", patch_counts);
  m.attr("max_scattered_samples") = cuda::kMaxScatteredSamples;
}

template <class A>
void define_formulas(py::module_& m) {
  m.def("exp_nonpositive", py::vectorize([](A x) { return math::exp_nonpositive(x); }));
  m.def("log_positive", py::vectorize([](A x) { return math::log_positive(x); }));
  m.def("negative_log_probability", py::vectorize([](A shifted, A log_sum) {
          return math::negative_log_probability(shifted, log_sum);
        }));
  m.def("cross_entropy", py::vectorize([](A on_target, A smooth, A target_shifted, A log_sum) {
          return math::cross_entropy(on_target, smooth, target_shifted, log_sum);
        }));
  m.def("cross_entropy_derivative", py::vectorize([](A exponential, A total_over_sum, A t) {
          return math::cross_entropy_derivative(exponential, total_over_sum, t);
        }));
  m.def("to_fixed", py::vectorize([](A v) { return math::to_fixed(v); }));
  m.def("negative_log", py::vectorize([](A p) { return math::negative_log(p); }));
  m.def("uncertainty_bin", py::vectorize([](A v) { return math::uncertainty_bin(float(v)); }));
  m.def("calibration_bin", py::vectorize([](int64_t fixed, int64_t bins) {
          return math::calibration_bin(fixed, bins);
        }));
  m.def("entropy_term", py::vectorize([](A p) { return math::entropy_term(p); }));
  m.def("softmax_entropy", py::vectorize([](A log_sum, A dot, A inverse_sum) {
          return math::softmax_entropy(log_sum, dot, inverse_sum);
        }));
  m.def("weighted_exponent",
        py::vectorize([](A exponential, A d) { return math::weighted_exponent(exponential, d); }));
  m.def("accumulate_moments", [](A value, int64_t count, A mean, A squared_deviations) {
    math::accumulate_moments(value, A(1) / A(count), mean, squared_deviations);
    return py::make_tuple(mean, squared_deviations);
  });
  m.def("interpolate",
        py::vectorize([](A lower, A upper, A f) { return math::interpolate(lower, upper, f); }));
  // Per position: the neighbours and the upper one's weight.
  m.def("neighbours", [](int source, int size, bool align_corners) {
    const auto axis = math::interpolated_axis<A>(source, size, align_corners);
    py::array_t<int> lower(size), upper(size);
    py::array_t<A> weight(size);
    for (int i = 0; i < size; i++) {
      const auto n = math::neighbours_of(axis, i);
      lower.mutable_at(i) = n.lower, upper.mutable_at(i) = n.upper;
      weight.mutable_at(i) = n.weight;
    }
    return py::make_tuple(lower, upper, weight);
  });
  // Per source position: the positions that blend it, and the share it has in each of all.
  m.def("support", [](int source, int size, bool align_corners) {
    const auto axis = math::interpolated_axis<A>(source, size, align_corners);
    py::array_t<int> range({source, 2});
    py::array_t<A> share({source, size});
    for (int i = 0; i < source; i++) {
      const auto support = math::support_of(axis, i);
      range.mutable_at(i, 0) = support.first, range.mutable_at(i, 1) = support.last;
      for (int o = 0; o < size; o++)
        share.mutable_at(i, o) = math::interpolation_share(math::neighbours_of(axis, o), i);
    }
    return py::make_tuple(range, share);
  });
}

void define_elements(py::module_& m) {
  m.def("bfloat16_to_float",
        py::vectorize([](uint16_t bits) { return to_accumulate(bfloat16{bits}); }));
  m.def("float16_to_float",
        py::vectorize([](uint16_t bits) { return to_accumulate(float16{bits}); }));
  m.def("float_to_bfloat16",
        py::vectorize([](float v) { return from_accumulate<bfloat16>(v).bits; }));
  m.def("float_to_float16",
        py::vectorize([](float v) { return from_accumulate<float16>(v).bits; }));
}

void define_host_execution(py::module_& m) {
  m.def("set_seed", &host::set_seed);
  m.def("counters", [] {
    const host::Counters c = host::counters();
    return py::dict("launches"_a = c.launches, "threads"_a = c.threads, "switches"_a = c.switches,
                    "accesses"_a = c.accesses);
  });
  py::register_exception<host::Error>(m, "HostExecutionError", PyExc_RuntimeError);
  m.def("probes", &probes::names);
  m.attr("probe_data_size") = probes::kDataSize;
  m.def("run_probe", [](const std::string& name, bool correct, const py::array_t<int32_t>& data) {
    if (data.size() != probes::kDataSize) throw std::invalid_argument("data has the wrong size");
    probes::run(name, correct, const_cast<int32_t*>(data.data()));
  });
}

void define(py::module_& m) {
  define_host_execution(m);
  define_elements(m);
  py::module_ f32 = m.def_submodule("f32");
  define_formulas<float>(f32);
  py::module_ f64 = m.def_submodule("f64");
  define_formulas<double>(f64);
  define_kernels(m);
}

}  // namespace

PYBIND11_MODULE(segunc_host_plain, m) { define(m); }
PYBIND11_MODULE(segunc_host_sanitize, m) { define(m); }
PYBIND11_MODULE(segunc_host_race, m) { define(m); }
