// How the kernels of Dice are launched.
#pragma once
#include <algorithm>
#include <type_traits>

#include "../../common/device/device.h"
#include "../../common/device/integer.h"
#include "../params.h"

namespace segunc::cuda {

using namespace device;

// Instructions a logit on sm_90 of what takes any layout, with 19 classes.
// report: budget dice_sums_kernel<float, StoredPixels> 140
// report: budget dice_sums_kernel<bfloat16, StoredPixels> 140
// report: budget dice_gradient_stored_kernel<float> 136
// report: budget dice_gradient_stored_kernel<bfloat16> 136
// report: budget dice_bce_sums_kernel<float> 172
// report: budget dice_bce_sums_kernel<bfloat16> 172
// report: budget dice_bce_gradient_kernel<float> 168
// report: budget dice_bce_gradient_kernel<bfloat16> 168
struct DicePolicy {  // tuning
  static constexpr int kThreads = 256;
  static constexpr int64_t kMaxBlocks = at_scale(8192);
};

// Blocks belong to images, and take the tiles of theirs in turn.
struct ImageWork {
  int64_t images, pixels;  // of an image
  int64_t tiles, blocks;   // of an image
  Divisor blocks_of_image;
};

inline ImageWork make_image_work(int64_t images, int64_t pixels, int64_t tile, int64_t max_blocks) {
  ImageWork work{images, pixels, divide_up(pixels, tile), 0, {}};
  if (images > 0) work.blocks = std::min(work.tiles, std::max<int64_t>(max_blocks / images, 1));
  work.blocks_of_image = Divisor(std::max<int64_t>(work.blocks, 1));
  return work;
}

// Resident blocks that the compiler has to leave registers for.
template <class T>
constexpr int kDiceBlocks = std::is_same_v<T, double> ? 2 : 4;  // tuning

}  // namespace segunc::cuda
