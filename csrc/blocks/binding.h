// Block means as torch sees them: checks, allocation, call. A template over the backend.
#pragma once
#include <cmath>

#include "../common/integer.h"
#include "../common/plan.h"
#include "../common/tensors.h"
#include "params.h"

namespace segunc {

inline BlockAxis block_axis(int64_t size, int64_t block, int64_t stride) {
  if (size > 1 << 30)
    fail("logits: expected at most 2^30 positions along each axis, got " + std::to_string(size));
  if (block < 1 || block > size || stride < 1 || stride > block)
    fail("blocks: expected 1 <= stride <= block <= size along each axis, got " +
         std::to_string(stride) + ", " + std::to_string(block) + " and " + std::to_string(size));
  return {size, block, stride, divide_up(size - block, stride) + 1};
}

template <class Backend>
Tensor block_uncertainty(const Tensor& logits, std::vector<int64_t> blocks,
                         std::vector<int64_t> strides, std::vector<int64_t> size,
                         bool align_corners, double base) {
  if (logits.dim() != 4 || logits.size(1) == 0)
    fail("logits: expected shape (N, C, H, W) with C > 0, got " + to_string(logits.sizes()));
  if (blocks.size() != 2 || strides.size() != 2 || (!size.empty() && size.size() != 2))
    fail("blocks, strides and size: expected numbers for height and width");
  if (size.empty()) size = {logits.size(2), logits.size(3)};
  const Backend backend(logits);
  BlocksParams p{};
  p.logits = logits.const_data_ptr();
  const std::vector<int64_t> pixels{logits.size(0), size[0], size[1]};
  set_pixels(p, "logits", logits, pixels, align_corners, false);
  p.map = unmerged_map_of("logits", logits);
  p.dtype = dtype_of("logits", logits);
  p.rows = block_axis(size[0], blocks[0], strides[0]);
  p.columns = block_axis(size[1], blocks[1], strides[1]);
  p.factor = 1 / (double(blocks[0]) * double(blocks[1]) * std::log(base));
  const std::vector<int64_t> shape{logits.size(0), p.rows.count, p.columns.count};
  const Tensor means = allocate(logits, shape, accumulate_type(logits));
  p.means = means.mutable_data_ptr();
  if (is_empty(p.map)) return means;
  const auto plan = backend.plan_blocks(p);
  Tensor partial = allocate(logits, {plan.partials}, ScalarType::Double);
  p.partial = static_cast<double*>(partial.mutable_data_ptr());
  backend.launch(plan, p);
  return means;
}

}  // namespace segunc
