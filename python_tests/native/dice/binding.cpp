// Dice and cross-entropy, of stored and of interpolated logits.
#include "binding.h"

#include "dice/cuda/kernels.h"

namespace segunc {
namespace {

DiceParams dice_params(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  DiceParams params{};
  const py::array input = fields.array("input");
  const py::array target = fields.array("target");
  params.input = input.data();
  params.target = fields.contiguous("target");
  params.target_type = index_type_of(target);
  params.weight = fields.contiguous("weight");
  params.pixel_weight = fields.contiguous("pixel_weight");
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
  params.by_image = fields.value<bool>("by_image");
  params.squared = fields.value<bool>("squared");
  params.ignore_index = fields.value<int64_t>("ignore_index");
  params.label_smoothing = fields.value<double>("label_smoothing");
  params.bad_target = fields.contiguous<int64_t>("bad_target");
  params.cross_entropy = fields.value("cross_entropy", true);
  params.partial = fields.contiguous<double>("partial");
  params.sums = fields.contiguous<double>("sums");
  params.surprise = fields.contiguous<double>("surprise");
  params.coefficients = fields.contiguous<double>("coefficients");
  params.factor = fields.contiguous<double>("factor");
  params.upstream = fields.contiguous("upstream");
  params.grad_pixel_weight = fields.contiguous("grad_pixel_weight");
  params.scratch = fields.contiguous("scratch");
  fields.finish();
  return params;
}

const Binding binding_of_dice([](py::module_& m) {
  m.def("dice_partials", [](const py::kwargs& kwargs) {
    return cuda::plan_dice_sums(dice_params(kwargs)).partials;
  });
  m.def("dice_sums", [](const py::kwargs& kwargs) {
    const DiceParams params = dice_params(kwargs);
    cuda::plan_dice_sums(params).launch(params, {});
  });
  m.def("dice_scratch_bytes", [](const py::kwargs& kwargs) {
    return cuda::plan_dice_gradient(dice_params(kwargs)).scratch_bytes;
  });
  m.def("dice_gradient", [](const py::kwargs& kwargs) {
    const DiceParams params = dice_params(kwargs);
    cuda::plan_dice_gradient(params).launch(params, {});
  });
});

}  // namespace
}  // namespace segunc
