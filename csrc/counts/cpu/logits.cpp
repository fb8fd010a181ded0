// Counts behind metrics on a CPU, from logits or probabilities. A tile's classes are reduced in
// vectors; then each of its pixels adds integers to a few tables.
//
// Of the classes other than the target's, the sums of exponentials and of their squares are all
// that the scores of math/counts.h need.
#include "../../common/cpu/interpolation.h"
#include "tables.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace counting;
using namespace tiles;

// What has to be known of a pixel's classes beyond the prediction.
enum class Mode { prediction, logits, probabilities };

template <class A, int T>
struct Pixels {
  alignas(kAlignment) int32_t label[T];  // kIgnored where the pixel does not count
  alignas(kAlignment) int32_t best[T];
  alignas(kAlignment) A maximum[T], target[T], others[T], squares[T];
  alignas(kAlignment) A confidence[T], brier[T], negative_log[T];
};

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
      scores = math::scores_of_logits(px.others[j], px.squares[j], shifted, A(1), A(1) / sum,
                                      math::log_positive(sum));
    } else {
      scores =
          math::scores_of_probabilities(px.others[j], px.squares[j], px.target[j], px.maximum[j]);
    }
    px.confidence[j] = scores.confidence;
    px.brier[j] = scores.brier;
    px.negative_log[j] = scores.negative_log;
  }
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

template <Mode mode, class S, int T>
void run_width(const CountsParams& p, int64_t begin, int64_t end) {
  with_tiles<S, T>(p.map, p.interpolation, &p.input, 1,
                   [&](auto& source) { run_units<mode>(p, source, begin, end); });
}

template <Mode mode>
void run_mode(const CountsParams& p, int64_t begin, int64_t end) {
  with_tile(p.dtype, p.map.classes,
            [&](auto s, auto pixels) { run_width<mode, decltype(s), pixels()>(p, begin, end); });
}

}  // namespace

void counts_units(const CountsParams& p, int64_t begin, int64_t end) {
  if (!p.tables.calibration && !p.tables.scores) return run_mode<Mode::prediction>(p, begin, end);
  if (p.probabilities) return run_mode<Mode::probabilities>(p, begin, end);
  run_mode<Mode::logits>(p, begin, end);
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
