// How losses per pixel become one number.
#include "binding.h"

#include "common/device/reduction.h"

namespace segunc {
namespace {

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

const Binding binding_of_reduction([](py::module_& m) {
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
