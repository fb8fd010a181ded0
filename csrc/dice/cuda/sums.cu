// The sums over pixels that Dice is made of, on a GPU: a thread a pixel, in any layout, of logits
// in memory or interpolated ones.
//
// A warp adds up what its pixels have of a class, where some of them have that label also the other
// two sums, and puts it into its own row of doubles: in shared memory where there is room, else in
// global memory. Rows are added in their order, so sums depend on the sizes alone. The logits are
// read once for the maximum and the sum of exponentials, and again, from the cache, for the
// probabilities: two exponentials and five shuffles a logit.
#include "kernels.h"
#include "pixel.h"

namespace segunc::cuda {
namespace {

constexpr int kWarps = DicePolicy::kThreads / int(kWarpSize);
constexpr int kFinishThreads = 256;  // tuning

struct SumsPolicy {  // tuning
  // A row of sums each: few enough to be added up by a thread a class.
  static constexpr int64_t kMaxBlocks = at_scale(1024);
  // Of the rows of a block: four blocks fit a multiprocessor.
  static constexpr int64_t kMaxShared = 40 << 10;
};

// Blocks belong to images.
struct SumsWork {
  int64_t images, pixels;  // of an image
  int64_t tiles, blocks;   // of an image
  int64_t row;             // doubles of a row: kDiceSums * C, and the cross-entropy
  bool shares;             // whether rows are in shared memory, and then one remains of a block
  Divisor blocks_of_image;

  int64_t shared_bytes() const { return shares ? kWarps * row * int64_t(sizeof(double)) : 0; }
  int64_t rows_of_image() const { return blocks * (shares ? 1 : kWarps); }
};

SumsWork make_sums_work(const DiceParams& p) {
  SumsWork work{};
  work.images = p.map.images;
  work.pixels = result_pixels(p.map, p.interpolation);
  work.row = kDiceSums * p.map.classes + 1;
  work.tiles = divide_up(work.pixels, DicePolicy::kThreads);
  if (work.images > 0) {
    const int64_t most = SumsPolicy::kMaxBlocks / work.images;
    work.blocks = std::min(work.tiles, std::max<int64_t>(most, 1));
  }
  work.shares = kWarps * work.row * int64_t(sizeof(double)) <= SumsPolicy::kMaxShared;
  work.blocks_of_image = Divisor(std::max<int64_t>(work.blocks, 1));
  return work;
}

template <class T, class Pixels>
__global__ void __launch_bounds__(DicePolicy::kThreads, kDiceBlocks<T>)
    dice_sums_kernel(const DiceParams p, const SumsWork work, const ExactDiceShares exact,
                     const Pixels pixels) {
  using A = accumulate_t<T>;
  const DiceShares<A> shares(p, exact);
  const int64_t classes = p.map.classes;
  int64_t block;
  const int64_t image = work.blocks_of_image.divide(block_index(), block);
  double* const rows = work.shares ? dynamic_shared<double>()
                                   : p.partial + int64_t(block_index()) * kWarps * work.row;
  double* const row = rows + warp() * work.row;
  for (int64_t i = lane(); i < work.row; i += kWarpSize) row[i] = 0;
  warp_sync();
  double surprise = 0;
  BadTarget bad;
  for (int64_t tile = block; tile < work.tiles; tile += work.blocks_of_image.value) {
    const int64_t pixel = tile * DicePolicy::kThreads + thread();
    const bool inside = pixel < work.pixels;
    const int64_t index = image * work.pixels + pixel;
    const int label =
        inside ? label_of(load_index(p.target, p.target_type, index), classes, p.ignore_index, bad)
               : kOutside;
    const auto place = pixels.at(image, inside ? pixel : 0);
    const auto logit_of = [&](int64_t c) {
      return place.logit(static_cast<const T*>(p.input) + c * p.map.class_stride);
    };
    A maximum = 0, inverse = 0;
    if (label >= 0) {
      const auto online = online_softmax<A>(classes, logit_of);
      maximum = online.maximum;
      inverse = inverse_of_sum(online.sum);
      if (p.cross_entropy) {
        A loss = cross_entropy_of(shares, classes, label, maximum, online.sum, logit_of);
        if (p.pixel_weight) loss *= static_cast<const A*>(p.pixel_weight)[index];
        surprise += double(loss);
      }
    }
    // What is no class makes every sum NaN.
    const A otherwise = label == kOutOfRange ? kNaN<A> : A(0);
    if (p.cross_entropy) surprise += double(otherwise);
    for (int64_t c = 0; c < classes; c++) {
      const A probability =
          label >= 0 ? math::exp_nonpositive(logit_of(c) - maximum) * inverse : otherwise;
      const A predicted = warp_sum(math::dice_mass(p.squared, probability));
      const unsigned labelled = ballot(kFullMask, label == int(c));
      A common = 0;
      if (labelled) common = warp_sum(label == int(c) ? probability : A(0));
      if (lane() == 0) {
        row[kPredicted * classes + c] += double(predicted);
        if (labelled) {
          row[kLabelled * classes + c] += popcount(labelled);
          row[kCommon * classes + c] += double(common);
        }
      }
    }
  }
  bad.report(p.bad_target);
  surprise = warp_sum(surprise);
  if (lane() == 0) row[work.row - 1] = surprise;
  if (!work.shares) return;
  barrier();
  for (int64_t i = thread(); i < work.row; i += DicePolicy::kThreads) {
    double sum = 0;
    for (int w = 0; w < kWarps; w++) sum += rows[w * work.row + i];
    p.partial[int64_t(block_index()) * work.row + i] = sum;
  }
}

// A thread a sum; the last block adds up the cross-entropies. rows: of a table.
__global__ void __launch_bounds__(kFinishThreads)
    dice_sums_finish_kernel(const DiceParams p, const int64_t tables, const int64_t rows,
                            const Divisor sums_of_table) {
  const int64_t row = sums_of_table.value + 1;
  if (block_index() + 1 == grid_size()) {
    double sum = 0;
    for (int64_t r = thread(); r < tables * rows; r += kFinishThreads) {
      sum += p.partial[r * row + row - 1];
    }
    sum = block_sum(sum);
    if (thread() == 0) *p.surprise = sum;
    return;
  }
  const int64_t index = int64_t(block_index()) * kFinishThreads + thread();
  if (index >= tables * sums_of_table.value) return;
  int64_t i;
  const int64_t table = sums_of_table.divide(index, i);
  const double* partial = p.partial + table * rows * row + i;
  double sum = 0;
#pragma unroll 4
  for (int64_t r = 0; r < rows; r++) sum += partial[r * row];
  p.sums[index] = sum;
}

template <class T>
void launch_sums(const DiceParams& p, const SumsWork& work, Stream stream) {
  const int64_t blocks = work.images * work.blocks;
  if (blocks > 0) {
    with_pixels<accumulate_t<T>>(p, [&](const auto& pixels) {
      launch(dice_sums_kernel<T, std::decay_t<decltype(pixels)>>, blocks, DicePolicy::kThreads,
             work.shared_bytes(), stream, p, work, ExactDiceShares(p), pixels);
    });
  }
  const int64_t tables = p.by_image ? work.images : 1, sums = kDiceSums * p.map.classes;
  const int64_t rows = work.images * work.rows_of_image() / std::max<int64_t>(tables, 1);
  launch(dice_sums_finish_kernel, divide_up(tables * sums, kFinishThreads) + 1, kFinishThreads, 0,
         stream, p, tables, rows, Divisor(sums));
}

}  // namespace

DicePlan plan_dice_sums(const DiceParams& params) {
  const SumsWork work = make_sums_work(params);
  return {work.images * work.rows_of_image() * work.row, 0,
          [work](const DiceParams& p, Stream stream) {
            with_dtype("dice_sums", p.dtype,
                       [&](auto t) { launch_sums<decltype(t)>(p, work, stream); });
          }};
}

}  // namespace segunc::cuda
