// Block means: their schema, and who implements them on a CPU.
#include "../common/cpu/backend.h"
#include "binding.h"
#include "cpu/rows.h"

SEGUNC_CPU_ENTRY(blocks_sums, BlocksParams)
SEGUNC_CPU_ENTRY(blocks_means, BlocksParams)

namespace segunc {
namespace {

struct Cpu : cpu::Backend {
  using Backend::Backend;

  static Plan<BlocksParams> plan_blocks(const BlocksParams& params) {
    const int64_t rows = params.map.images * params.rows.size;
    return {rows * math::Cells(params.columns).count, 0, [](const BlocksParams& p) {
              cpu::parallel(row_units(p), cpu::blocks_sums, p);
              cpu::parallel(p.map.images * p.rows.count, cpu::blocks_means, p);
            }};
  }
  static void launch(const Plan<BlocksParams>& plan, const BlocksParams& p) { plan.launch(p); }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_FRAGMENT(segunc_ops, m) {
  m.def(
      "block_uncertainty(Tensor logits, SymInt[] blocks, SymInt[] strides, SymInt[] size, "
      "bool align_corners, float base) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CPU, m) {
  m.impl("block_uncertainty", TORCH_BOX(&segunc::block_uncertainty<segunc::Cpu>));
}
