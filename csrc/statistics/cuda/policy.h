// How statistics are launched, of all samples at once as of one after another.
#pragma once
#include <utility>

#include "../../common/device/class_tile.h"
#include "../../common/device/warp_team.h"

namespace segunc::cuda::statistics {

using namespace device;

enum class Strategy { planar_registers, staged, interpolated, strided };

// Derived from occupancy and bytes in flight, not yet measured on a GPU. At 4.8 TB/s and about
// 0.8 us latency an H200 needs 4 MB in flight, 30 KB a multiprocessor. A thread keeps three numbers
// a class and pixel (exponential, mean, squared deviations), so V K is at most 32: with 19 classes
// these are 60 of 128 registers, 512 threads are resident and have 76 bytes each in flight, 39 KB.
// Fewer than 30 instructions an element keep fp32 at the bandwidth; bf16 is bound by them.
// Interpolated logits come from the caches: at four times the height and width 128 pixels of a row
// blend 33 logits of each of two rows, in fp32 2.5 bytes a logit of the results from the second
// level, and next to nothing from memory. Blending takes four loads, three interpolations and their
// addresses, about as many instructions as the rest: these are the limit. Of a stream it is the
// state, 16 bytes a logit of the results read and written.
struct Policy {
  static constexpr int kRegisterThreads = 128;      // of planar_registers and staged
  static constexpr int kInterpolatedThreads = 256;  // at most
  static constexpr int64_t kMaxBlocks = at_scale(1 << 30);
};

using NarrowBuckets = std::integer_sequence<int, 16, 20, 24, 32>;  // one pixel a thread

inline Strategy strategy_of(const ClassMap& map, const Interpolation& interpolation, Dtype dtype) {
  if (interpolation.used) {
    const bool in_warps = dtype != Dtype::f64 && make_warp_teams(map.classes) &&
                          result_pixels(map, interpolation) >= kMinTiledPixels;
    return in_warps ? Strategy::interpolated : Strategy::strided;
  }
  if (dtype == Dtype::f64 || map.layout == Layout::strided || map.classes > kMaxTileClasses ||
      map.pixels < kMinTiledPixels) {
    return Strategy::strided;
  }
  const bool registers = map.layout == Layout::planar && map.classes <= kMaxClassesOfThread;
  return registers ? Strategy::planar_registers : Strategy::staged;
}

// Resident blocks that the compiler has to leave registers for.
template <int Values>
constexpr int kResidentBlocks = Values > 32   ? 2
                                : Values > 24 ? 3
                                              : 4;
// The same of blocks of kInterpolatedThreads.
template <int Values>
constexpr int kInterpolatedBlocks = Values > 24  ? 1
                                    : Values > 8 ? 2
                                    : Values > 4 ? 3
                                                 : 4;

}  // namespace segunc::cuda::statistics
