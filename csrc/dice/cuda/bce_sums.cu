// The sums over pixels that Dice of regions is made of, and that of their binary cross-entropies,
// on a GPU: a thread a pixel, in any layout, which is what planes (planes.h) do not take. One read
// of the logits: an exponential, a logarithm and five to ten shuffles a logit.
#include "kernels.h"
#include "planes.h"
#include "regions.h"
#include "sums.h"

namespace segunc::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(DicePolicy::kThreads, kDiceBlocks<T>)
    dice_bce_sums_kernel(const DiceBceParams p, const SumsWork work, const PixelOffset offset) {
  using A = accumulate_t<T>;
  int64_t block;
  const int64_t image = work.blocks_of_image.divide(block_index(), block);
  const WarpSums sums(p, work);
  double surprise = 0;
  BadTarget bad;
  // report: hot C
  for (int64_t tile = block; tile < work.tiles; tile += work.blocks_of_image.value) {
    const int64_t pixel = tile * DicePolicy::kThreads + thread();
    const int64_t index = image * work.pixels + pixel;
    const bool counts = pixel < work.pixels && counts_pixel(p, index);
    const int64_t place = counts ? pixel : 0;
    const RegionTargets targets(p, image, place);
    const T* const logits =
        static_cast<const T*>(p.input) + image * p.map.image_stride + offset(place);
    A loss = 0;
    // report: trips C
    for (int64_t c = 0; c < p.map.classes; c++) {
      A probability = 0;
      int label = 0;
      if (counts) {
        label = targets.of(c);
        const A logit = to_accumulate(logits[c * p.map.class_stride]);
        const auto sigmoids = sigmoids_of(logit);
        probability = sigmoids.of(logit);
        if (p.cross_entropy) {
          loss += cross_entropy_of(sigmoids, logit, label, label_weight<A>(p, c, label));
        }
        if (label == kOutOfRange) {
          // It makes every sum that it has a part in NaN.
          probability = kNaN<A>;
          if (p.cross_entropy) loss = kNaN<A>;
          bad.remember(kNeitherZeroNorOne);
        }
      }
      sums.add(p, c, probability, label == 1);
    }
    if (counts && p.pixel_weight) loss *= static_cast<const A*>(p.pixel_weight)[index];
    surprise += double(loss);
  }
  // report: end
  bad.report(p.bad_target);
  sums.finish(p, work, surprise);
}

template <class T>
void launch_sums(const DiceBceParams& p, const SumsWork& work, Stream stream) {
  const int64_t blocks = work.images * work.blocks;
  if (blocks > 0) {
    launch(dice_bce_sums_kernel<T>, blocks, DicePolicy::kThreads, work.shared_bytes(), stream, p,
           work, PixelOffset(p.map));
  }
  launch_sums_finish(p, work, stream);
}

}  // namespace

DiceBcePlan plan_dice_bce_sums(const DiceBceParams& params) {
  if (!is_empty(params.map) && takes_planes(params)) return plan_dice_bce_sums_of_planes(params);
  const SumsWork work = make_sums_work(params);
  return {work.images * work.rows_of_image() * work.row, 0,
          [work](const DiceBceParams& p, Stream stream) {
            with_dtype("dice_bce_sums", p.dtype,
                       [&](auto t) { launch_sums<decltype(t)>(p, work, stream); });
          }};
}

}  // namespace segunc::cuda
