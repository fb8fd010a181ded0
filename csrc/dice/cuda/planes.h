// planes: a block takes pixels of one region of an image, whose logits lie side by side. A thread's
// sums and coefficients are those of one region, so they stay in a few registers, however many
// regions there are. What the kernels of the sums and of the gradient share.
#pragma once
#include "kernels.h"
#include "regions.h"

namespace segunc::cuda {

struct PlanePolicy {  // tuning
  static constexpr int kPlaneThreads = 256;
  static constexpr int kWidth = 4;  // pixels a thread
  static constexpr int kTile = kPlaneThreads * kWidth;
  static constexpr int64_t kMaxSumsBlocks = at_scale(4096);
  static constexpr int64_t kMaxGradientBlocks = at_scale(8192);
};

// One by one, for whatever alignment: a warp's accesses are whole lines all the same.
using PlanePixels = SpacedPixels<PlanePolicy::kWidth, PlanePolicy::kPlaneThreads>;

inline bool takes_planes(const DiceBceParams& p) {
  // The gradient of a pixel's weight is a sum over its regions.
  return p.map.layout == Layout::planar && (!p.grad_input || p.grad_map.layout == Layout::planar) &&
         p.dtype != Dtype::f64 && !p.grad_pixel_weight && p.map.classes > 0 &&
         p.map.pixels >= kMinTiledPixels;
}

// Its images are planes.
inline ImageWork make_plane_work(const DiceBceParams& p, int64_t max_blocks) {
  return make_image_work(p.map.images * p.map.classes, p.map.pixels, PlanePolicy::kTile,
                         max_blocks);
}

// A block's plane.
struct Plane {
  int64_t image, region;
  int64_t block;   // of the plane
  int64_t logits;  // its first one's place

  SEGUNC_DEVICE Plane(const DiceBceParams& p, const ImageWork& work, const Divisor& classes) {
    image = classes.divide(work.blocks_of_image.divide(block_index(), block), region);
    logits = image * p.map.image_stride + region * p.map.class_stride;
  }
};

// A thread's pixels of a region.
struct RegionPixels {
  static constexpr int V = PlanePixels::kCount;
  float logit[V];  // NaN where the target is neither 0 nor 1
  int label[V];    // 0 there, and where a pixel counts nothing
  Vector<float, V> weight;
  Vector<bool, V> counts;
};

template <class Y>
SEGUNC_DEVICE void load_binary_labels_of(const PlanePixels& pixels, const void* data, int64_t first,
                                         RegionPixels& of) {
  const auto stored = pixels.load(static_cast<const Y*>(data) + first, Y());
#pragma unroll
  for (int j = 0; j < RegionPixels::V; j++) {
    of.label[j] = binary_label(to_number(stored[j]));
  }
}

// The targets of pixels whose first is element `first`; 0 where there is none.
SEGUNC_DEVICE void load_binary_labels(const PlanePixels& pixels, const void* data, BinaryType type,
                                      int64_t first, RegionPixels& of) {
  with_binary_type(type,
                   [&](auto y) { load_binary_labels_of<decltype(y)>(pixels, data, first, of); });
}

// pixel: the place of the first one in the image.
template <class T, class Bad>
SEGUNC_DEVICE RegionPixels load_region(const DiceBceParams& p, const PlanePixels& pixels,
                                       const Plane& plane, int64_t pixel, Bad& bad) {
  constexpr int V = RegionPixels::V;
  RegionPixels of;
  const int64_t index = plane.image * p.map.pixels + pixel;
  const auto raw = pixels.load(static_cast<const T*>(p.input) + plane.logits + pixel, T());
  of.weight = load_factors<float>(pixels, p.pixel_weight, index);
#pragma unroll
  for (int j = 0; j < V; j++) of.counts[j] = pixels.has(j);
  if (p.mask) of.counts = pixels.load(p.mask + index, false);
  load_binary_labels(pixels, p.target, p.target_type,
                     plane.image * p.target_stride + plane.region * p.map.pixels + pixel, of);
  int signs = 0;
#pragma unroll
  for (int j = 0; j < V; j++) {
    of.logit[j] = to_accumulate(raw[j]);
    of.label[j] = of.counts[j] ? of.label[j] : 0;
    signs |= of.label[j];
  }
  if (signs < 0) {
    // It makes the gradient NaN, as every sum that it has a part in.
    // report: begin rare
#pragma unroll
    for (int j = 0; j < V; j++) {
      if (of.label[j] != kOutOfRange) continue;
      bad.remember(kNeitherZeroNorOne);
      of.logit[j] = kNaN<float>;
      of.label[j] = 0;
    }
    // report: end
  }
  return of;
}

SEGUNC_DEVICE math::Sigmoids<float> short_sigmoids_of(float logit) {
  const float e = exponential(-fabsf(logit));
  return {e, inverse_of_sum(1.f + e)};
}

// The kernels, of pixels that planes take.
DiceBcePlan plan_dice_bce_sums_of_planes(const DiceBceParams& params);
DiceBcePlan plan_dice_bce_gradient_of_planes(const DiceBceParams& params);

}  // namespace segunc::cuda
