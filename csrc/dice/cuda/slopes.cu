// The coefficients of the gradient in the type that is computed in, times the upstream gradient.
#include "slopes.h"

namespace segunc::cuda {
namespace {

constexpr int kSlopesThreads = 256;  // tuning

template <class A>
__global__ void __launch_bounds__(kSlopesThreads)
    dice_slopes_kernel(const OverlapParams p, A* slopes, const int64_t count) {
  const double upstream = double(*static_cast<const A*>(p.upstream));
  const int64_t step = int64_t(grid_size()) * kSlopesThreads;
  for (int64_t i = int64_t(block_index()) * kSlopesThreads + thread(); i < count; i += step) {
    slopes[i] = A(p.coefficients[i] * upstream);
  }
}

template <class A>
void launch_slopes_of(const OverlapParams& p, Stream stream) {
  const int64_t count = slopes_of(p);
  const int64_t blocks = std::min(divide_up(count, kSlopesThreads), DicePolicy::kMaxBlocks);
  launch(dice_slopes_kernel<A>, blocks, kSlopesThreads, 0, stream, p, static_cast<A*>(p.scratch),
         count);
}

}  // namespace

void launch_slopes(const OverlapParams& params, Stream stream) {
  if (params.dtype == Dtype::f64) {
    launch_slopes_of<double>(params, stream);
  } else {
    launch_slopes_of<float>(params, stream);
  }
}

}  // namespace segunc::cuda
