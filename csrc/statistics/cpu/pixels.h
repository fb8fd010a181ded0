// A tile's pixels on their way from the logits of samples to the maps.
#pragma once
#include <cmath>

#include "../../common/cpu/exponentials.h"
#include "../../math/moments.h"
#include "../params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace statistics {

using namespace tiles;

// Results of a tile on their way to the maps.
template <class A, int T>
struct Pixels {
  alignas(kAlignment) int32_t best[T];
  alignas(kAlignment) A confidence[T], entropy[T], entropy_sum[T], variance[T];
  alignas(kAlignment) A maximum[T], sum[T], dot[T];
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

}  // namespace statistics
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
