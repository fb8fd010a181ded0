// Cross-entropy of stored and of interpolated logits.
#include "binding.h"

#include "cross_entropy/cuda/kernels.h"

namespace segunc {
namespace {

CrossEntropyParams cross_entropy_params(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  CrossEntropyParams params{};
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
  params.scratch = fields.contiguous("scratch");
  params.grad_pixel_weight = fields.contiguous("grad_pixel_weight");
  set_pixels(fields, input, target, 1, params);
  params.grad_map = params.map;
  if (const auto grad_input = fields.optional_array("grad_input")) {
    params.grad_input = const_cast<void*>(grad_input->data());
    params.grad_map =
        class_map(*grad_input, fields.value("as_strided", false), !params.interpolation.used);
    // Kernels with a fast traversal use it for both sides or for neither.
    if (params.map.layout != params.grad_map.layout) {
      params.map.layout = params.grad_map.layout = Layout::strided;
    }
  }
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  params.ignore_index = fields.value<int64_t>("ignore_index");
  params.label_smoothing = fields.value<double>("label_smoothing");
  params.modulation = {ModulationKind(fields.value("modulation", 0)), fields.value("rate", 0.0),
                       fields.value("peak", 1.0), fields.value("detached", false),
                       fields.contiguous("image_factor")};
  params.adjustment = {fields.contiguous("offset"),
                       fields.value("logit_scale", 1.0),
                       fields.value("offset_on_target", false),
                       NoiseKind(fields.value("noise", 0)),
                       fields.value("sigma", 0.0),
                       fields.contiguous<const int64_t>("seed")};
  params.bad_target = fields.contiguous<int64_t>("bad_target");
  fields.finish();
  return params;
}

const Binding binding_of_cross_entropy([](py::module_& m) {
  m.def("cross_entropy_partials", [](const py::kwargs& kwargs) {
    return cuda::plan_cross_entropy(cross_entropy_params(kwargs)).partials;
  });
  m.def("cross_entropy_scratch_bytes", [](const py::kwargs& kwargs) {
    return cuda::plan_cross_entropy(cross_entropy_params(kwargs)).scratch_bytes;
  });
  m.def("cross_entropy", [](const py::kwargs& kwargs) {
    const CrossEntropyParams params = cross_entropy_params(kwargs);
    cuda::plan_cross_entropy(params).launch(params, {});
  });
});

}  // namespace
}  // namespace segunc
