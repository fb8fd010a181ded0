// The gradient of Dice and binary cross-entropy of regions on a GPU, of planar logits: one read of
// the logits and one write, which may go to where they were read.
#include "planes.h"
#include "slopes.h"

namespace segunc::cuda {
namespace {

// Instructions a logit on sm_90, with masks and weights and the costliest of targets; an H200
// issues 55 for an fp32 logit and its gradient at the bandwidth of a copy, and 27 for a bf16 one.
// report: budget dice_bce_gradient_planes_kernel<float> 58
// report: budget dice_bce_gradient_planes_kernel<bfloat16> 60

template <class T>
__global__ void __launch_bounds__(PlanePolicy::kPlaneThreads, 4)
    dice_bce_gradient_planes_kernel(const DiceBceParams p, const ImageWork work,
                                    const Divisor classes) {
  constexpr int V = PlanePixels::kCount;
  const Plane plane(p, work, classes);
  const float factor = cross_entropy_factor<float>(p);
  const float positive = label_weight<float>(p, plane.region, 1);
  const double upstream = double(*static_cast<const float*>(p.upstream));
  const double* const coefficients =
      p.coefficients + (p.by_image ? plane.image : 0) * kDiceSlopes * classes.value + plane.region;
  const float by_predicted = float(coefficients[kByPredicted * classes.value] * upstream);
  const float by_common = float(coefficients[kByCommon * classes.value] * upstream);
  // Of the slope by p, what grows with p and what does not; and the factors of the cross-entropy's
  // derivative, p or p - 1: where the target is 0, and where it is 1.
  const float rising = p.squared ? math::dice_slope(true, by_predicted, 1.f) : 0.f;
  const float constant = p.squared ? 0.f : by_predicted;
  const float constant_of_label = constant + by_common;
  const float factor_of_label = -positive * factor;
  T* const gradients = static_cast<T*>(p.grad_input) + plane.image * p.grad_map.image_stride +
                       plane.region * p.grad_map.class_stride;
  const int step = int(work.blocks_of_image.value), tiles = int(work.tiles);
  UnreportedTarget bad;
  // report: hot 4
  for (int tile = int(plane.block); tile < tiles; tile += step) {
    const int64_t start = int64_t(tile) * PlanePolicy::kTile;
    const int count = tile_pixels(PlanePolicy::kTile, work.pixels - start);
    const int at = int(thread());
    if (at >= count) continue;
    const PlanePixels pixels(count - at);
    const auto of = load_region<T>(p, pixels, plane, start + at, bad);
    Vector<T, V> gradient;
#pragma unroll
    for (int j = 0; j < V; j++) {
      const float logit = of.logit[j];
      const auto sigmoids = short_sigmoids_of(logit);
      const bool is_label = of.label[j] == 1;
      const float probability = sigmoids.of(logit);
      const float slope = rising * probability + (is_label ? constant_of_label : constant);
      const float of_surprise = is_label ? sigmoids.of(-logit) : probability;
      const float factor_of_pixel = of.weight[j] * (is_label ? factor_of_label : factor);
      const float v = slope * sigmoids.derivative() + factor_of_pixel * of_surprise;
      gradient[j] = from_accumulate<T>(of.counts[j] ? v : 0.f);
    }
    pixels.store(gradients + start + at, gradient);
  }
  // report: end
}

template <class T>
void launch_gradient(const DiceBceParams& p, const ImageWork& work, Stream stream) {
  launch(dice_bce_gradient_planes_kernel<T>, work.images * work.blocks, PlanePolicy::kPlaneThreads,
         0, stream, p, work, Divisor(p.map.classes));
}

}  // namespace

DiceBcePlan plan_dice_bce_gradient_of_planes(const DiceBceParams& params) {
  const ImageWork work = make_plane_work(params, PlanePolicy::kMaxGradientBlocks);
  return {0, 0, [work](const DiceBceParams& p, Stream stream) {
            with_dtype("dice_bce_gradient", p.dtype, [&](auto t) {
              if constexpr (!std::is_same_v<decltype(t), double>) {
                launch_gradient<decltype(t)>(p, work, stream);
              }
            });
          }};
}

}  // namespace segunc::cuda
