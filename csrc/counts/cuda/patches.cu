// Counts of patches that are accurate and certain or not, on a GPU: a thread a patch.
#include <stdexcept>
#include <string>

#include "../../common/device/integer.h"
#include "../../common/device/work.h"
#include "kernels.h"
#include "tables.h"

namespace segunc::cuda {
namespace {

using namespace counting;

constexpr int kPatchThreads = 256;  // tuning

template <class A>
__global__ void __launch_bounds__(kPatchThreads)
    patch_counts_kernel(const PatchCountsParams p, const Work work, const Divisor patch_columns,
                        const Divisor patch_rows) {
  uint32_t* const words = dynamic_shared<uint32_t>();
  const int size = int(p.count) * kPatchCounts;
  clear_words(words, size);
  const int64_t patches = p.images * patch_rows.value * patch_columns.value;
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    if (index >= patches) continue;
    int64_t column, row;
    const int64_t image = patch_rows.divide(patch_columns.divide(index, column), row);
    const int64_t start =
        (image * p.rows + row * p.window) * p.columns + column * p.window;  // of its first pixel
    int64_t sum = 0;
    int valid = 0, right = 0;
    bool defined = true;
    for (int64_t y = 0; y < p.window; y++) {
#pragma unroll 4
      for (int64_t x = 0; x < p.window; x++) {
        const int64_t at = start + y * p.columns + x;
        const uint8_t outcome = p.outcome[at];
        if (outcome == kIgnoredPixel) continue;
        const A u = static_cast<const A*>(p.uncertainty)[at];
        valid++;
        right += outcome == kRight;
        if (math::is_uncertainty(u)) {
          sum += math::to_fixed(u);
        } else {
          defined = false;
        }
      }
    }
    if (valid == 0) continue;
    for (int k = 0; k < int(p.count); k++) {
      const PatchCount kind =
          defined ? patch_count(valid, right, sum, p.accuracy_threshold, p.thresholds[k])
                  : kUndefinedPatch;
      atomic_add(words + k * kPatchCounts + kind, 1);
    }
  }
  barrier();
  for (int i = int(thread()); i < size; i += int(block_size())) {
    add_unless_zero(p.counts + i, words[i]);
  }
}

template <class A>
void launch_patch_counts(const PatchCountsParams& p, Stream stream) {
  const Divisor columns(p.columns / p.window), rows(p.rows / p.window);
  const Work work =
      make_work(1, p.images * rows.value * columns.value, kPatchThreads, TablePolicy::kMaxBlocks);
  launch(patch_counts_kernel<A>, work.blocks, kPatchThreads,
         p.count * kPatchCounts * sizeof(uint32_t), stream, p, work, columns, rows);
}

}  // namespace

void patch_counts(const PatchCountsParams& params, Stream stream) {
  constexpr int64_t kMaxThresholds = kMaxDynamicSharedBytes<> / (kPatchCounts * sizeof(uint32_t));
  if (params.count > kMaxThresholds) {
    throw std::invalid_argument("thresholds: expected at most " + std::to_string(kMaxThresholds) +
                                ", got " + std::to_string(params.count));
  }
  if (params.count == 0 || params.images == 0 || params.rows < params.window ||
      params.columns < params.window) {
    return;
  }
  if (params.dtype == Dtype::f64) {
    launch_patch_counts<double>(params, stream);
  } else {
    launch_patch_counts<float>(params, stream);
  }
}

}  // namespace segunc::cuda
