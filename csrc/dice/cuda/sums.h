// How the sums that Dice is made of are added up on a GPU.
//
// A warp adds up what its pixels have of a class, where some of them have that label also the other
// two sums, and puts it into its own row of doubles: in shared memory where there is room, else in
// global memory. Rows are added in their order, so sums depend on the sizes alone.
#pragma once
#include "../../common/device/block.h"
#include "../../common/device/work.h"
#include "../../math/dice.h"
#include "policy.h"

namespace segunc::cuda {

constexpr int kSumsWarps = DicePolicy::kThreads / int(kWarpSize);

struct SumsPolicy {  // tuning
  // A row of sums each: few enough to be added up by a thread a class.
  static constexpr int64_t kMaxBlocks = at_scale(1024);
  // Of the rows of a block: four blocks fit a multiprocessor.
  static constexpr int64_t kMaxShared = 40 << 10;
  // Tiles whose floats a thread adds up before it goes on in doubles.
  static constexpr int kTilesOfRound = int(at_scale(16));
};

struct SumsWork : ImageWork {
  int64_t row;        // doubles of a row: kDiceSums * C, and its cross-entropies
  int64_t surprises;  // how many of these
  bool shares;        // whether warps have rows in shared memory, and then one remains of a block

  int64_t shared_bytes() const { return shares ? kSumsWarps * row * int64_t(sizeof(double)) : 0; }
  int64_t rows_of_image() const { return blocks * (shares ? 1 : kSumsWarps); }
};

inline SumsWork make_sums_work(const OverlapParams& p) {
  const int64_t row = kDiceSums * p.map.classes + 1;
  return {make_image_work(p.map.images, result_pixels(p.map, p.interpolation), DicePolicy::kThreads,
                          SumsPolicy::kMaxBlocks),
          row, 1, kSumsWarps * row * int64_t(sizeof(double)) <= SumsPolicy::kMaxShared};
}

// A warp's row of sums. A block makes its own before any of its warps is done.
struct WarpSums {
  double *rows, *row;  // of the block, of the warp

  SEGUNC_DEVICE WarpSums(const OverlapParams& p, const SumsWork& work)
      : rows(work.shares ? dynamic_shared<double>()
                         : p.partial + int64_t(block_index()) * kSumsWarps * work.row),
        row(rows + warp() * work.row) {
    for (int64_t i = lane(); i < work.row; i += kWarpSize) row[i] = 0;
    warp_sync();
  }

  // Of class c, a pixel a thread. The whole warp takes part.
  template <class A>
  SEGUNC_DEVICE void add(const OverlapParams& p, int64_t c, A probability, bool is_label) const {
    const int64_t classes = p.map.classes;
    const A predicted = warp_sum(math::dice_mass(p.squared, probability));
    const unsigned labelled = ballot(kFullMask, is_label);
    A common = 0;
    if (labelled) common = warp_sum(is_label ? probability : A(0));
    if (lane() == 0) {
      row[kPredicted * classes + c] += double(predicted);  // report: generic
      if (labelled) {
        row[kLabelled * classes + c] += popcount(labelled);  // report: generic
        row[kCommon * classes + c] += double(common);        // report: generic
      }
    }
  }

  // surprise: of a thread's pixels. The whole block takes part.
  SEGUNC_DEVICE void finish(const OverlapParams& p, const SumsWork& work, double surprise) const {
    surprise = warp_sum(surprise);
    if (lane() == 0) row[work.row - 1] = surprise;
    if (!work.shares) return;
    barrier();
    for (int64_t i = thread(); i < work.row; i += DicePolicy::kThreads) {
      double sum = 0;
      for (int w = 0; w < kSumsWarps; w++) sum += rows[w * work.row + i];
      p.partial[int64_t(block_index()) * work.row + i] = sum;
    }
  }
};

// Adds up the rows that a launch of such blocks has left.
void launch_sums_finish(const OverlapParams& params, const SumsWork& work, Stream stream);

}  // namespace segunc::cuda
