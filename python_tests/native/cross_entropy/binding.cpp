// Cross-entropy of stored and of interpolated logits.
#include "binding.h"

#include "cross_entropy/cuda/kernels.h"

namespace segunc {
namespace {

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

CrossEntropyParams upsampled_cross_entropy_params(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  CrossEntropyParams params{};
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

const Binding binding_of_cross_entropy([](py::module_& m) {
  m.def("cross_entropy_partials", [](const py::kwargs& kwargs) {
    return cuda::cross_entropy_partials(cross_entropy_params(kwargs));
  });
  m.def("cross_entropy",
        [](const py::kwargs& kwargs) { cuda::cross_entropy(cross_entropy_params(kwargs), {}); });
  m.def("upsampled_cross_entropy_partials", [](const py::kwargs& kwargs) {
    return cuda::cross_entropy_interpolated_partials(upsampled_cross_entropy_params(kwargs));
  });
  m.def("upsampled_cross_entropy_scratch_bytes", [](const py::kwargs& kwargs) {
    return cuda::cross_entropy_interpolated_scratch_bytes(upsampled_cross_entropy_params(kwargs));
  });
  m.def("upsampled_cross_entropy", [](const py::kwargs& kwargs) {
    cuda::cross_entropy_interpolated(upsampled_cross_entropy_params(kwargs), {});
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
