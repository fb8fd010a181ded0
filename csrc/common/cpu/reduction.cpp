// The sum of the valid pixels' class weights on a CPU.
#include "../reduction.h"

#include "tile.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace tiles;

// Sums per lane, so that the loop vectorises and its order is fixed.
template <class Y, class A>
double sum_weights(const NormalizerParams& p, int64_t begin, int64_t end) {
  constexpr int kLanes = 64;
  const Y* __restrict target = static_cast<const Y*>(p.target);
  const A* __restrict weight = static_cast<const A*>(p.weight);
  A lane[kLanes] = {};
  const auto add = [&](int64_t at, int n) __attribute__((always_inline)) {
    for (int j = 0; j < n; ++j) {
      const int64_t y = int64_t(target[at + j]);
      const bool counts = y != p.ignore_index && y >= 0 && y < p.classes;
      if (weight)
        lane[j] += counts ? weight[counts ? y : 0] : A(0);
      else
        lane[j] += A(counts);
    }
  };
  int64_t at = begin;
  for (; at + kLanes <= end; at += kLanes) add(at, kLanes);
  add(at, int(end - at));
  double sum = 0;
  for (const A l : lane) sum += double(l);
  return sum;
}

}  // namespace

void normalizer_units(const NormalizerParams& p, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * kUnitPixels, stop = std::min(p.count, first + kUnitPixels);
    with_index_type(p.target_type, [&](auto y) {
      using Y = decltype(y);
      p.partial[unit] = p.dtype == Dtype::f64 ? sum_weights<Y, double>(p, first, stop)
                                              : sum_weights<Y, float>(p, first, stop);
    });
  }
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
