// What the families' backends share on a GPU: the device, its stream, and targets that are no
// class. Included before any other stable header of torch, which need what it defines for CUDA.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <stdexcept>
#include <string>

#include "../bad_target.h"
#include "../tensors.h"

namespace segunc::cuda {

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Lets this thread allocate while a graph is being captured, as no captured work depends on it.
class RelaxedCapture {
 public:
  RelaxedCapture() { check_cuda(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Where kernels report a target that is no class: {whether, the value}. Host memory that the GPU
// writes, so that nobody has to wait to find out.
inline volatile int64_t* bad_target() {
  static volatile int64_t* const flag = [] {
    const RelaxedCapture relaxed;
    void* mapped = nullptr;
    check_cuda(
        cudaHostAlloc(&mapped, 2 * sizeof(int64_t), cudaHostAllocMapped | cudaHostAllocPortable));
    auto* words = static_cast<int64_t*>(mapped);
    words[0] = words[1] = 0;
    return words;
  }();
  return flag;
}

inline void raise_pending() {
  volatile int64_t* flag = bad_target();
  if (flag[0] == 0) return;
  flag[0] = 0;
  if (flag[1] == kNeitherZeroNorOne)
    throw std::invalid_argument(
        "target: an earlier call on CUDA met a number that is neither 0 nor 1; its loss is NaN");
  throw std::out_of_range("target: an earlier call on CUDA met the out-of-range class " +
                          std::to_string(flag[1]) +
                          "; the loss is NaN at such pixels, and no metric counts them");
}

// Makes the tensor's device current for as long as it lives.
class Backend {
 public:
  explicit Backend(const Tensor& like) : guard_(like.get_device_index()) {
    raise_pending();
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  static void prepare(void*, int64_t) {}

  void fill(Tensor& scalar, double value) const { torch::stable::fill_(scalar, value); }

 protected:
  cudaStream_t stream() const { return stream_; }
  template <class Params>
  static void report_bad_targets(Params& p) {
    p.bad_target = const_cast<int64_t*>(bad_target());
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace segunc::cuda
