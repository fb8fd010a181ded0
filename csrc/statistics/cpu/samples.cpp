// Statistics of class probabilities over samples, on a CPU, from all samples at once: the
// exponentials of every sample of a tile stay in the L2 cache, so the standard deviation at the
// predicted class is the exact two-pass one, and only for that class.
#include "../../common/cpu/interpolation.h"
#include "pixels.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace statistics;

// Of a sample's probability of the predicted class, from exponentials and 1 / their sum.
template <class A, int T>
SEGUNC_HD void add_squared_deviations(int C, int n, const A* __restrict tile,
                                      const A* __restrict inverse_sum, Pixels<A, T>& px) {
  if (C <= kFewClasses) {
    for (int j = 0; j < n; j += kLanes<A>) {
      const Pack<A> chosen = choose<T>(C, tile + j, load_indices<A>(px.best + j));
      const Pack<A> deviation = chosen * load_pack(inverse_sum + j) - load_pack(px.confidence + j);
      store_pack(px.variance + j, load_pack(px.variance + j) + deviation * deviation);
    }
    return;
  }
  for (int j = 0; j < n; ++j) {
    const A deviation = tile[px.best[j] * T + j] * inverse_sum[j] - px.confidence[j];
    px.variance[j] += deviation * deviation;
  }
}

template <class Tiles>
void run_units(const StatisticsParams& p, Tiles& source, int64_t begin, int64_t end) {
  using A = typename Tiles::Number;
  constexpr int T = Tiles::kWidth;
  const int C = int(p.map.classes);
  const int64_t count = p.count, tile_size = int64_t(C) * T;
  const int64_t P = result_pixels(p.map, p.interpolation);
  const A inverse_count = A(1) / A(count);
  Scratch<A> tiles_room(count * tile_size), sums_room(tile_size), inverses_room(count * T);
  A *tiles = tiles_room.get(), *sums = sums_room.get(), *inverses = inverses_room.get();
  Pixels<A, T> px;

  const auto run_tile = [&](int64_t image, int64_t pixel, auto n) __attribute__((always_inline)) {
    for (int j = 0; j < n; ++j) px.entropy_sum[j] = px.variance[j] = A(0);
    for (int64_t s = 0; s < count; ++s) {
      A* __restrict tile = tiles + s * tile_size;
      A* __restrict inverse = inverses + s * T;
      source.read(s, image, pixel, n, tile, px.maximum);
      softmax_tile(C, n, tile, inverse, source.ahead(s, image, pixel), px);
      A* __restrict sum = sums;
      for (int c = 0; c < C; ++c)
        for (int j = 0; j < n; ++j) {
          const A probability = tile[c * T + j] * inverse[j];
          sum[c * T + j] = s > 0 ? sum[c * T + j] + probability : probability;
        }
    }
    summarize_mean(C, n, sums, T, inverse_count, px);
    for (int64_t s = 0; s < count; ++s)
      add_squared_deviations(C, n, tiles + s * tile_size, inverses + s * T, px);
    // 0 / 0 for a single sample: NaN, as in torch.
    for (int j = 0; j < n; ++j) px.variance[j] /= A(count - 1);
    write_maps(p.maps, image * P + pixel, n, inverse_count, px);
    if (!p.mean) return;
    A* mean = static_cast<A*>(p.mean) + image * C * P + pixel;
    for (int c = 0; c < C; ++c)
      for (int j = 0; j < n; ++j) mean[c * P + j] = sums[c * T + j] * inverse_count;
  };
  for (int64_t unit = begin; unit < end; ++unit) source.for_tiles(unit, run_tile);
}

// All samples' rows of a tile should stay in the L2 cache, and those that it is interpolated from.
constexpr int64_t kTileBytes = 256 << 10, kInterpolatedBytes = 768 << 10;

bool fits(const StatisticsParams& p, int64_t width, size_t element) {
  const int64_t tiles = p.count * p.map.classes * width * int64_t(element);
  if (!p.interpolation.used) return tiles <= kTileBytes;
  return tiles * (1 + enlarged_rows(p.map)) <= kInterpolatedBytes;
}

template <class S, int T>
void run_width(const StatisticsParams& p, int64_t begin, int64_t end) {
  with_tiles<S, T>(p.map, p.interpolation, p.samples, p.count,
                   [&](auto& source) { run_units(p, source, begin, end); });
}

}  // namespace

void statistics_units(const StatisticsParams& p, int64_t begin, int64_t end) {
  with_dtype(p.dtype, [&](auto s) {
    using S = decltype(s);
    if (fits(p, 64, sizeof(accumulate_t<S>)))
      run_width<S, 64>(p, begin, end);
    else
      run_width<S, 32>(p, begin, end);
  });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
