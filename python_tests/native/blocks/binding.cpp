// Mean entropies of blocks.
#include "binding.h"

#include "blocks/cuda/kernels.h"
#include "common/integer.h"

namespace segunc {
namespace {

BlockAxis block_axis(const std::vector<int64_t>& sizes) {
  const int64_t size = sizes.at(0), block = sizes.at(1), stride = sizes.at(2);
  return {size, block, stride, divide_up(size - block, stride) + 1};
}

const Binding binding_of_blocks([](py::module_& m) {
  m.def("block_means", [](const py::kwargs& kwargs) {
    Fields fields(kwargs);
    BlocksParams params{};
    const py::array logits = fields.array("logits");
    params.logits = logits.data();
    params.map = class_map(logits, fields.value("as_strided", false), false);
    params.rows = block_axis(fields.value<std::vector<int64_t>>("rows"));
    params.columns = block_axis(fields.value<std::vector<int64_t>>("columns"));
    if (const auto align_corners = fields.value<std::optional<bool>>("align_corners", {})) {
      params.interpolation = {true, {1, params.rows.size, params.columns.size}, *align_corners};
    }
    params.dtype = dtype_of(fields.value<std::string>("dtype"));
    params.factor = fields.value<double>("factor");
    params.means = fields.contiguous("means");
    const cuda::BlocksPlan plan = cuda::plan_block_means(params);
    // Not a number where a kernel writes nothing.
    std::vector<double> partial(size_t(plan.partials), std::nan(""));
    params.partial = partial.data();
    fields.finish();
    plan.launch(params, {});
    return plan.partials;
  });
});

}  // namespace
}  // namespace segunc
