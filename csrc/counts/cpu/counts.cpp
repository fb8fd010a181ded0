// Counts behind metrics on a CPU. A tile's classes are reduced in vectors; then each of its pixels
// adds integers to a few tables, which are one thread's own.
//
// Of the classes other than the target's, the sums of exponentials and of their squares are all
// that the scores of math/counts.h need.
#include "../../common/cpu/interpolation.h"
#include "../params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace tiles;

// What has to be known of a pixel's classes beyond the prediction.
enum class Mode { prediction, logits, probabilities };

constexpr int32_t kIgnored = -1;

template <class A, int T>
struct Pixels {
  alignas(kAlignment) int32_t label[T];  // kIgnored where the pixel does not count
  alignas(kAlignment) int32_t best[T];
  alignas(kAlignment) A maximum[T], target[T], others[T], squares[T];
  alignas(kAlignment) A confidence[T], brier[T], negative_log[T];
};

void record_bad_pixel(int64_t* first, int64_t pixel) {
  int64_t seen = __atomic_load_n(first, __ATOMIC_RELAXED);
  while (pixel < seen && !__atomic_compare_exchange_n(first, &seen, pixel, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
}

// Class indices, those that are none recorded.
template <class Y>
SEGUNC_HD void read_classes(const void* data, int64_t at, int n, int64_t classes, int64_t ignored,
                            int64_t* bad, int32_t* __restrict label) {
  const Y* __restrict values = static_cast<const Y*>(data) + at;
  int32_t outside = 0;
  for (int j = 0; j < n; ++j) {
    const int64_t y = int64_t(values[j]);
    const int32_t valid = -int32_t(y != ignored), inside = -int32_t(y >= 0 && y < classes);
    outside |= valid & ~inside;
    label[j] = (int32_t(y) & valid & inside) | ~(valid & inside);
  }
  if (!outside) return;
  for (int j = 0; j < n; ++j) {
    const int64_t y = int64_t(values[j]);
    if (y != ignored && (y < 0 || y >= classes)) return record_bad_pixel(bad, at + j);
  }
}

// Over all classes: the lowest one with the maximum, and the sums. NaN is never the maximum; a
// pixel of nothing else has class 0.
template <Mode mode, class A, int T, class S>
SEGUNC_HD void reduce_classes(int C, int n, const A* __restrict tile, const Ahead<S>& ahead,
                              Pixels<A, T>& px) {
  static_assert(T % kStep<A> == 0);
  using Index = IndexPack<A>;
  for (int j = 0; j < n; j += kStep<A>) {
    Pack<A> maximum[kPacks], others[kPacks], squares[kPacks];
    Index best[kPacks], label[kPacks];
    for (int k = 0; k < kPacks; ++k) {
      const int at = j + k * kLanes<A>;
      maximum[k] = load_pack(px.maximum + at);
      label[k] = load_indices<A>(px.label + at);
      others[k] = squares[k] = Pack<A>{};
      best[k] = Index{};
    }
    for (int c = C - 1; c >= 0; --c) {
      ahead.template fetch<kStep<A>>(c, j);
      const Index index = Index{} + c;
#pragma GCC unroll 2
      for (int k = 0; k < kPacks; ++k) {
        const Pack<A> v = load_pack(tile + c * T + j + k * kLanes<A>);
        best[k] = v == maximum[k] ? index : best[k];
        if constexpr (mode != Mode::prediction) {
          Pack<A> value = v;
          if constexpr (mode == Mode::logits) value = math::exp_nonpositive(v - maximum[k]);
          value = label[k] == index ? Pack<A>{} : value;
          others[k] += value;
          squares[k] += value * value;
        }
      }
    }
    for (int k = 0; k < kPacks; ++k) {
      const int at = j + k * kLanes<A>;
      store_indices<A>(px.best + at, best[k]);
      store_pack(px.others + at, others[k]);
      store_pack(px.squares + at, squares[k]);
    }
  }
}

template <Mode mode, class A, int T>
SEGUNC_HD void score_pixels(int n, Pixels<A, T>& px) {
  for (int j = 0; j < n; ++j) {
    math::PixelScores<A> scores;
    if constexpr (mode == Mode::logits) {
      const A shifted = px.target[j] - px.maximum[j];
      const A sum = px.others[j] + math::exp_nonpositive(shifted);
      scores = math::scores_of_logits(px.others[j], px.squares[j], shifted, sum, A(1) / sum);
    } else {
      scores =
          math::scores_of_probabilities(px.others[j], px.squares[j], px.target[j], px.maximum[j]);
    }
    px.confidence[j] = scores.confidence;
    px.brier[j] = scores.brier;
    px.negative_log[j] = scores.negative_log;
  }
}

// Adds a pixel to what is wanted of the tables that a prediction has.
template <class A>
struct PredictionCounter {
  CountTables t;
  int64_t classes;
  const A* uncertainty;
  uint8_t* outcome;

  SEGUNC_HD void add(int64_t at, int32_t label, int32_t best) const {
    if (label == kIgnored) {
      if (outcome) outcome[at] = kIgnoredPixel;
      return;
    }
    const bool right = label == best;
    const int64_t cell = label * classes + best;
    if (outcome) outcome[at] = right ? kRight : kWrong;
    if (t.confusion) ++t.confusion[cell];
    if (!uncertainty) return;
    const A u = uncertainty[at];
    const bool defined = math::is_uncertainty(u);
    if (t.uncertainty) {
      if (defined)
        t.uncertainty[cell] += math::to_fixed(u);
      else
        ++t.uncertainty[classes * classes + cell];
    }
    if (t.histogram)
      ++t.histogram[right * (kUncertaintyBins + 1) +
                    (defined ? math::uncertainty_bin(float(u)) : kUncertaintyBins)];
  }
};

template <class A>
SEGUNC_HD void add_confidence(const CountTables& t, bool right, A confidence) {
  const bool defined = math::is_confidence(confidence);
  const int64_t fixed = defined ? math::to_fixed(confidence) : 0;
  int64_t* row = t.calibration +
                 kCalibrationColumns * (defined ? math::calibration_bin(fixed, t.bins) : t.bins);
  ++row[kBinPixels];
  row[kBinCorrect] += right;
  row[kBinConfidence] += fixed;
}

template <class A>
SEGUNC_HD void add_scores(int64_t* scores, const math::PixelScores<A>& pixel) {
  ++scores[kScorePixels];
  if (!math::has_scores(pixel)) {
    ++scores[kUndefined];
    return;
  }
  scores[kBrierSum] += math::to_fixed(pixel.brier);
  if (math::is_finite_likelihood(pixel.negative_log))
    scores[kLikelihoodSum] += math::to_fixed(pixel.negative_log);
  else
    ++scores[kImpossible];
}

template <Mode mode, class Tiles>
void run_units(const CountsParams& p, Tiles& source, int64_t begin, int64_t end) {
  using A = typename Tiles::Number;
  constexpr int T = Tiles::kWidth;
  const int C = int(p.map.classes);
  const int64_t P = result_pixels(p.map, p.interpolation);
  const PredictionCounter<A> counter{p.tables, p.map.classes, static_cast<const A*>(p.uncertainty),
                                     p.outcome};
  Scratch<A> tile_room(int64_t(C) * T);
  A* tile = tile_room.get();
  Pixels<A, T> px;

  const auto run_tile = [&](int64_t image, int64_t pixel, auto n) __attribute__((always_inline)) {
    const int64_t at = image * P + pixel;
    with_index_type(p.target_type, [&](auto y) __attribute__((always_inline)) {
      read_classes<decltype(y)>(p.target, at, n, p.map.classes, p.ignore_index, p.bad_target,
                                px.label);
    });
    source.read(0, image, pixel, n, tile, px.maximum);
    reduce_classes<mode>(C, n, tile, source.ahead(0, image, pixel), px);
    for (int j = 0; j < n; ++j) counter.add(at + j, px.label[j], px.best[j]);
    if constexpr (mode != Mode::prediction) {
      for (int j = 0; j < n; ++j) px.target[j] = tile[std::max(px.label[j], 0) * T + j];
      score_pixels<mode>(n, px);
      for (int j = 0; j < n; ++j) {
        if (px.label[j] == kIgnored) continue;
        if (p.tables.calibration)
          add_confidence(p.tables, px.label[j] == px.best[j], px.confidence[j]);
        if (p.tables.scores)
          add_scores<A>(p.tables.scores, {px.confidence[j], px.brier[j], px.negative_log[j]});
      }
    }
  };
  for (int64_t unit = begin; unit < end; ++unit) source.for_tiles(unit, run_tile);
}

template <class A>
void run_map_units(const MapCountsParams& p, int64_t begin, int64_t end) {
  constexpr int T = 64;
  const auto* confidence = static_cast<const A*>(p.confidence);
  const PredictionCounter<A> counter{p.tables, p.classes, static_cast<const A*>(p.uncertainty),
                                     p.outcome};
  int32_t label[T], best[T];
  const auto run_tile = [&](int64_t, int64_t at, auto n) __attribute__((always_inline)) {
    with_index_type(p.target_type, [&](auto y) __attribute__((always_inline)) {
      read_classes<decltype(y)>(p.target, at, n, p.classes, p.ignore_index, p.bad_target, label);
    });
    // Predictions know no ignored class.
    with_index_type(p.prediction_type, [&](auto y) __attribute__((always_inline)) {
      const auto* prediction = static_cast<const decltype(y)*>(p.prediction) + at;
      for (int j = 0; j < n; ++j) {
        const int64_t c = int64_t(prediction[j]);
        const bool inside = c >= 0 && c < p.classes;
        if (!inside && label[j] != kIgnored) record_bad_pixel(p.bad_prediction, at + j);
        best[j] = inside ? int32_t(c) : 0;
      }
    });
    for (int j = 0; j < n; ++j) {
      counter.add(at + j, label[j], best[j]);
      if (p.tables.calibration && label[j] != kIgnored)
        add_confidence(p.tables, label[j] == best[j], confidence[at + j]);
    }
  };
  for (int64_t unit = begin; unit < end; ++unit) for_tiles<T>(unit, p.pixels, run_tile);
}

template <class A>
void run_patch_rows(const PatchCountsParams& p, int64_t begin, int64_t end) {
  const int64_t window = p.window, rows = p.rows / window, columns = p.columns / window;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t start =
        (row / rows * p.rows + row % rows * window) * p.columns;  // of its first pixel
    for (int64_t column = 0; column < columns; ++column) {
      int64_t valid = 0, right = 0, sum = 0;
      bool defined = true;
      for (int64_t y = 0; y < window; ++y) {
        const int64_t at = start + y * p.columns + column * window;
        for (int64_t x = 0; x < window; ++x) {
          const uint8_t outcome = p.outcome[at + x];
          const A u = static_cast<const A*>(p.uncertainty)[at + x];
          if (outcome == kIgnoredPixel) continue;
          ++valid;
          right += outcome == kRight;
          if (math::is_uncertainty(u))
            sum += math::to_fixed(u);
          else
            defined = false;
        }
      }
      if (valid == 0) continue;
      for (int64_t k = 0; k < p.count; ++k)
        ++p.counts[k * kPatchCounts +
                   (defined ? patch_count(valid, right, sum, p.accuracy_threshold, p.thresholds[k])
                            : kUndefinedPatch)];
    }
  }
}

template <Mode mode, class S, int T>
void run_width(const CountsParams& p, int64_t begin, int64_t end) {
  with_tiles<S, T>(p.map, p.interpolation, &p.input, 1,
                   [&](auto& source) { run_units<mode>(p, source, begin, end); });
}

template <Mode mode>
void run_mode(const CountsParams& p, int64_t begin, int64_t end) {
  // The tile of many classes is narrower, so that it stays in the L1 cache.
  constexpr int64_t kWideClasses = 64;
  with_dtype(p.dtype, [&](auto s) {
    using S = decltype(s);
    if constexpr (!std::is_same_v<S, double>)
      if (p.map.classes <= kWideClasses) return run_width<mode, S, 128>(p, begin, end);
    run_width<mode, S, 32>(p, begin, end);
  });
}

}  // namespace

void counts_units(const CountsParams& p, int64_t begin, int64_t end) {
  if (!p.tables.calibration && !p.tables.scores) return run_mode<Mode::prediction>(p, begin, end);
  if (p.probabilities) return run_mode<Mode::probabilities>(p, begin, end);
  run_mode<Mode::logits>(p, begin, end);
}

void map_counts_units(const MapCountsParams& p, int64_t begin, int64_t end) {
  if (p.dtype == Dtype::f64) return run_map_units<double>(p, begin, end);
  run_map_units<float>(p, begin, end);
}

void patch_rows(const PatchCountsParams& p, int64_t begin, int64_t end) {
  if (p.dtype == Dtype::f64) return run_patch_rows<double>(p, begin, end);
  run_patch_rows<float>(p, begin, end);
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
