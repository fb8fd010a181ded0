// Counts of patches that are accurate and certain or not, on a CPU.
#include "../params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

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

}  // namespace

void patch_rows(const PatchCountsParams& p, int64_t begin, int64_t end) {
  if (p.dtype == Dtype::f64) return run_patch_rows<double>(p, begin, end);
  run_patch_rows<float>(p, begin, end);
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
