// Statistics of class probabilities over samples, on a CPU.
//
// All at once: the exponentials of every sample of a tile stay in the L2 cache, so the standard
// deviation at the predicted class is the exact two-pass one, and only for that class. Streaming:
// a running mean and sum of squared deviations for every class.
#include <cmath>

#include "../../common/cpu/exponentials.h"
#include "../../common/cpu/interpolation.h"
#include "../../math/moments.h"
#include "../params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace tiles;

// Results of a tile on their way to the maps.
template <class A, int T>
struct Pixels {
  alignas(kAlignment) int32_t best[T];
  alignas(kAlignment) A confidence[T], entropy[T], entropy_sum[T], variance[T];
  alignas(kAlignment) A maximum[T], sum[T], dot[T];
};

template <class A>
struct SumAndDot {
  A *sums, *dots;  // [T]: of e, and of e d
  Pack<A> sum = {}, dot = {};

  SEGUNC_HD void add(Pack<A> e, Pack<A> d) {
    sum += e;
    dot += math::weighted_exponent(e, d);
  }
  SEGUNC_HD void store(int j) const {
    store_pack(sums + j, sum);
    store_pack(dots + j, dot);
  }
};

// A tile of logits to exponentials and 1 / their sum; entropy_sum gains the entropy. Meanwhile the
// next tile is fetched.
template <class A, int T, class S>
SEGUNC_HD void softmax_tile(int C, int n, A* __restrict tile, A* __restrict inverse_sum,
                            const Ahead<S>& ahead, Pixels<A, T>& px) {
  exponentials<T>(C, n, tile, px.maximum, ahead, SumAndDot<A>{px.sum, px.dot});
  for (int j = 0; j < n; ++j) {
    inverse_sum[j] = A(1) / px.sum[j];
    px.entropy_sum[j] +=
        math::softmax_entropy(math::log_positive(px.sum[j]), px.dot[j], inverse_sum[j]);
  }
}

// Prediction, confidence and entropy from rows of the mean, scale * rows[c * stride + j].
template <class A, int T>
SEGUNC_HD void summarize_mean(int C, int n, const A* __restrict rows, int64_t stride, A scale,
                              Pixels<A, T>& px) {
  for (int j = 0; j < n; ++j) px.best[j] = 0, px.confidence[j] = A(-1), px.entropy[j] = A(0);
  for (int c = 0; c < C; ++c)
    for (int j = 0; j < n; ++j) {
      const A p = rows[c * stride + j] * scale;
      px.entropy[j] += math::entropy_term(p);
      px.best[j] = p > px.confidence[j] ? c : px.best[j];
      px.confidence[j] = p > px.confidence[j] ? p : px.confidence[j];
    }
}

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

// entropy_sum has met every sample: where it is NaN, so is everything.
template <class A, int T>
SEGUNC_HD void write_maps(const StatisticsMaps& maps, int64_t at, int n, A inverse_count,
                          const Pixels<A, T>& px) {
  constexpr A kNaN = std::numeric_limits<A>::quiet_NaN();
  int64_t* __restrict prediction = maps.prediction + at;
  A* __restrict confidence = static_cast<A*>(maps.confidence) + at;
  A* __restrict std = static_cast<A*>(maps.std) + at;
  A* __restrict entropy = static_cast<A*>(maps.entropy) + at;
  A* __restrict expected = static_cast<A*>(maps.expected_entropy) + at;
  A* __restrict information = static_cast<A*>(maps.mutual_information) + at;
  for (int j = 0; j < n; ++j) {
    const bool good = px.entropy_sum[j] == px.entropy_sum[j];
    const A h = good ? px.entropy[j] : kNaN, mean_h = px.entropy_sum[j] * inverse_count;
    prediction[j] = px.best[j];
    confidence[j] = good ? px.confidence[j] : kNaN;
    std[j] = good ? std::sqrt(px.variance[j]) : kNaN;
    entropy[j] = h;
    expected[j] = mean_h;
    information[j] = h - mean_h < A(0) ? A(0) : h - mean_h;
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
