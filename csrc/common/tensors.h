// Between torch's stable tensors and what kernels know: types, layouts, allocation.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "class_map.h"
#include "element.h"

namespace segunc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

[[noreturn]] inline void fail(const std::string& message) { throw std::invalid_argument(message); }

constexpr const char* kNotOverwritten = "input: interpolated logits cannot be overwritten";

inline std::string to_string(Sizes sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + ")";
}

inline Dtype dtype_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    default:
      fail(std::string(name) + ": expected float32, bfloat16, float16 or float64, got " +
           torch::headeronly::toString(tensor.scalar_type()));
  }
}

inline IndexType index_type_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Long:
      return IndexType::i64;
    case ScalarType::Int:
      return IndexType::i32;
    case ScalarType::Short:
      return IndexType::i16;
    case ScalarType::Byte:
      return IndexType::u8;
    default:
      fail(std::string(name) + ": expected int64, int32, int16 or uint8, got " +
           torch::headeronly::toString(tensor.scalar_type()));
  }
}

inline ScalarType accumulate_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The functional layer validates for users; these guard the raw operators against misuse.
inline void check_shape(const char* name, const Tensor& tensor, Sizes sizes) {
  if (!tensor.sizes().equals(sizes))
    fail(std::string(name) + ": expected shape " + to_string(sizes) + ", got " +
         to_string(tensor.sizes()));
}
inline void check_dense(const char* name, const Tensor& tensor, Sizes sizes, ScalarType type,
                        const Tensor& like) {
  check_shape(name, tensor, sizes);
  if (!tensor.is_contiguous()) fail(std::string(name) + ": expected a contiguous tensor");
  if (tensor.scalar_type() != type)
    fail(std::string(name) + ": expected " + torch::headeronly::toString(type) + ", got " +
         torch::headeronly::toString(tensor.scalar_type()));
  if (tensor.device() != like.device()) fail(std::string(name) + ": expected input's device");
}

// A fresh tensor of the given strides on like's device.
inline Tensor allocate(const Tensor& like, Sizes sizes, Sizes strides, ScalarType type) {
  AtenTensorHandle handle = nullptr;
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), device_type,
      like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor allocate(const Tensor& like, Sizes sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(sizes[i], 1))
    strides[i] = stride;
  return allocate(like, sizes, strides, type);
}

inline std::vector<int64_t> without_classes(const Tensor& logits) {
  std::vector<int64_t> sizes(logits.sizes().begin(), logits.sizes().end());
  sizes.erase(sizes.begin() + 1);
  return sizes;
}

// A tensor (N, C, *spatial) as kernels traverse it: spatial axes merged where their strides allow.
// fold_images: images of a single pixel become the pixels of one image, which suits results (N, *)
// but not results (N, C, *).
inline ClassMap class_map_of(const char* name, const Tensor& tensor, bool fold_images) {
  const Sizes sizes = tensor.sizes(), strides = tensor.strides();
  if (sizes.size() < 2)
    fail(std::string(name) + ": expected shape (N, C, *), got " + to_string(sizes));
  ClassMap map{};
  map.images = sizes[0], map.classes = sizes[1], map.pixels = 1;
  map.image_stride = strides[0], map.class_stride = strides[1];
  std::vector<std::pair<int64_t, int64_t>> axes;  // size, stride
  for (size_t i = 2; i < sizes.size(); ++i) {
    map.pixels *= sizes[i];
    if (sizes[i] == 1) continue;
    if (!axes.empty() && axes.back().second == sizes[i] * strides[i])
      axes.back() = {axes.back().first * sizes[i], strides[i]};
    else
      axes.emplace_back(sizes[i], strides[i]);
  }
  if (axes.size() > 3)
    fail(std::string(name) +
         ": expected at most 3 separate spatial axes; pass a contiguous tensor");
  if (fold_images && map.pixels == 1 && map.images > 1) {
    axes.assign(1, {map.images, map.image_stride});
    map.pixels = map.images, map.images = 1;
  }
  for (int i = 0; i < 3; ++i) map.size[i] = 1, map.stride[i] = 0;
  for (size_t i = 0; i < axes.size(); ++i) {
    map.size[3 - axes.size() + i] = axes[i].first;
    map.stride[3 - axes.size() + i] = axes[i].second;
  }
  if (axes.empty()) map.stride[2] = 1;
  if (axes.size() > 1)
    map.layout = Layout::strided;
  else if (map.stride[2] == 1)
    map.layout = Layout::planar;
  else if (map.class_stride == 1 && map.stride[2] == map.classes)
    map.layout = Layout::channels_last;
  else
    map.layout = Layout::strided;
  return map;
}

// A map whose size[] and stride[] are those of depth, height and width in any layout.
inline ClassMap unmerged_map_of(const char* name, const Tensor& tensor) {
  ClassMap map = class_map_of(name, tensor, false);
  const int64_t unused = 5 - int64_t(tensor.dim());
  for (int64_t axis = 0; axis < 3; ++axis) {
    map.size[axis] = axis < unused ? 1 : tensor.size(axis - unused + 2);
    map.stride[axis] = axis < unused ? 0 : tensor.stride(axis - unused + 2);
  }
  return map;
}

// What interpolates a map of unmerged axes to pixels (N, *).
inline Interpolation interpolation_to(const char* name, const Tensor& tensor, const ClassMap& map,
                                      Sizes pixels, bool align_corners) {
  if (tensor.dim() != 4 && tensor.dim() != 5)
    fail(std::string(name) + ": expected shape (N, C, H, W) or (N, C, D, H, W), got " +
         to_string(tensor.sizes()));
  if (int64_t(pixels.size()) != tensor.dim() - 1 || pixels[0] != tensor.size(0))
    fail(std::string(name) + ": expected shape (N, C, *) for results of shape " +
         to_string(pixels) + ", got " + to_string(tensor.sizes()));
  constexpr int64_t kMost = 1 << 30;  // positions of an axis are ints
  Interpolation interpolation{true, {1, 1, 1}, align_corners};
  for (int64_t axis = 0; axis < 3; ++axis) {
    const int64_t from_end = 3 - axis, dims = int64_t(pixels.size());
    if (from_end < dims) interpolation.size[axis] = pixels[dims - from_end];
    for (const int64_t size : {map.size[axis], interpolation.size[axis]})
      if (size < 1 || size > kMost)
        fail(std::string(name) + ": expected 1 to 2^30 positions along each axis, got " +
             to_string(tensor.sizes()) + " for results of shape " + to_string(pixels));
  }
  return interpolation;
}

// Sets p.map and p.interpolation for results of pixels (N, *), of which those of the logits are
// taken as they are. fold_images: as for class_map_of.
template <class Params>
void set_pixels(Params& p, const char* name, const Tensor& logits, Sizes pixels, bool align_corners,
                bool fold_images) {
  p.interpolation = {};
  if (pixels.equals(without_classes(logits))) {
    p.map = class_map_of(name, logits, fold_images);
    return;
  }
  p.map = unmerged_map_of(name, logits);
  p.interpolation = interpolation_to(name, logits, p.map, pixels, align_corners);
}

// Like torch.empty_like: the same strides where they are dense.
inline Tensor allocate_like(const Tensor& tensor) { return torch::stable::empty_like(tensor); }

}  // namespace segunc
