// Who implements the operators on a GPU.
#include <cuda_runtime.h>
// Before the other stable headers, which need what it defines for CUDA.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "components/binding.h"
#include "components/cuda/kernels.h"
#include "counts/binding.h"
#include "counts/cuda/kernels.h"
#include "cross_entropy/binding.h"
#include "cross_entropy/cuda/kernels.h"
#include "scale/binding.h"
#include "scale/cuda/kernels.h"
#include "statistics/binding.h"
#include "statistics/cuda/kernels.h"

namespace segunc {
namespace {

void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Where kernels report a target that is no class: {whether, the value}. Host memory that the GPU
// writes, so that nobody has to wait to find out.
volatile int64_t* bad_target() {
  static volatile int64_t* const flag = [] {
    // Allocating is allowed while a graph is being captured, as no captured work depends on it.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check_cuda(cudaThreadExchangeStreamCaptureMode(&mode));
    void* mapped = nullptr;
    check_cuda(
        cudaHostAlloc(&mapped, 2 * sizeof(int64_t), cudaHostAllocMapped | cudaHostAllocPortable));
    check_cuda(cudaThreadExchangeStreamCaptureMode(&mode));
    auto* words = static_cast<int64_t*>(mapped);
    words[0] = words[1] = 0;
    return words;
  }();
  return flag;
}

void raise_pending() {
  volatile int64_t* flag = bad_target();
  if (flag[0] == 0) return;
  flag[0] = 0;
  throw std::out_of_range("target: an earlier call on CUDA met the out-of-range class " +
                          std::to_string(flag[1]) +
                          "; the loss is NaN at such pixels, and no metric counts them");
}

struct Cuda {
  explicit Cuda(const Tensor& like) : guard_(like.get_device_index()) {
    raise_pending();
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  static void prepare(void*, int64_t) {}

  void fill(Tensor& scalar, double value) const { torch::stable::fill_(scalar, value); }

  int64_t normalizer_partials(const NormalizerParams& p) const {
    return cuda::normalizer_partials(p);
  }
  void normalizer(const NormalizerParams& p, double* normalizer) const {
    cuda::normalizer(p, normalizer, stream_);
  }

  int64_t cross_entropy_partials(const CrossEntropyParams& p) const {
    return cuda::cross_entropy_partials(p);
  }
  void cross_entropy(CrossEntropyParams& p) const {
    p.bad_target = const_cast<int64_t*>(bad_target());
    cuda::cross_entropy(p, stream_);
  }
  int64_t upsampled_cross_entropy_partials(const UpsampledCrossEntropyParams& p) const {
    return cuda::upsampled_cross_entropy_partials(p);
  }
  int64_t scratch_bytes(const UpsampledCrossEntropyParams& p) const {
    return cuda::upsampled_cross_entropy_scratch_bytes(p);
  }
  void upsampled_cross_entropy(UpsampledCrossEntropyParams& p) const {
    p.bad_target = const_cast<int64_t*>(bad_target());
    cuda::upsampled_cross_entropy(p, stream_);
  }
  void finish_loss(const double* partial, int64_t count, const double* normalizer, void* loss,
                   Dtype dtype) const {
    cuda::finish_loss(partial, count, normalizer, loss, dtype, stream_);
  }

  void scale(const ScaleParams& p) const { cuda::scale(p, stream_); }

  void statistics(const StatisticsParams& p) const { cuda::predictive_statistics(p, stream_); }
  void accumulate(const AccumulateParams& p) const { cuda::accumulate(p, stream_); }
  void finalize(const FinalizeParams& p) const { cuda::finalize(p, stream_); }

  int64_t scratch_bytes(const ComponentsParams& p) const {
    return cuda::components_scratch_bytes(p);
  }
  int64_t scratch_bytes(const ComponentMeanParams& p) const {
    return cuda::component_mean_scratch_bytes(p);
  }
  void components(const ComponentsParams& p) const { cuda::connected_components(p, stream_); }
  void component_mean(const ComponentMeanParams& p) const { cuda::component_mean(p, stream_); }
  void counts(CountsParams& p) const {
    p.bad_target = const_cast<int64_t*>(bad_target());
    cuda::counts(p, stream_);
  }
  void map_counts(MapCountsParams& p) const {
    p.bad_target = const_cast<int64_t*>(bad_target());
    cuda::map_counts(p, stream_);
  }
  void patch_counts(const PatchCountsParams& p) const { cuda::patch_counts(p, stream_); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

void check() { raise_pending(); }

std::string cuda_targets() { return SEGUNC_CUDA_TARGETS; }

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CUDA, m) {
  using namespace segunc;
  m.impl("cross_entropy_forward", TORCH_BOX(&cross_entropy_forward<Cuda>));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward<Cuda>));
  m.impl("upsampled_cross_entropy_forward", TORCH_BOX(&upsampled_cross_entropy_forward<Cuda>));
  m.impl("upsampled_cross_entropy_backward", TORCH_BOX(&upsampled_cross_entropy_backward<Cuda>));
  m.impl("scale_", TORCH_BOX(&scale<Cuda>));
  m.impl("predictive_statistics", TORCH_BOX(&predictive_statistics<Cuda>));
  m.impl("accumulate_statistics_", TORCH_BOX(&accumulate_statistics<Cuda>));
  m.impl("finalize_statistics", TORCH_BOX(&finalize_statistics<Cuda>));
  m.impl("connected_components", TORCH_BOX(&connected_components<Cuda>));
  m.impl("component_mean", TORCH_BOX(&component_mean<Cuda>));
  m.impl("accumulate_counts_", TORCH_BOX(&accumulate_counts<Cuda>));
  m.impl("accumulate_map_counts_", TORCH_BOX(&accumulate_map_counts<Cuda>));
  m.impl("accumulate_patch_counts_", TORCH_BOX(&accumulate_patch_counts<Cuda>));
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CompositeExplicitAutograd, m) {
  m.impl("check", TORCH_BOX(&segunc::check));
  m.impl("cuda_targets", TORCH_BOX(&segunc::cuda_targets));
}
