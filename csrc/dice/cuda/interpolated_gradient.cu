// The gradient of Dice and cross-entropy on a GPU, of logits that are interpolated to the target's
// size. A thread a target pixel keeps what its gradients need in scratch memory; then a thread a
// logit gathers, in a fixed order, from the pixels that it has a share in.
#include "kernels.h"
#include "pixel.h"

namespace segunc::cuda {
namespace {

template <class A>
DiceGradientTerms<A>* terms_in(const DiceParams& p) {
  return reinterpret_cast<DiceGradientTerms<A>*>(static_cast<char*>(p.scratch) + slopes_bytes(p));
}

template <class T>
__global__ void __launch_bounds__(DicePolicy::kThreads, kDiceBlocks<T>)
    dice_gradient_pixels_kernel(const DiceParams p, const Work work, const ExactDiceShares exact,
                                const InterpolatedPixels<accumulate_t<T>> pixels,
                                const Divisor pixels_of_image,
                                DiceGradientTerms<accumulate_t<T>>* const saved) {
  using A = accumulate_t<T>;
  const DiceShares<A> shares(p, exact);
  const A factor = cross_entropy_factor<A>(p);
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    if (index >= work.pixels) continue;
    int64_t pixel;
    const int64_t image = pixels_of_image.divide(index, pixel);
    const DiceSlopes<A> slopes(p, static_cast<const A*>(p.scratch), image);
    const auto place = pixels.at(image, pixel);
    const auto logit_of = [&](int64_t c) {
      return place.logit(static_cast<const T*>(p.input) + c * p.map.class_stride);
    };
    const int label =
        label_of(load_index(p.target, p.target_type, index), p.map.classes, p.ignore_index);
    const auto terms = gradient_terms(p, shares, slopes, factor, index, label, logit_of);
    if (p.grad_input) saved[index] = terms;
  }
}

template <class T>
__global__ void __launch_bounds__(DicePolicy::kThreads, kDiceBlocks<T>)
    dice_gradient_gather_kernel(const DiceParams p, const ExactDiceShares exact,
                                const Axes<accumulate_t<T>> axes, const Divisor source_pixels,
                                const Divisor classes, const Divisor rows, const Divisor columns,
                                const DiceGradientTerms<accumulate_t<T>>* const saved) {
  using A = accumulate_t<T>;
  const DiceShares<A> shares(p, exact);
  const int64_t count = p.map.images * classes.value * source_pixels.value;
  const int64_t step = int64_t(grid_size()) * DicePolicy::kThreads;
  for (int64_t item = int64_t(block_index()) * DicePolicy::kThreads + thread(); item < count;
       item += step) {
    int64_t pixel, c, source_row, source_column;
    const int64_t image = classes.divide(source_pixels.divide(item, pixel), c);
    const int64_t source_slice = rows.divide(columns.divide(pixel, source_column), source_row);
    const T* const logits = static_cast<const T*>(p.input) + c * p.map.class_stride;
    const DiceSlopes<A> slopes(p, static_cast<const A*>(p.scratch), image);
    const A a = load_read_only(slopes.by_predicted + c);
    const math::Support in_slices = math::support_of(axes.slices, int(source_slice));
    const math::Support in_rows = math::support_of(axes.rows, int(source_row));
    const math::Support in_columns = math::support_of(axes.columns, int(source_column));
    A sum = 0;
    for (int slice = in_slices.first; slice < in_slices.last; slice++) {
      const auto near_slice = math::neighbours_of(axes.slices, slice);
      for (int row = in_rows.first; row < in_rows.last; row++) {
        const auto near_row = math::neighbours_of(axes.rows, row);
        const A share_of_row = math::interpolation_share(near_slice, int(source_slice)) *
                               math::interpolation_share(near_row, int(source_row));
        const int64_t first =
            ((image * p.interpolation.size[0] + slice) * p.interpolation.size[1] + row) *
            p.interpolation.size[2];
        for (int column = in_columns.first; column < in_columns.last; column++) {
          const auto near_column = math::neighbours_of(axes.columns, column);
          const A share = share_of_row * math::interpolation_share(near_column, int(source_column));
          const int label = label_of(load_index(p.target, p.target_type, first + column),
                                     p.map.classes, p.ignore_index);
          if (!(share > A(0)) || label == kIgnored) continue;
          const DiceGradientTerms<A> terms = saved[first + column];
          const InterpolatedPixel<A> place(p.map, image, near_slice, near_row, near_column);
          // terms.shift is NaN where the target is no class.
          sum += share * (label >= 0 ? logit_gradient(p, shares, terms, place.logit(logits), a,
                                                      int(c), label)
                                     : terms.shift);
        }
      }
    }
    const ClassMap& map = p.grad_map;
    static_cast<T*>(p.grad_input)[image * map.image_stride + source_slice * map.stride[0] +
                                  source_row * map.stride[1] + source_column * map.stride[2] +
                                  c * map.class_stride] = from_accumulate<T>(sum);
  }
}

template <class T>
void launch_gradient(const DiceParams& p, const Work& work, Stream stream) {
  using A = accumulate_t<T>;
  launch_slopes(p, stream);
  const InterpolatedPixels<A> pixels(p.map, p.interpolation);
  DiceGradientTerms<A>* const saved = terms_in<A>(p);
  launch(dice_gradient_pixels_kernel<T>, work.blocks, DicePolicy::kThreads, 0, stream, p, work,
         ExactDiceShares(p), pixels, Divisor(pixels.count), saved);
  if (!p.grad_input) return;
  const int64_t logits = p.map.images * p.map.classes * p.map.pixels;
  const int64_t blocks = std::min(divide_up(logits, DicePolicy::kThreads), DicePolicy::kMaxBlocks);
  launch(dice_gradient_gather_kernel<T>, blocks, DicePolicy::kThreads, 0, stream, p,
         ExactDiceShares(p), pixels.axes, Divisor(p.map.pixels), Divisor(p.map.classes),
         Divisor(p.map.size[1]), Divisor(p.map.size[2]), saved);
}

}  // namespace

DicePlan plan_interpolated_dice_gradient(const DiceParams& params) {
  const int64_t pixels = params.map.images * result_pixels(params.map, params.interpolation);
  if (is_empty(params.map) || pixels == 0) return {};
  const Work work = make_work(1, pixels, DicePolicy::kThreads, DicePolicy::kMaxBlocks);
  const int64_t terms = params.dtype == Dtype::f64 ? sizeof(DiceGradientTerms<double>)
                                                   : sizeof(DiceGradientTerms<float>);
  return {0, slopes_bytes(params) + (params.grad_input ? pixels * terms : 0),
          [work](const DiceParams& p, Stream stream) {
            with_dtype("dice_gradient_interpolated", p.dtype,
                       [&](auto t) { launch_gradient<decltype(t)>(p, work, stream); });
          }};
}

}  // namespace segunc::cuda
