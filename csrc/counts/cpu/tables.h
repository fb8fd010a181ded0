// The tables that pixels are counted in, which are one thread's own; sums of scores, which only
// logits have, are in logits.cpp.
#pragma once
#include "../../common/cpu/class_indices.h"
#include "../../common/host_device.h"
#include "../params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace counting {

constexpr int32_t kIgnored = -1;

// Out of line, for the registers of the loops that it would stand in.
template <class Y>
[[gnu::noinline, gnu::cold]] void record_outside(const void* data, int64_t at, int n,
                                                 int64_t classes, int64_t ignored, int64_t* bad) {
  tiles::record_bad_class<Y>(data, at, n, classes, ignored, bad);
}

// Class indices, kIgnored where the pixel does not count; those that are none are recorded.
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
  if (outside) record_outside<Y>(data, at, n, classes, ignored, bad);
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

}  // namespace counting
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
