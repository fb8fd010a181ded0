// Losses of uncertain binary labels on a GPU: loss and gradients from one read of mean,
// log-variance and target (math/label_uncertainty.h). A thread owns V neighbouring pixels, which
// move as vectors, or takes its pixels of a tile one by one, in any layout and alignment.
#include "../../common/device/integer.h"
#include "../../common/device/labels.h"
#include "../../common/device/softmax.h"
#include "../../common/device/work.h"
#include "../../math/cross_entropy.h"
#include "../../math/label_uncertainty.h"
#include "kernels.h"

namespace segunc::cuda {
namespace {

using namespace device;

// ---- Launch policy ----

// A pixel moves 24 bytes in fp32 with int64 targets and 16 in bf16; at the bandwidth of a copy an
// H200 issues 165 and 110 instructions meanwhile. Half of that is out of reach: a pixel has three
// sigmoids, two logarithms and a root. 64 registers, so that 1024 threads are resident and have
// 64 KB (bf16: 48 KB) in flight.
// report: budget label_uncertainty_kernel<float, 4> 155
// report: budget label_uncertainty_kernel<bfloat16, 4> 158
struct LabelUncertaintyPolicy {  // tuning
  static constexpr int kThreads = 256;
  static constexpr int kWidth = 4;  // pixels a thread
  static constexpr int kTile = kThreads * kWidth;
  static constexpr int64_t kMaxBlocks = at_scale(8192);
};

struct Functions {
  SEGUNC_DEVICE static float exponential(float x) { return device::exponential(x); }
  SEGUNC_DEVICE static double exponential(double x) { return math::exp_nonpositive(x); }
  SEGUNC_DEVICE static float inverse(float x) { return reciprocal(x); }
  SEGUNC_DEVICE static double inverse(double x) { return 1.0 / x; }
  SEGUNC_DEVICE static float root(float x) { return square_root(x); }
  SEGUNC_DEVICE static double root(double x) { return std::sqrt(x); }
  template <class A>
  SEGUNC_DEVICE static A logarithm(A sum) {
    return log_of_sum(sum);
  }
};

// Where pixels lie in mean, log-variance and their gradients, if they are not planar.
struct Places {
  PixelOffset mean, variance, grad_mean, grad_variance;
};

template <int V>
SEGUNC_DEVICE int64_t place_of(const ClassMap& map, const PixelOffset& offset, int64_t image,
                               int64_t pixel) {
  const bool is_planar = V > 1 || map.layout == Layout::planar;
  return image * map.image_stride + (is_planar ? pixel : offset(pixel));
}

// V: pixels that move together; the tile is LabelUncertaintyPolicy's whatever they are, so that a
// block's sum is of the same pixels.
template <class T, int V>
__global__ void __launch_bounds__(LabelUncertaintyPolicy::kThreads, sizeof(T) > 4 ? 2 : 4)
    label_uncertainty_kernel(const LabelUncertaintyParams p, const Work work, const Places places) {
  using A = accumulate_t<T>;
  constexpr int kStep = LabelUncertaintyPolicy::kThreads * V;
  const math::LabelUncertainty<A> of{A(p.threshold), A(p.uncertainty_weight), A(p.bootstrap_weight),
                                     p.detach_weight};
  A scale = A(1);
  if (p.upstream_is_scalar && p.upstream) scale = *static_cast<const A*>(p.upstream);
  if (p.normalizer) scale *= inverse(A(*p.normalizer));
  const void* const upstreams = p.upstream_is_scalar ? nullptr : p.upstream;
  const AdjacentPixels<V> pixels;
  double sum = 0;
  BadTarget bad;
  TileWalk walk(work);
  int at = int(thread()) * V;  // of a tile, in steps
  // report: hot V
  while (walk.image < p.mean_map.images) {
    const int64_t start = int64_t(walk.tile) * work.tile;
    const bool may_flip = !p.bootstrap || p.bootstrap[walk.image];
    if (at < tile_pixels(work.tile, p.mean_map.pixels - start)) {
      const int64_t pixel = start + at, first = walk.image * p.mean_map.pixels + pixel;
      const T* const means =
          static_cast<const T*>(p.mean) + place_of<V>(p.mean_map, places.mean, walk.image, pixel);
      const T* const log_variances =
          static_cast<const T*>(p.log_variance) +
          place_of<V>(p.variance_map, places.variance, walk.image, pixel);
      // All that is read is on its way before anything waits.
      int64_t target[V];
      load_targets(p, pixels, first, target);
      const auto raw_mean = pixels.load_all(means),
                 raw_log_variance = pixels.load_all(log_variances);
      const auto weight = load_factors<A>(pixels, p.pixel_weight, first);
      const auto upstream = load_factors<A>(pixels, upstreams, first);
      const auto mean = to_accumulates(raw_mean), log_variance = to_accumulates(raw_log_variance);
      Vector<A, V> loss, weight_gradient;
      Vector<T, V> mean_gradient, variance_gradient;
#pragma unroll
      for (int j = 0; j < V; j++) {
        const int label = label_of(target[j], 2, p.ignore_index, bad);
        const auto v =
            math::uncertain_loss<Functions>(of, mean[j], log_variance[j], label == 1, may_flip);
        const auto weighted = math::weighted(v.loss, weight[j], upstream[j] * scale);
        const A nothing = label == kOutOfRange ? kNaN<A> : A(0);
        const bool valid = label >= 0;
        loss[j] = valid ? weighted.loss : nothing;
        weight_gradient[j] = valid ? weighted.weight_gradient : nothing;
        mean_gradient[j] = from_accumulate<T>(valid ? v.by_mean * weighted.factor : nothing);
        variance_gradient[j] =
            from_accumulate<T>(valid ? v.by_log_variance * weighted.factor : nothing);
        sum += double(loss[j]);
      }
      if (p.loss) pixels.store(static_cast<A*>(p.loss) + first, loss);
      if (p.grad_pixel_weight) {
        pixels.store(static_cast<A*>(p.grad_pixel_weight) + first, weight_gradient);
      }
      if (p.grad_mean) {
        pixels.store(static_cast<T*>(p.grad_mean) +
                         place_of<V>(p.grad_mean_map, places.grad_mean, walk.image, pixel),
                     mean_gradient);
      }
      if (p.grad_log_variance) {
        pixels.store(static_cast<T*>(p.grad_log_variance) +
                         place_of<V>(p.grad_variance_map, places.grad_variance, walk.image, pixel),
                     variance_gradient);
      }
    }
    at += kStep;
    if (at >= LabelUncertaintyPolicy::kTile) {
      at = int(thread()) * V;
      walk.advance(work);
    }
  }
  // report: end
  bad.report(p.bad_target);
  store_partial(p, sum);
}

// ---- launch and dispatch ----

// Whether every V neighbouring pixels are one aligned vector in every array.
template <class T, int V>
bool all_fit_vectors(const LabelUncertaintyParams& p) {
  const auto fits = [](const void* data, const ClassMap& map) {
    return !data || (map.layout == Layout::planar && is_vector_aligned(data, V * sizeof(T)) &&
                     map.pixels % V == 0 && map.image_stride % V == 0);
  };
  const auto factors_fit = [](const void* factors) {
    return is_vector_aligned(factors, V * sizeof(accumulate_t<T>));
  };
  return fits(p.mean, p.mean_map) && fits(p.log_variance, p.variance_map) &&
         fits(p.grad_mean, p.grad_mean_map) && fits(p.grad_log_variance, p.grad_variance_map) &&
         fits_vectors<V>(p.target, p.target_type) && factors_fit(p.pixel_weight) &&
         (p.upstream_is_scalar || factors_fit(p.upstream)) && factors_fit(p.loss) &&
         factors_fit(p.grad_pixel_weight);
}

template <class T>
void launch_label_uncertainty(const LabelUncertaintyParams& p, const Work& work, Stream stream) {
  const Places places{PixelOffset(p.mean_map), PixelOffset(p.variance_map),
                      PixelOffset(p.grad_mean_map), PixelOffset(p.grad_variance_map)};
  const auto run = [&](auto kernel) {
    launch(kernel, work.blocks, LabelUncertaintyPolicy::kThreads, 0, stream, p, work, places);
  };
  if constexpr (!std::is_same_v<T, double>) {
    constexpr int V = LabelUncertaintyPolicy::kWidth;
    if (all_fit_vectors<T, V>(p)) return run(label_uncertainty_kernel<T, V>);
  }
  run(label_uncertainty_kernel<T, 1>);
}

}  // namespace

LabelUncertaintyPlan plan_label_uncertainty(const LabelUncertaintyParams& params) {
  if (is_empty(params.mean_map)) return {};
  const Work work = make_work(params.mean_map.images, params.mean_map.pixels,
                              LabelUncertaintyPolicy::kTile, LabelUncertaintyPolicy::kMaxBlocks);
  return {work.blocks, 0, [work](const LabelUncertaintyParams& p, Stream stream) {
            with_dtype("label_uncertainty", p.dtype,
                       [&](auto t) { launch_label_uncertainty<decltype(t)>(p, work, stream); });
          }};
}

}  // namespace segunc::cuda
