// Sums of class weights and of losses on a GPU, in an order that follows from the sizes alone.
#include <algorithm>

#include "labels.h"
#include "reduction.h"
#include "work.h"

namespace segunc::cuda {
namespace {

using namespace device;

constexpr int kSumThreads = 256;     // tuning
constexpr int kFinishThreads = 512;  // tuning

template <class A, class Index>
SEGUNC_DEVICE double sum_of_weights(const NormalizerParams& p) {
  constexpr int kVector = 4;
  const auto* target = static_cast<const Index*>(p.target);
  const auto* weight = static_cast<const A*>(p.weight);
  const auto weight_of = [&](Index index) {
    const int64_t y = int64_t(index);
    if (y == p.ignore_index || y < 0 || y >= p.classes) return 0.0;
    return weight ? double(load_read_only(weight + y)) : 1.0;
  };
  const int64_t step = int64_t(grid_size()) * block_size();
  const int64_t first = int64_t(block_index()) * block_size() + thread();
  const int64_t vectors = reinterpret_cast<uintptr_t>(target) % 16 == 0 ? p.count / kVector : 0;
  double sum = 0;
  for (int64_t i = first; i < vectors; i += step) {
    const auto vector = load_vector<kVector>(target + i * kVector);
#pragma unroll
    for (int k = 0; k < kVector; k++) sum += weight_of(vector[k]);
  }
  for (int64_t i = vectors * kVector + first; i < p.count; i += step) sum += weight_of(target[i]);
  return sum;
}

template <class A>
__global__ void __launch_bounds__(kSumThreads, sizeof(A) > 4 ? 3 : 4)
    normalizer_kernel(const NormalizerParams p) {
  const double of_thread =
      with_index_type(p.target_type, [&](auto y) { return sum_of_weights<A, decltype(y)>(p); });
  const double sum = block_sum(of_thread);
  if (thread() == 0) p.partial[block_index()] = sum;
}

template <class Result>
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(const double* partial, int64_t count, const double* normalizer, Result* result) {
  double sum = 0;
#pragma unroll 4
  for (int64_t i = thread(); i < count; i += kFinishThreads) sum += partial[i];
  sum = block_sum(sum);
  if (thread() == 0) *result = Result(normalizer ? sum / *normalizer : sum);
}

// ---- launch ----

template <class Result>
void launch_finish(const double* partial, int64_t count, const double* normalizer, Result* result,
                   Stream stream) {
  launch(finish_kernel<Result>, 1, kFinishThreads, 0, stream, partial, count, normalizer, result);
}

}  // namespace

int64_t normalizer_partials(const NormalizerParams& params) {  // tuning
  // Eight targets a thread: more would leave a single image on few multiprocessors.
  constexpr int64_t kTargets = 8 * kSumThreads;
  return std::min<int64_t>(divide_up(params.count, kTargets), at_scale(1024));
}

void normalizer(const NormalizerParams& params, double* normalizer, Stream stream) {
  if (params.partials > 0) {
    launch(params.dtype == Dtype::f64 ? normalizer_kernel<double> : normalizer_kernel<float>,
           params.partials, kSumThreads, 0, stream, params);
  }
  launch_finish(params.partial, params.partials, nullptr, normalizer, stream);
}

void finish_loss(const double* partial, int64_t count, const double* normalizer, void* loss,
                 Dtype dtype, Stream stream) {
  if (dtype == Dtype::f64) {
    launch_finish(partial, count, normalizer, static_cast<double*>(loss), stream);
  } else {
    launch_finish(partial, count, normalizer, static_cast<float*>(loss), stream);
  }
}

}  // namespace segunc::cuda
