// Losses of uncertain binary labels on a CPU: loss and gradients in one read of mean and
// log-variance, a pack of pixels at a time.
#include "../../math/label_uncertainty.h"

#include <cmath>

#include "../../common/cpu/class_indices.h"
#include "../../common/cpu/pack.h"
#include "../../common/cpu/tile.h"
#include "../../math/cross_entropy.h"
#include "../params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace tiles;

struct Functions {
  template <class P>
  SEGUNC_HD static P exponential(P x) {
    return math::exp_nonpositive(x);
  }
  template <class P>
  SEGUNC_HD static P inverse(P x) {
    return 1.f / x;
  }
  template <class P>
  SEGUNC_HD static P logarithm(P x) {
    return math::log_positive(x);
  }
  SEGUNC_HD static double root(double x) { return std::sqrt(x); }
  SEGUNC_HD static Pack<float> root(Pack<float> x) {
    alignas(kAlignment) float lanes[kLanes<float>];
    store_pack(lanes, x);
    for (float& lane : lanes) lane = std::sqrt(lane);
    return load_pack(lanes);
  }
};

// A tile of pixels; of the lanes beyond them, of the last pack, only that they do not count.
template <class A, int T>
struct Pixels {
  alignas(kAlignment) A mean[T];                      // and then its gradient
  alignas(kAlignment) A log_variance[T];              // and then its gradient
  alignas(kAlignment) int32_t positive[T], valid[T];  // all bits where it is so, else 0
  alignas(kAlignment) A weight[T], upstream[T];
  alignas(kAlignment) A loss[T], weight_gradient[T];
};

// Returns whether every valid target is 0 or 1.
template <class Y, class A, int T>
SEGUNC_HD bool read_labels(const LabelUncertaintyParams& p, int64_t at, int n, Pixels<A, T>& px) {
  const Y* __restrict target = static_cast<const Y*>(p.target) + at;
  int32_t outside = 0;
  for (int j = 0; j < n; ++j) {
    const int64_t y = int64_t(target[j]);
    const int32_t valid = -int32_t(y != p.ignore_index), positive = -int32_t(y == 1);
    outside |= valid & ~(positive | -int32_t(y == 0));
    px.valid[j] = valid;
    px.positive[j] = positive;
  }
  return outside == 0;
}

// scale: of every pixel's gradient.
template <class A, int T>
SEGUNC_HD void read_pixels(const LabelUncertaintyParams& p, A scale, int64_t at, int n,
                           Pixels<A, T>& px) {
  with_index_type(p.target_type, [&](auto y) __attribute__((always_inline)) {
    using Y = decltype(y);
    if (!read_labels<Y>(p, at, n, px))
      record_bad_class<Y>(p.target, at, n, 2, p.ignore_index, p.bad_target);
  });
  for (int j = n; j % kLanes<A>; ++j) px.valid[j] = 0;
  const A* __restrict weight = static_cast<const A*>(p.pixel_weight);
  for (int j = 0; j < n; ++j) px.weight[j] = weight ? weight[at + j] : A(1);
  const A* __restrict upstream = static_cast<const A*>(p.upstream);
  const bool each = upstream && !p.upstream_is_scalar;
  for (int j = 0; j < n; ++j) px.upstream[j] = each ? upstream[at + j] * scale : scale;
}

template <class A, int T>
SEGUNC_HD void compute(const math::LabelUncertainty<A>& of, bool may_flip, int n,
                       Pixels<A, T>& px) {
  for (int j = 0; j < n; j += kLanes<A>) {
    const auto v =
        math::uncertain_loss<Functions>(of, load_pack(px.mean + j), load_pack(px.log_variance + j),
                                        load_indices<A>(px.positive + j), may_flip);
    const auto weighted =
        math::weighted(v.loss, load_pack(px.weight + j), load_pack(px.upstream + j));
    const IndexPack<A> valid = load_indices<A>(px.valid + j);
    const Pack<A> nothing = {};
    store_pack(px.loss + j, valid ? weighted.loss : nothing);
    store_pack(px.weight_gradient + j, valid ? weighted.weight_gradient : nothing);
    store_pack(px.mean + j, valid ? v.by_mean * weighted.factor : nothing);
    store_pack(px.log_variance + j, valid ? v.by_log_variance * weighted.factor : nothing);
  }
}

template <class S, int T>
void run_units(const LabelUncertaintyParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<S>;
  const math::LabelUncertainty<A> of{A(p.threshold), A(p.uncertainty_weight), A(p.bootstrap_weight),
                                     p.detach_weight};
  double factor = p.normalizer ? 1 / *p.normalizer : 1;
  if (p.upstream && p.upstream_is_scalar) factor *= double(*static_cast<const A*>(p.upstream));
  const A scale = A(factor);
  const int64_t pixels = p.mean_map.pixels;
  const bool streams = p.mean_map.images * pixels * int64_t(sizeof(S)) > kStreamBytes;
  Scratch<S> row_room(T);
  const WriteBuffer<S> buffer{row_room.get(), streams};
  Pixels<A, T> px;
  alignas(kAlignment) A unused[T], lane[T];

  const auto run_tile = [&](int64_t image, int64_t pixel, auto n) __attribute__((always_inline)) {
    const int64_t at = image * pixels + pixel;
    read_tile<T>(p.mean_map, static_cast<const S*>(p.mean), image, pixel, n, px.mean, unused);
    read_tile<T>(p.variance_map, static_cast<const S*>(p.log_variance), image, pixel, n,
                 px.log_variance, unused);
    read_pixels(p, scale, at, n, px);
    compute(of, !p.bootstrap || p.bootstrap[image], n, px);
    for (int j = 0; j < n; ++j) lane[j] += px.loss[j];
    if (p.loss) std::copy_n(px.loss, n, static_cast<A*>(p.loss) + at);
    if (p.grad_pixel_weight)
      std::copy_n(px.weight_gradient, n, static_cast<A*>(p.grad_pixel_weight) + at);
    const auto as_is = [](int, int, A v) __attribute__((always_inline)) { return v; };
    if (p.grad_mean)
      write_tile<T>(p.grad_mean_map, static_cast<S*>(p.grad_mean), image, pixel, n, px.mean, buffer,
                    as_is);
    if (p.grad_log_variance)
      write_tile<T>(p.grad_variance_map, static_cast<S*>(p.grad_log_variance), image, pixel, n,
                    px.log_variance, buffer, as_is);
  };
  for (int64_t unit = begin; unit < end; ++unit) {
    for (A& l : lane) l = 0;
    for_tiles<T>(unit, pixels, run_tile);
    double sum = 0;
    for (const A l : lane) sum += double(l);
    if (p.partial) p.partial[unit] = sum;
  }
  if (streams) stream_fence();
}

}  // namespace

void label_uncertainty(const LabelUncertaintyParams& p, int64_t begin, int64_t end) {
  with_tile(p.dtype, 1,
            [&](auto s, auto pixels) { run_units<decltype(s), pixels()>(p, begin, end); });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
