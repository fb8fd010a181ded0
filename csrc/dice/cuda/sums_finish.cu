// The rows of sums that blocks have left, added up in a fixed order.
#include "sums.h"

namespace segunc::cuda {
namespace {

constexpr int kFinishThreads = 256;  // tuning
constexpr int kFinishWarps = kFinishThreads / int(kWarpSize);

// A warp a sum; the last block adds up the cross-entropies. rows: of a table.
__global__ void __launch_bounds__(kFinishThreads)
    dice_sums_finish_kernel(const OverlapParams p, const int64_t tables, const int64_t rows,
                            const int64_t surprises, const Divisor sums_of_table) {
  const int64_t row = sums_of_table.value + surprises;
  if (block_index() + 1 == grid_size()) {
    double sum = 0;
    for (int64_t r = thread(); r < tables * rows; r += kFinishThreads) {
      for (int64_t s = 1; s <= surprises; s++) sum += p.partial[(r + 1) * row - s];
    }
    sum = block_sum(sum);
    if (thread() == 0) *p.surprise = sum;
    return;
  }
  const int64_t index = int64_t(block_index()) * kFinishWarps + warp();
  if (index >= tables * sums_of_table.value) return;
  int64_t i;
  const int64_t table = sums_of_table.divide(index, i);
  const double* partial = p.partial + table * rows * row + i;
  double sum = 0;
#pragma unroll 4
  for (int64_t r = lane(); r < rows; r += kWarpSize) sum += partial[r * row];
  sum = warp_sum(sum);
  if (lane() == 0) p.sums[index] = sum;
}

}  // namespace

void launch_sums_finish(const OverlapParams& params, const SumsWork& work, Stream stream) {
  const int64_t tables = params.by_image ? work.images : 1, sums = kDiceSums * params.map.classes;
  const int64_t rows = work.images * work.rows_of_image() / std::max<int64_t>(tables, 1);
  launch(dice_sums_finish_kernel, divide_up(tables * sums, kFinishWarps) + 1, kFinishThreads, 0,
         stream, params, tables, rows, work.surprises, Divisor(sums));
}

}  // namespace segunc::cuda
