// The gradient of Dice and binary cross-entropy of regions on a GPU: a thread a pixel, in any
// layout, which is what planes (planes.h) do not take; one read of the logits and one write.
#include "kernels.h"
#include "planes.h"
#include "regions.h"
#include "slopes.h"

namespace segunc::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(DicePolicy::kThreads, kDiceBlocks<T>)
    dice_bce_gradient_kernel(const DiceBceParams p, const Work work, const Divisor pixels_of_image,
                             const PixelOffset offset, const PixelOffset grad_offset) {
  using A = accumulate_t<T>;
  const A shared_factor = cross_entropy_factor<A>(p);
  // report: hot C
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    if (index >= work.pixels) continue;
    int64_t pixel;
    const int64_t image = pixels_of_image.divide(index, pixel);
    const DiceSlopes<A> slopes(p, static_cast<const A*>(p.scratch), image);
    const RegionTargets targets(p, image, pixel);
    const T* const logits =
        static_cast<const T*>(p.input) + image * p.map.image_stride + offset(pixel);
    T* const gradient = p.grad_input ? static_cast<T*>(p.grad_input) +
                                           image * p.grad_map.image_stride + grad_offset(pixel)
                                     : nullptr;
    const bool counts = counts_pixel(p, index);
    A factor = shared_factor, loss = 0;
    if (counts && p.pixel_weight) factor *= static_cast<const A*>(p.pixel_weight)[index];
    // report: trips C
    for (int64_t c = 0; c < p.map.classes; c++) {
      A v = 0;
      if (counts) {
        const int label = targets.of(c);
        const A logit = to_accumulate(logits[c * p.map.class_stride]);
        const auto sigmoids = sigmoids_of(logit);
        const A weight = label_weight<A>(p, c, label);
        A by_probability = math::dice_slope(p.squared, load_read_only(slopes.by_predicted + c),
                                            sigmoids.of(logit));
        if (label == 1) by_probability += load_read_only(slopes.by_common + c);
        const A of_surprise = label == 1 ? -weight * sigmoids.of(-logit) : sigmoids.of(logit);
        v = by_probability * sigmoids.derivative() + factor * of_surprise;
        if (p.grad_pixel_weight) loss += cross_entropy_of(sigmoids, logit, label, weight);
        // What is neither 0 nor 1 makes the gradients NaN, as it has made the loss.
        if (label == kOutOfRange) v = loss = kNaN<A>;
      }
      if (gradient) gradient[c * p.grad_map.class_stride] = from_accumulate<T>(v);
    }
    if (p.grad_pixel_weight) static_cast<A*>(p.grad_pixel_weight)[index] = loss * shared_factor;
  }
  // report: end
}

template <class T>
void launch_gradient(const DiceBceParams& p, const Work& work, Stream stream) {
  launch_slopes(p, stream);
  launch(dice_bce_gradient_kernel<T>, work.blocks, DicePolicy::kThreads, 0, stream, p, work,
         Divisor(p.map.pixels), PixelOffset(p.map), PixelOffset(p.grad_input ? p.grad_map : p.map));
}

}  // namespace

DiceBcePlan plan_dice_bce_gradient(const DiceBceParams& params) {
  if (is_empty(params.map)) return {};
  if (params.grad_input && takes_planes(params)) return plan_dice_bce_gradient_of_planes(params);
  const Work work = make_work(1, params.map.images * params.map.pixels, DicePolicy::kThreads,
                              DicePolicy::kMaxBlocks);
  return {0, slopes_bytes(params), [work](const DiceBceParams& p, Stream stream) {
            with_dtype("dice_bce_gradient", p.dtype,
                       [&](auto t) { launch_gradient<decltype(t)>(p, work, stream); });
          }};
}

}  // namespace segunc::cuda
