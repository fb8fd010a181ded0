// Dice and cross-entropy, of stored and of interpolated logits, and of regions.
#include "binding.h"

#include "dice/cuda/kernels.h"

namespace segunc {
namespace {

// What both losses have; the map of the logits is set.
void set_overlap(Fields& fields, bool merges, OverlapParams& params) {
  params.input = fields.array("input").data();
  params.pixel_weight = fields.contiguous("pixel_weight");
  params.grad_map = params.map;
  if (const auto grad_input = fields.optional_array("grad_input")) {
    params.grad_input = const_cast<void*>(grad_input->data());
    params.grad_map = class_map(*grad_input, fields.value("as_strided", false), merges);
    // Kernels with a fast traversal use it for both sides or for neither.
    if (params.map.layout != params.grad_map.layout) {
      params.map.layout = params.grad_map.layout = Layout::strided;
    }
  }
  params.dtype = dtype_of(fields.value<std::string>("dtype"));
  params.by_image = fields.value<bool>("by_image");
  params.squared = fields.value<bool>("squared");
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
}

DiceParams dice_params(const py::kwargs& kwargs) {
  Fields fields(kwargs);
  DiceParams params{};
  const py::array target = fields.array("target");
  params.target = fields.contiguous("target");
  params.target_type = index_type_of(target);
  params.weight = fields.contiguous("weight");
  set_pixels(fields, fields.array("input"), target, 1, params);
  set_overlap(fields, !params.interpolation.used, params);
  params.ignore_index = fields.value<int64_t>("ignore_index");
  params.label_smoothing = fields.value<double>("label_smoothing");
  fields.finish();
  return params;
}

DiceBceParams region_params(const py::kwargs& kwargs) {
  static const std::map<std::string, BinaryType> names = {
      {"i64", BinaryType::i64}, {"i32", BinaryType::i32},   {"i16", BinaryType::i16},
      {"u8", BinaryType::u8},   {"f64", BinaryType::f64},   {"f32", BinaryType::f32},
      {"f16", BinaryType::f16}, {"bf16", BinaryType::bf16},
  };
  Fields fields(kwargs);
  DiceBceParams params{};
  params.map = class_map(fields.array("input"), fields.value("as_strided", false));
  params.interpolation = {};
  set_overlap(fields, true, params);
  params.target = fields.array("target").data();
  params.target_type = lookup(names, fields.value<std::string>("target_type"));
  params.target_stride = fields.value<int64_t>("target_stride");
  params.pos_weight = fields.contiguous("pos_weight");
  params.mask = fields.contiguous<bool>("mask");
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
  m.def("dice_bce_partials", [](const py::kwargs& kwargs) {
    return cuda::plan_dice_bce_sums(region_params(kwargs)).partials;
  });
  m.def("dice_bce_sums", [](const py::kwargs& kwargs) {
    const DiceBceParams params = region_params(kwargs);
    cuda::plan_dice_bce_sums(params).launch(params, {});
  });
  m.def("dice_bce_scratch_bytes", [](const py::kwargs& kwargs) {
    return cuda::plan_dice_bce_gradient(region_params(kwargs)).scratch_bytes;
  });
  m.def("dice_bce_gradient", [](const py::kwargs& kwargs) {
    const DiceBceParams params = region_params(kwargs);
    cuda::plan_dice_bce_gradient(params).launch(params, {});
  });
});

}  // namespace
}  // namespace segunc
