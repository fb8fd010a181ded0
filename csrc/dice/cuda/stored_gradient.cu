// The gradient of Dice and cross-entropy on a GPU, of logits of the target's size: a thread a
// pixel, in any layout: what planar_registers (planar.h) does not take. The logits are read for the
// softmax and the sum of a_c p_c, and once more, from the cache, for the gradient.
#include "kernels.h"
#include "pixel.h"
#include "planar.h"

namespace segunc::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(DicePolicy::kThreads, kDiceBlocks<T>)
    dice_gradient_stored_kernel(const DiceParams p, const Work work, const ExactDiceShares exact,
                                const Divisor pixels_of_image, const PixelOffset offset,
                                const PixelOffset grad_offset) {
  using A = accumulate_t<T>;
  const DiceShares<A> shares(p, exact);
  const A factor = cross_entropy_factor<A>(p);
  const int64_t classes = p.map.classes;
  // report: hot C
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    if (index >= work.pixels) continue;
    int64_t pixel;
    const int64_t image = pixels_of_image.divide(index, pixel);
    const DiceSlopes<A> slopes(p, static_cast<const A*>(p.scratch), image);
    const T* const logits =
        static_cast<const T*>(p.input) + image * p.map.image_stride + offset(pixel);
    const auto logit_of = [&](int64_t c) { return to_accumulate(logits[c * p.map.class_stride]); };
    const int label = label_of(load_index(p.target, p.target_type, index), classes, p.ignore_index);
    const auto terms = gradient_terms(p, shares, slopes, factor, index, label, logit_of);
    if (!p.grad_input) continue;
    T* const gradient =
        static_cast<T*>(p.grad_input) + image * p.grad_map.image_stride + grad_offset(pixel);
    // report: trips elements * (2 * sizeof(T) + 4) / accessed
    for (int64_t c = 0; c < classes; c++) {
      // terms.shift is NaN where the target is no class.
      const A v = label >= 0
                      ? logit_gradient(p, shares, terms, logit_of(c),
                                       load_read_only(slopes.by_predicted + c), int(c), label)
                      : terms.shift;
      gradient[c * p.grad_map.class_stride] = from_accumulate<T>(v);
    }
  }
  // report: end
}

template <class T>
void launch_gradient(const DiceParams& p, const Work& work, Stream stream) {
  launch_slopes(p, stream);
  launch(dice_gradient_stored_kernel<T>, work.blocks, DicePolicy::kThreads, 0, stream, p, work,
         ExactDiceShares(p), Divisor(p.map.pixels), PixelOffset(p.map),
         PixelOffset(p.grad_input ? p.grad_map : p.map));
}

}  // namespace

DicePlan plan_stored_dice_gradient(const DiceParams& params) {
  if (is_empty(params.map)) return {};
  if (takes_planar_registers(params)) {
    const ImageWork work = make_planar_work(params, PlanarPolicy::kMaxGradientBlocks);
    return {0, 0, [work](const DiceParams& p, Stream stream) {
              launch_planar_gradient(p, work, stream);
            }};
  }
  const Work work = make_work(1, params.map.images * params.map.pixels, DicePolicy::kThreads,
                              DicePolicy::kMaxBlocks);
  return {0, slopes_bytes(params), [work](const DiceParams& p, Stream stream) {
            with_dtype("dice_gradient_stored", p.dtype,
                       [&](auto t) { launch_gradient<decltype(t)>(p, work, stream); });
          }};
}

}  // namespace segunc::cuda
