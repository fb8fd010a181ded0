// Counts behind metrics on a CPU, from maps of the prediction.
#include "../../common/cpu/tile.h"
#include "tables.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace counting;
using namespace tiles;

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
        if (!inside && label[j] != kIgnored) record_lowest(at + j, p.bad_prediction);
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

}  // namespace

void map_counts_units(const MapCountsParams& p, int64_t begin, int64_t end) {
  if (p.dtype == Dtype::f64) return run_map_units<double>(p, begin, end);
  run_map_units<float>(p, begin, end);
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
