// The sums over pixels that Dice is made of, on a GPU: a thread a pixel, in any layout, of logits
// in memory or interpolated ones.
// What planar_registers (planar.h) does not take.
// The logits are read once for the maximum and the sum of exponentials, and again, from the cache,
// for the probabilities: two exponentials and five shuffles a logit.
#include "kernels.h"
#include "pixel.h"
#include "planar.h"
#include "sums.h"

namespace segunc::cuda {
namespace {

template <class T, class Pixels>
__global__ void __launch_bounds__(DicePolicy::kThreads, kDiceBlocks<T>)
    dice_sums_kernel(const DiceParams p, const SumsWork work, const ExactDiceShares exact,
                     const Pixels pixels) {
  using A = accumulate_t<T>;
  const DiceShares<A> shares(p, exact);
  const int64_t classes = p.map.classes;
  int64_t block;
  const int64_t image = work.blocks_of_image.divide(block_index(), block);
  const WarpSums sums(p, work);
  double surprise = 0;
  BadTarget bad;
  // report: hot C
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
    // report: trips elements * (sizeof(T) + 48) / accessed
    for (int64_t c = 0; c < classes; c++) {
      const A probability =
          label >= 0 ? math::exp_nonpositive(logit_of(c) - maximum) * inverse : otherwise;
      sums.add(p, c, probability, label == int(c));
    }
  }
  // report: end
  bad.report(p.bad_target);
  sums.finish(p, work, surprise);
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
  launch_sums_finish(p, work, stream);
}

}  // namespace

DicePlan plan_dice_sums(const DiceParams& params) {
  SumsWork work = make_sums_work(params);
  if (!is_empty(params.map) && takes_planar_registers(params)) {
    // A row a block.
    work = {make_planar_work(params, PlanarPolicy::kMaxSumsBlocks), work.row, 1, true};
    return {work.images * work.blocks * work.row, 0, [work](const DiceParams& p, Stream stream) {
              launch_planar_sums(p, work, stream);
              launch_sums_finish(p, work, stream);
            }};
  }
  return {work.images * work.rows_of_image() * work.row, 0,
          [work](const DiceParams& p, Stream stream) {
            with_dtype("dice_sums", p.dtype,
                       [&](auto t) { launch_sums<decltype(t)>(p, work, stream); });
          }};
}

}  // namespace segunc::cuda
