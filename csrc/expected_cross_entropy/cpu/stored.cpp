// Expected cross-entropy on a CPU: loss and gradients of a tile of pixels, whose mean and scale are
// read once and whose draws stay in the cache.
#include <cmath>

#include "../../math/cross_entropy.h"
#include "../params.h"
#include "draws.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace expected;

template <class A, int T>
void draw(const ExpectedCrossEntropyParams& p, const Tile<A, T>& tile, int64_t at, uint64_t seed,
          Pixels<A, T>& px) {
  constexpr int kPaired = 2 * kNumbers;
  const bool gradients = p.makes_gradients();
  const auto run = [&](auto triangular, auto draws) {
    draw_all<triangular(), draws()>(tile, at, p.draws, seed, gradients, px);
  };
  const auto with_draws = [&](auto triangular) {
    if (p.antithetic)
      run(triangular, std::integral_constant<int, kPaired>());
    else
      run(triangular, std::integral_constant<int, kNumbers>());
  };
  if (p.is_triangular())
    with_draws(std::true_type());
  else
    with_draws(std::false_type());
}

template <class S, int T>
void run_units(const ExpectedCrossEntropyParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<S>;
  const int C = int(p.map.classes);
  const int64_t K = p.scale_map.classes;
  const int draws = p.antithetic ? 2 * kNumbers : kNumbers;
  // Lanes beyond an image's last pixel are computed as well: they must not be slow numbers.
  const int64_t rows = C * (2 + kNumbers + draws) + 2 * K;
  Scratch<A> room(rows * T);
  std::fill_n(room.get(), rows * T, A(0));
  Tile<A, T> tile{};
  tile.classes = C;
  tile.mean = room.get();
  tile.scale = tile.mean + C * T;
  tile.normal = tile.scale + K * T;
  tile.exponential = tile.normal + C * kNumbers * T;
  tile.grad_mean = tile.exponential + C * draws * T;
  tile.grad_scale = tile.grad_mean + C * T;
  const auto width = [](const ClassMap& map) {
    return map.layout == Layout::channels_last ? map.classes * T : T;
  };
  Scratch<S> row_room(std::max(width(p.grad_map), width(p.grad_scale_map)));
  const WriteBuffer<S> buffer{row_room.get(), false};

  Pixels<A, T> px{};
  alignas(kAlignment) A factor[T] = {}, lane[T];
  const A* const class_weight = static_cast<const A*>(p.weight);
  const A* const pixel_weight = static_cast<const A*>(p.pixel_weight);
  const A* const upstream = static_cast<const A*>(p.upstream);
  A* const loss = static_cast<A*>(p.loss);
  A* const grad_weight = static_cast<A*>(p.grad_pixel_weight);
  double shared = p.normalizer ? 1 / *p.normalizer : 1;
  if (upstream && p.upstream_is_scalar) shared *= double(*upstream);
  const A scale = A(shared), log_draws = A(std::log(double(p.draws)));
  const uint64_t seed = uint64_t(*p.seed);

  const auto run_tile = [&](int64_t image, int64_t pixel, int n) {
    const int64_t at = image * p.map.pixels + pixel;
    with_index_type(p.target_type, [&](auto y) {
      using Y = decltype(y);
      if (!read_labels<Y>(p.target, at, n, p.map.classes, p.ignore_index, px.label, px.valid))
        record_bad_class<Y>(p.target, at, n, p.map.classes, p.ignore_index, p.bad_target);
    });
    for (int j = n; j < T; ++j) px.label[j] = 0;
    read_tile<T>(p.map, static_cast<const S*>(p.mean), image, pixel, n, tile.mean, px.largest);
    read_tile<T>(p.scale_map, static_cast<const S*>(p.scale), image, pixel, n, tile.scale,
                 px.largest);
    draw(p, tile, at, seed, px);
    for (int j = 0; j < n; ++j) {
      const A w = class_weight ? class_weight[px.label[j]] : A(1);
      const A u = pixel_weight ? pixel_weight[at + j] : A(1);
      const A flowing = upstream && !p.upstream_is_scalar ? upstream[at + j] * scale : scale;
      const A value = w * math::negative_log_mean(px.largest[j], px.total[j], log_draws);
      const auto weighted = math::weighted(value, u, flowing);
      const A valid_loss = where_valid(px.valid[j], weighted.loss);
      lane[j] += valid_loss;
      if (loss) loss[at + j] = valid_loss;
      if (grad_weight) grad_weight[at + j] = where_valid(px.valid[j], weighted.weight_gradient);
      factor[j] = weighted.factor * w / px.total[j];
    }
    const auto gradient = [&](int, int j, A sum) __attribute__((always_inline)) {
      return clear_unless(px.valid[j], sum * factor[j]);
    };
    if (p.grad_mean)
      write_tile<T>(p.grad_map, static_cast<S*>(p.grad_mean), image, pixel, n, tile.grad_mean,
                    buffer, gradient);
    if (p.grad_scale)
      write_tile<T>(p.grad_scale_map, static_cast<S*>(p.grad_scale), image, pixel, n,
                    tile.grad_scale, buffer, gradient);
  };
  for (int64_t unit = begin; unit < end; ++unit) {
    for (A& l : lane) l = 0;
    for_tiles<T>(unit, p.map.pixels, run_tile);
    double sum = 0;
    for (const A l : lane) sum += double(l);
    if (p.partial) p.partial[unit] = sum;
  }
}

}  // namespace

void expected_cross_entropy_units(const ExpectedCrossEntropyParams& p, int64_t begin, int64_t end) {
  with_dtype(p.dtype, [&](auto s) {
    using S = decltype(s);
    run_units<S, std::is_same_v<S, double> ? 16 : 32>(p, begin, end);
  });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
