// Connected components and means over them.
#include "binding.h"

#include "components/cuda/kernels.h"

namespace segunc {
namespace {

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

const Binding binding_of_components([](py::module_& m) {
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
});

}  // namespace
}  // namespace segunc
