// Blocks along one axis, and the cells that their starts and ends cut it into: every block is some
// whole cells, so that a pixel is added up once, whatever number of blocks it is in.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../common/host_device.h"

namespace segunc {

// Blocks that cover `size` positions, at most 2^30, at 1 <= stride <= block <= size.
struct BlockAxis {
  int64_t size, block, stride;
  int64_t count;  // of blocks
};

inline namespace SEGUNC_VARIANT {
namespace math {

// The last block is shifted to end with the axis.
SEGUNC_HD int64_t block_start(const BlockAxis& axis, int64_t k) {
  return k + 1 < axis.count ? k * axis.stride : axis.size - axis.block;
}

// Cells by their number, without a list of them. All blocks but the last start at multiples k of
// the stride and end a block later; where an end is a start too, it cuts but once.
struct Cells {
  uint32_t stride, block;
  uint32_t last;       // k of the last regular block
  uint32_t first_end;  // k of the first regular block whose end is no start
  uint32_t ends;       // the position of that end, or the size without one
  uint32_t shifted;    // start of the last block, or the size where another cuts there
  uint32_t count;      // of cells

  explicit Cells(const BlockAxis& axis)
      : stride(uint32_t(axis.stride)),
        block(uint32_t(axis.block)),
        last(uint32_t(std::max<int64_t>(axis.count - 2, 0))),
        first_end(0),
        ends(uint32_t(axis.size)),
        shifted(uint32_t(axis.size)) {
    if (axis.count > 1) {
      const int64_t apart = axis.block / axis.stride, rest = axis.size - 2 * axis.block;
      if (axis.block % axis.stride == 0)
        first_end = uint32_t(std::max<int64_t>(axis.count - 1 - apart, 0));
      ends = first_end * stride + block;
      if (rest < 0 || rest % axis.stride != 0) shifted = uint32_t(axis.size - axis.block);
    }
    count = at(uint32_t(axis.size - 1)) + 1;
  }

  // The cell of a position.
  SEGUNC_HD uint32_t at(uint32_t position) const {
    const uint32_t starts = position / stride;
    uint32_t cell = starts < last ? starts : last;
    if (position >= ends) {
      const uint32_t k = (position - block) / stride;
      cell += (k < last ? k : last) - first_end + 1;
    }
    return cell + (position >= shifted ? 1 : 0);
  }
};

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
