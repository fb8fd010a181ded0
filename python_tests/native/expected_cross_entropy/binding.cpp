// Expected cross-entropy.
#include "binding.h"

#include "expected_cross_entropy/cuda/kernels.h"

namespace segunc {
namespace {

ExpectedCrossEntropyParams expected_cross_entropy_params(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  ExpectedCrossEntropyParams params{};
  const py::array mean = fields.array("mean"), scale = fields.array("scale");
  const py::array target = fields.array("target");
  const bool as_strided = fields.value("as_strided", false);
  params.mean = mean.data();
  params.map = params.grad_map = class_map(mean, as_strided);
  params.scale = scale.data();
  params.scale_map = params.grad_scale_map = class_map(scale, as_strided);
  params.target = fields.contiguous("target");
  params.target_type = index_type_of(target);
  params.weight = fields.contiguous("weight");
  params.pixel_weight = fields.contiguous("pixel_weight");
  params.upstream = fields.contiguous("upstream");
  const std::optional<py::array> upstream = fields.optional_array("upstream");
  params.upstream_is_scalar = upstream && upstream->ndim() == 0;
  params.normalizer = fields.contiguous<double>("normalizer");
  params.seed = fields.contiguous<const int64_t>("seed");
  params.loss = fields.contiguous("loss");
  params.partial = fields.contiguous<double>("partial");
  params.grad_pixel_weight = fields.contiguous("grad_pixel_weight");
  const auto gradient = [&](const char* name, void*& data, ClassMap& map) {
    const std::optional<py::array> array = fields.optional_array(name);
    if (!array) return;
    data = const_cast<void*>(array->data());
    map = class_map(*array, as_strided);
  };
  gradient("grad_mean", params.grad_mean, params.grad_map);
  gradient("grad_scale", params.grad_scale, params.grad_scale_map);
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  params.antithetic = fields.value<bool>("antithetic");
  params.draws = fields.value<int64_t>("draws");
  params.ignore_index = fields.value<int64_t>("ignore_index");
  params.bad_target = fields.contiguous<int64_t>("bad_target");
  fields.finish();
  return params;
}

const Binding binding_of_expected_cross_entropy([](py::module_& m) {
  m.def("expected_cross_entropy_partials", [](const py::kwargs& kwargs) {
    return cuda::plan_expected_cross_entropy(expected_cross_entropy_params(kwargs)).partials;
  });
  m.def("expected_cross_entropy", [](const py::kwargs& kwargs) {
    const ExpectedCrossEntropyParams params = expected_cross_entropy_params(kwargs);
    cuda::plan_expected_cross_entropy(params).launch(params, {});
  });
});

}  // namespace
}  // namespace segunc
