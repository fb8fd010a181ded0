// data *= factor in place, where the factor is known on the device alone: no synchronisation, and a
// launch that reads one number and ends where the factor is 1.
#include <algorithm>
#include <stdexcept>

#include "../../common/device/work.h"
#include "kernels.h"

namespace segunc::cuda {
namespace {

using namespace device;

// Derived from bytes in flight, not yet measured on a GPU: 64 bytes of every thread, and two
// thousand resident threads a multiprocessor, are several times what the bandwidth needs. As many
// blocks as two waves take on the largest GPUs: each reads the factor, mostly to find it is 1.
constexpr int kThreads = 256;                   // tuning
constexpr int kBatch = 4;                       // tuning
constexpr int64_t kMaxBlocks = at_scale(2048);  // tuning
// Instructions an element on sm_90.
// report: budget scale_vectors_kernel<float, 4> 4
// report: budget scale_vectors_kernel<bfloat16, 8> 5.2

template <class T>
SEGUNC_DEVICE T scaled(T value, accumulate_t<T> factor) {
  return from_accumulate<T>(to_accumulate(value) * factor);
}

// N: elements of a vector.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    scale_vectors_kernel(T* data, const void* factor_data, Dtype factor_dtype, int64_t count) {
  using A = accumulate_t<T>;
  const A factor = factor_dtype == Dtype::f64 ? A(*static_cast<const double*>(factor_data))
                                              : A(*static_cast<const float*>(factor_data));
  if (factor == A(1)) return;
  const int64_t threads = int64_t(grid_size()) * kThreads;
  const int64_t first = int64_t(block_index()) * kThreads + thread();
  const int64_t vectors = count / N;
  // report: hot 4 * N
  for (int64_t i = first; i < vectors; i += kBatch * threads) {
    Vector<T, N> batch[kBatch] = {};
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      // report: vector sizeof(T) * N
      if (i + b * threads < vectors) batch[b] = load_vector<N>(data + (i + b * threads) * N);
    }
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
#pragma unroll
      for (int k = 0; k < N; k++) batch[b][k] = scaled(batch[b][k], factor);
      // report: vector sizeof(T) * N
      if (i + b * threads < vectors) store_vector(data + (i + b * threads) * N, batch[b]);
    }
  }
  // report: end
  const int64_t tail = vectors * N + first;
  if (tail < count) data[tail] = scaled(data[tail], factor);
}

template <class T, int N>
void launch_scale_vectors(const ScaleParams& p, Stream stream) {
  constexpr int64_t kElements = int64_t(kThreads) * kBatch * N;                // tuning
  const int64_t blocks = std::min(divide_up(p.count, kElements), kMaxBlocks);  // tuning
  launch(scale_vectors_kernel<T, N>, blocks, kThreads, 0, stream, static_cast<T*>(p.data), p.factor,
         p.factor_dtype, p.count);
}

template <class T>
void launch_scale(const ScaleParams& p, Stream stream) {
  if (is_vector_aligned(p.data, 16)) {
    launch_scale_vectors<T, 16 / sizeof(T)>(p, stream);
  } else {
    launch_scale_vectors<T, 1>(p, stream);
  }
}

}  // namespace

void scale(const ScaleParams& params, Stream stream) {
  if (params.count == 0) return;
  if (params.factor_dtype != Dtype::f32 && params.factor_dtype != Dtype::f64) {
    throw std::invalid_argument("scale: the factor is float32 or float64");
  }
  with_dtype("scale", params.dtype, [&](auto t) { launch_scale<decltype(t)>(params, stream); });
}

}  // namespace segunc::cuda
