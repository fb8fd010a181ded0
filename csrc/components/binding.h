// Connected components as torch sees them: checks, allocation, call. A template over the backend.
#pragma once
#include <tuple>

#include "../common/tensors.h"
#include "params.h"

namespace segunc {

inline LabelMap label_map_of(const Tensor& labels, int64_t connectivity,
                             std::optional<int64_t> ignore_index) {
  const Sizes sizes = labels.sizes();
  const bool volume = sizes.size() == 4;
  if (!volume && sizes.size() != 3)
    fail("labels: expected shape (N, H, W) or (N, D, H, W), got " + to_string(sizes));
  if (connectivity != (volume ? 6 : 4) && connectivity != (volume ? 26 : 8))
    fail("connectivity: expected " + std::string(volume ? "6 or 26" : "4 or 8") + ", got " +
         std::to_string(connectivity));
  if (!labels.is_contiguous()) fail("labels: expected a contiguous tensor");
  LabelMap map{};
  map.labels = labels.const_data_ptr();
  map.label_bytes = int(labels.element_size());
  map.images = sizes[0];
  map.depth = volume ? sizes[1] : 1;
  map.height = sizes[sizes.size() - 2];
  map.width = sizes[sizes.size() - 1];
  map.diagonal = connectivity == (volume ? 26 : 8);
  map.ignores = ignore_index.has_value();
  map.ignored = ignore_index.value_or(0);
  if (map.images && labels.numel() / map.images > INT32_MAX)
    fail("labels: expected images of less than 2^31 pixels, got " + to_string(sizes));
  return map;
}

template <class Backend>
std::tuple<Tensor, Tensor> connected_components(const Tensor& labels, int64_t connectivity,
                                                std::optional<int64_t> ignore_index) {
  const Backend backend(labels);
  ComponentsParams p{};
  p.map = label_map_of(labels, connectivity, ignore_index);
  Tensor components = allocate(labels, labels.sizes(), ScalarType::Int);
  Tensor counts = allocate(labels, {p.map.images}, ScalarType::Long);
  p.components = static_cast<int32_t*>(components.mutable_data_ptr());
  p.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  if (labels.numel() == 0) {
    torch::stable::zero_(counts);
  } else {
    Backend::prepare(components.mutable_data_ptr(), labels.numel() * int64_t(sizeof(int32_t)));
    const Tensor scratch = allocate(labels, {backend.scratch_bytes(p)}, ScalarType::Byte);
    p.scratch = scratch.mutable_data_ptr();
    backend.components(p);
  }
  return {components, counts};
}

template <class Backend>
Tensor component_mean(const Tensor& values, const Tensor& labels, int64_t connectivity,
                      std::optional<int64_t> ignore_index, std::optional<double> bound) {
  const Backend backend(labels);
  ComponentMeanParams p{};
  p.map = label_map_of(labels, connectivity, ignore_index);
  p.dtype = dtype_of("values", values);
  check_dense("values", values, labels.sizes(), values.scalar_type(), labels);
  Tensor means = allocate(values, values.sizes(), values.scalar_type());
  p.values = values.const_data_ptr();
  p.means = means.mutable_data_ptr();
  p.bound = bound.value_or(0);
  if (labels.numel()) {
    Backend::prepare(means.mutable_data_ptr(), means.numel() * int64_t(means.element_size()));
    const Tensor scratch = allocate(labels, {backend.scratch_bytes(p)}, ScalarType::Byte);
    p.scratch = scratch.mutable_data_ptr();
    backend.component_mean(p);
  }
  return means;
}

}  // namespace segunc
