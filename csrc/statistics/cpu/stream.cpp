// Statistics of class probabilities over a stream of samples, on a CPU: a running mean and sum of
// squared deviations for every class, and what they come to.
#include "../../common/cpu/interpolation.h"
#include "../../math/moments.h"
#include "pixels.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace statistics;

template <class Tiles>
void accumulate_units_of(const AccumulateParams& p, Tiles& source, int64_t begin, int64_t end) {
  using A = typename Tiles::Number;
  constexpr int T = Tiles::kWidth;
  const int C = int(p.map.classes);
  const int64_t P = result_pixels(p.map, p.interpolation);
  const A inverse_count = A(1) / A(p.count);
  const bool first = p.count == 1;
  Scratch<A> tile_room(int64_t(C) * T);
  A* tile = tile_room.get();
  alignas(kAlignment) A inverse[T];
  Pixels<A, T> px;

  const auto run_tile = [&](int64_t image, int64_t pixel, auto n) __attribute__((always_inline)) {
    for (int j = 0; j < n; ++j) px.entropy_sum[j] = A(0);
    source.read(0, image, pixel, n, tile, px.maximum);
    softmax_tile(C, n, tile, inverse, source.ahead(0, image, pixel), px);
    const int64_t next = source.next(pixel) - pixel;
    for (int c = 0; c < C; ++c) {
      const int64_t at = (image * C + c) * P + pixel;
      A* __restrict mean = static_cast<A*>(p.mean) + at;
      A* __restrict squares = static_cast<A*>(p.squared_deviations) + at;
      prefetch(mean + next, T * int(sizeof(A)));
      prefetch(squares + next, T * int(sizeof(A)));
      if (first)
        for (int j = 0; j < n; ++j) mean[j] = tile[c * T + j] * inverse[j], squares[j] = A(0);
      else
        for (int j = 0; j < n; ++j)
          math::accumulate_moments(tile[c * T + j] * inverse[j], inverse_count, mean[j],
                                   squares[j]);
    }
    A* __restrict entropy_sum = static_cast<A*>(p.entropy_sum) + image * P + pixel;
    for (int j = 0; j < n; ++j)
      entropy_sum[j] = first ? px.entropy_sum[j] : entropy_sum[j] + px.entropy_sum[j];
  };
  for (int64_t unit = begin; unit < end; ++unit) source.for_tiles(unit, run_tile);
}

template <class A>
void finalize_units_of(const FinalizeParams& p, int64_t begin, int64_t end) {
  constexpr int T = 64;
  const int C = int(p.classes);
  const int64_t P = p.pixels;
  Pixels<A, T> px;

  const auto run_tile = [&](int64_t image, int64_t pixel, auto n) __attribute__((always_inline)) {
    const int64_t at = image * P + pixel, state = image * C * P + pixel;
    summarize_mean(C, n, static_cast<const A*>(p.mean) + state, P, A(1), px);
    const A* __restrict squares = static_cast<const A*>(p.squared_deviations) + state;
    const A* __restrict entropy_sum = static_cast<const A*>(p.entropy_sum) + at;
    for (int j = 0; j < n; ++j) {
      px.entropy_sum[j] = entropy_sum[j];
      px.variance[j] = squares[px.best[j] * P + j] / A(p.count - 1);
    }
    write_maps(p.maps, at, n, A(1) / A(p.count), px);
  };
  for (int64_t unit = begin; unit < end; ++unit) for_tiles<T>(unit, P, run_tile);
}

}  // namespace

void accumulate_units(const AccumulateParams& p, int64_t begin, int64_t end) {
  with_dtype(p.dtype, [&](auto s) {
    with_tiles<decltype(s), 64>(p.map, p.interpolation, &p.sample, 1,
                                [&](auto& source) { accumulate_units_of(p, source, begin, end); });
  });
}

void finalize_units(const FinalizeParams& p, int64_t begin, int64_t end) {
  if (p.dtype == Dtype::f64) return finalize_units_of<double>(p, begin, end);
  finalize_units_of<float>(p, begin, end);
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
