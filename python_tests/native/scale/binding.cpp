// A product in place.
#include "binding.h"

#include "scale/cuda/kernels.h"

namespace segunc {
namespace {

const Binding binding_of_scale([](py::module_& m) {
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
});

}  // namespace
}  // namespace segunc
