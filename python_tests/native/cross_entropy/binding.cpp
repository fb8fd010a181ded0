// Cross-entropy of stored and of interpolated logits.
#include "binding.h"

#include "common/device/reduction.h"
#include "cross_entropy/cuda/kernels.h"

namespace segunc {
namespace {

// Logits are interpolated to the target's size where align_corners is given.
CrossEntropyParams cross_entropy_params(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  CrossEntropyParams params{};
  const py::array target = fields.array("target");
  set_pixels(fields, fields.array("input"), target, 1, params);
  params.input = fields.array("input").data();
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
  params.scratch = fields.contiguous("scratch");
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  params.ignore_index = fields.value<int64_t>("ignore_index");
  params.label_smoothing = fields.value<double>("label_smoothing");
  params.bad_target = fields.contiguous<int64_t>("bad_target");
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
  params.partials = params.partial ? fields.array("partial").size() : 0;
  params.classes = fields.value<int64_t>("classes");
  params.ignore_index = fields.value<int64_t>("ignore_index");
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
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
});

}  // namespace
}  // namespace segunc
