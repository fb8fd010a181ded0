// How statistics are launched, of all samples at once as of one after another.
#pragma once
#include "../../common/device/class_tile.h"
#include "../../common/device/warp_team.h"

namespace segunc::cuda::statistics {

using namespace device;

enum class Strategy { planar_registers, staged, interpolated, strided };

// Derived from machine code, occupancy and bytes in flight, not yet measured on a GPU.
//
// Instructions: at the bandwidth of memory an H200 issues 27 for a logit that it reads in fp32 and
// 14 in bf16, all of its slots used. Of ten samples, without a map of means, sm_90 takes (fp32 /
// bf16)
//   planar_registers  15.6 / 16.6 with 19 classes, 15.3 to 19.0 / 16.3 to 20.2 with any number from
//                     17 to 32, 14.6 / 17.9 with 16
// so that fp32 is bound by memory and 16 bits by instructions.
//
// Memory: at 4.8 TB/s and about 0.8 us latency an H200 needs 4 MB in flight, 30 KB a
// multiprocessor. A thread keeps three numbers a class and pixel (exponential, mean, squared
// deviations), so V K is at most 32: with 19 classes these are 57 of 80 registers, 768 threads are
// resident and have 76 bytes each in flight, 58 KB (bf16: 29 KB). They hide each other's latency
// better than fewer threads with two pixels of 16 bits each, which take 15.5 instructions a logit.
//
// Interpolated logits come from the caches: at four times the height and width 128 pixels of a row
// blend 33 logits of each of two rows, in fp32 2.5 bytes a logit of the results from the second
// level, and next to nothing from memory. Blending takes four loads, three interpolations and their
// addresses, about as many instructions as the rest: these are the limit. Of a stream it is the
// state, 16 bytes a logit of the results read and written.
// tuning
struct Policy {
  static constexpr int kRegisterThreads = 128;      // of planar_registers and staged
  static constexpr int kInterpolatedThreads = 256;  // at most
  static constexpr int64_t kMaxBlocks = at_scale(1 << 30);
};

inline Strategy strategy_of(const ClassMap& map, const Interpolation& interpolation, Dtype dtype) {
  // Kernels multiply the strides of classes as 32 bits, in the logits and in the results.
  if (!has_short_strides(map) || result_pixels(map, interpolation) > 0xffffffff) {
    return Strategy::strided;
  }
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
constexpr int kResidentBlocks = Values > 32   ? 2  // tuning
                                : Values > 24 ? 3
                                              : 4;
// The same of blocks of kInterpolatedThreads.
template <int Values>
constexpr int kInterpolatedBlocks = Values > 24  ? 1  // tuning
                                    : Values > 8 ? 2
                                    : Values > 4 ? 3
                                                 : 4;

}  // namespace segunc::cuda::statistics
