// Predictive statistics as torch sees them: checks, allocation, call. A template over the backend.
#pragma once
#include <tuple>

#include "../common/tensors.h"
#include "params.h"

namespace segunc {

using Maps = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Fresh maps (N, *) of the accumulate type on like's device, and where kernels write them.
inline std::pair<Maps, StatisticsMaps> allocate_maps(const Tensor& like, Sizes sizes) {
  const ScalarType type = accumulate_type(like);
  Maps maps{allocate(like, sizes, ScalarType::Long),
            allocate(like, sizes, type),
            allocate(like, sizes, type),
            allocate(like, sizes, type),
            allocate(like, sizes, type),
            allocate(like, sizes, type)};
  const auto& [prediction, confidence, std, entropy, expected_entropy, mutual_information] = maps;
  return {maps,
          {static_cast<int64_t*>(prediction.mutable_data_ptr()), confidence.mutable_data_ptr(),
           std.mutable_data_ptr(), entropy.mutable_data_ptr(), expected_entropy.mutable_data_ptr(),
           mutual_information.mutable_data_ptr()}};
}

// Whether two tensors of one shape lie alike: the stride of an axis of one element addresses none.
inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t axis = 0; axis < a.dim(); ++axis)
    if (a.size(axis) > 1 && a.stride(axis) != b.stride(axis)) return false;
  return true;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> predictive_statistics(
    std::vector<Tensor> samples, std::vector<int64_t> size, bool align_corners, bool return_mean) {
  if (samples.empty()) fail("samples: expected at least one, got none");
  const Tensor& first = samples[0];
  const Backend backend(first);
  StatisticsParams p{};
  std::vector<int64_t> pixels = without_classes(first);
  if (!size.empty()) {
    pixels.resize(1);
    pixels.insert(pixels.end(), size.begin(), size.end());
  }
  set_pixels(p, "samples", first, pixels, align_corners, !return_mean);
  p.dtype = dtype_of("samples", first);
  p.count = int64_t(samples.size());
  std::vector<const void*> pointers;
  for (const Tensor& sample : samples) {
    check_shape("samples", sample, first.sizes());
    if (!same_strides(sample, first) || sample.scalar_type() != first.scalar_type() ||
        sample.device() != first.device())
      fail("samples: expected the same strides, type and device for all");
    pointers.push_back(sample.const_data_ptr());
  }
  p.samples = pointers.data();
  auto [maps, places] = allocate_maps(first, pixels);
  p.maps = places;
  if (return_mean)
    pixels.insert(pixels.begin() + 1, first.size(1));
  else
    pixels = {0};
  Tensor mean = allocate(first, pixels, accumulate_type(first));
  if (return_mean) p.mean = mean.mutable_data_ptr();
  backend.statistics(p);
  return std::tuple_cat(maps, std::make_tuple(mean));
}

template <class Backend>
void accumulate_statistics(const Tensor& mean, const Tensor& squared_deviations,
                           const Tensor& entropy_sum, const Tensor& logits, int64_t count,
                           bool align_corners) {
  const Backend backend(logits);
  const ScalarType type = accumulate_type(logits);
  check_dense("mean", mean, mean.sizes(), type, logits);
  if (mean.dim() < 2 || mean.size(1) != logits.size(1))
    fail("mean: expected shape (N, " + std::to_string(logits.size(1)) + ", *), got " +
         to_string(mean.sizes()));
  check_dense("squared_deviations", squared_deviations, mean.sizes(), type, logits);
  check_dense("entropy_sum", entropy_sum, without_classes(mean), type, logits);
  AccumulateParams p{};
  p.sample = logits.const_data_ptr();
  set_pixels(p, "logits", logits, entropy_sum.sizes(), align_corners, false);
  p.dtype = dtype_of("logits", logits);
  p.mean = mean.mutable_data_ptr();
  p.squared_deviations = squared_deviations.mutable_data_ptr();
  p.entropy_sum = entropy_sum.mutable_data_ptr();
  p.count = count;
  backend.accumulate(p);
}

template <class Backend>
Maps finalize_statistics(const Tensor& mean, const Tensor& squared_deviations,
                         const Tensor& entropy_sum, int64_t count) {
  const Backend backend(mean);
  const ScalarType type = accumulate_type(mean);
  check_dense("mean", mean, mean.sizes(), type, mean);
  check_dense("squared_deviations", squared_deviations, mean.sizes(), type, mean);
  check_dense("entropy_sum", entropy_sum, without_classes(mean), type, mean);
  FinalizeParams p{};
  p.mean = mean.const_data_ptr();
  p.squared_deviations = squared_deviations.const_data_ptr();
  p.entropy_sum = entropy_sum.const_data_ptr();
  p.count = count;
  p.images = mean.size(0), p.classes = mean.size(1);
  p.pixels = p.images ? entropy_sum.numel() / p.images : 0;
  p.dtype = dtype_of("mean", mean);
  auto [maps, places] = allocate_maps(mean, entropy_sum.sizes());
  p.maps = places;
  backend.finalize(p);
  return maps;
}

}  // namespace segunc
