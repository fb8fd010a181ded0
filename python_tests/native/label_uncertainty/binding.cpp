// Losses of uncertain binary labels.
#include "binding.h"

#include "label_uncertainty/cuda/kernels.h"

namespace segunc {
namespace {

LabelUncertaintyParams label_uncertainty_params(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  LabelUncertaintyParams params{};
  const bool as_strided = fields.value("as_strided", false);
  const py::array mean = fields.array("mean"), log_variance = fields.array("log_variance");
  params.mean = mean.data();
  params.log_variance = log_variance.data();
  params.mean_map = params.grad_mean_map = class_map(mean, as_strided);
  params.variance_map = params.grad_variance_map = class_map(log_variance, as_strided);
  params.target = fields.contiguous("target");
  params.target_type = index_type_of(fields.array("target"));
  params.pixel_weight = fields.contiguous("pixel_weight");
  params.bootstrap = fields.contiguous<bool>("bootstrap");
  params.upstream = fields.contiguous("upstream");
  const std::optional<py::array> upstream = fields.optional_array("upstream");
  params.upstream_is_scalar = upstream && upstream->ndim() == 0;
  params.normalizer = fields.contiguous<double>("normalizer");
  params.loss = fields.contiguous("loss");
  params.partial = fields.contiguous<double>("partial");
  params.grad_pixel_weight = fields.contiguous("grad_pixel_weight");
  if (const auto gradient = fields.optional_array("grad_mean")) {
    params.grad_mean = const_cast<void*>(gradient->data());
    params.grad_mean_map = class_map(*gradient, as_strided);
  }
  if (const auto gradient = fields.optional_array("grad_log_variance")) {
    params.grad_log_variance = const_cast<void*>(gradient->data());
    params.grad_variance_map = class_map(*gradient, as_strided);
  }
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  params.ignore_index = fields.value<int64_t>("ignore_index");
  params.threshold = fields.value<double>("threshold");
  params.uncertainty_weight = fields.value<double>("uncertainty_weight");
  params.bootstrap_weight = fields.value<double>("bootstrap_weight");
  params.detach_weight = fields.value<bool>("detach_weight");
  params.bad_target = fields.contiguous<int64_t>("bad_target");
  fields.finish();
  return params;
}

const Binding binding_of_label_uncertainty([](py::module_& m) {
  m.def("label_uncertainty_partials", [](const py::kwargs& kwargs) {
    return cuda::plan_label_uncertainty(label_uncertainty_params(kwargs)).partials;
  });
  m.def("label_uncertainty", [](const py::kwargs& kwargs) {
    const LabelUncertaintyParams params = label_uncertainty_params(kwargs);
    cuda::plan_label_uncertainty(params).launch(params, {});
  });
});

}  // namespace
}  // namespace segunc
