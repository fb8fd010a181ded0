// Means over components: tiles add up the values of their parts in fixed point, roots those of the
// parts below them.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../../common/device/softmax.h"
#include "chunks.h"
#include "forest.h"
#include "kernels.h"
#include "label_tile.h"

namespace segunc::cuda {
namespace {

using namespace components;

// ---- Launch policy ----

// Of the search for the largest value where no bound is known.
struct MaximumPolicy {
  static constexpr int kThreads = 256;
  // Of an image: a warp of every tile reads what they have found.
  static constexpr int64_t kMaxBlocks = at_scale(256);
  static constexpr int kPixels = 16;  // a thread, as long as there are enough
};

// ---- Fixed point ----

// 2^exponent, which on its own need not be a number of the type.
template <class A>
struct PowerOfTwo {
  A factor[2];
  PowerOfTwo() = default;
  SEGUNC_HD explicit PowerOfTwo(int exponent)
      : factor{std::ldexp(A(1), exponent / 2), std::ldexp(A(1), exponent - exponent / 2)} {}
  SEGUNC_HD A times(A value) const { return value * factor[0] * factor[1]; }
};

template <class A>
SEGUNC_DEVICE A warp_maximum(A value) {
#pragma unroll
  for (unsigned distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value = larger(value, shuffle_xor(kFullMask, value, distance));
  }
  return value;
}

// Values are added as integers: value * 2^exponent, such that the sum of an image stays below 2^62
// even where rounding has put values above the bound, by one bit.
template <class A>
struct FixedPoint {
  const A* maxima;  // [images, maxima_per_image], or null: then the bound and what follows is known
  int maxima_per_image;
  int log2_pixels;  // of an image, rounded up
  A limit;          // of value * 2^exponent
  PowerOfTwo<A> units_of_one;
  PowerOfTwo<double> unit;

  SEGUNC_HD int exponent(A bound) const {
    int log2_bound = 0;
    std::frexp(bound, &log2_bound);
    return 61 - log2_pixels - log2_bound;
  }
  // Of an image whose bound the device has found. A warp calls it as a whole.
  SEGUNC_DEVICE int found_exponent(int image) const {
    A largest = A(0);
#pragma unroll 1
    for (int i = int(lane()); i < maxima_per_image; i += int(kWarpSize)) {
      largest = larger(largest, maxima[int64_t(image) * maxima_per_image + i]);
    }
    return exponent(warp_maximum(largest));
  }
  SEGUNC_DEVICE PowerOfTwo<A> units_of_one_in(int image) const {
    return maxima ? PowerOfTwo<A>(found_exponent(image)) : units_of_one;
  }
  SEGUNC_DEVICE PowerOfTwo<double> unit_in(int image) const {
    return maxima ? PowerOfTwo<double>(-found_exponent(image)) : unit;
  }
};

// The largest finite magnitude of a share of an image.
template <class T>
__global__ void __launch_bounds__(MaximumPolicy::kThreads)
    component_mean_maximum_kernel(const LabelMap map, const Tiles tiles, const T* values,
                                  const Divisor maxima_per_image, accumulate_t<T>* maxima) {
  using A = accumulate_t<T>;
  constexpr int kMaximumWarps = MaximumPolicy::kThreads / int(kWarpSize);
  SEGUNC_SHARED(warp_largest, A[kMaximumWarps]);
  int64_t share;
  const int64_t image = maxima_per_image.divide(block_index(), share);
  const int first = int(image) * tiles.image_pixels;
  const int64_t stride = maxima_per_image.value * MaximumPolicy::kThreads;
  A largest = A(0);
#pragma unroll 4
  for (int64_t i = share * MaximumPolicy::kThreads + thread(); i < tiles.image_pixels;
       i += stride) {
    const A magnitude = std::fabs(to_accumulate(values[first + int(i)]));
    const bool counts = magnitude < kInfinity<A> &&
                        !(map.ignores && is_ignored(map, label_at(map, first + int(i))));
    largest = larger(largest, counts ? magnitude : A(0));
  }
  largest = warp_maximum(largest);
  if (lane() == 0) warp_largest[warp()] = largest;
  barrier();
  if (thread() == 0) {
#pragma unroll
    for (int i = 1; i < kMaximumWarps; i++) largest = larger(largest, warp_largest[i]);
    maxima[block_index()] = largest;
  }
}

// ---- The parts' sums ----

// A count whose values are not all finite numbers within the bound.
constexpr uint32_t kNotFinite = 0x80000000u;

struct PartSums {
  int64_t* sum;     // by slot
  uint32_t* count;  // by slot
};

// What a lane has added up of one part: count in the lower half, values that are no finite numbers
// in the upper.
struct LaneSum {
  unsigned part;
  int64_t sum;
  unsigned count;
};

SEGUNC_DEVICE void add_to_part(const LaneSum& mine, int64_t* sum, unsigned* count) {
  if (mine.part == kNoPart) return;
  atomic_add(sum + mine.part, mine.sum);
  atomic_add(count + mine.part, mine.count);
}

// Adds what the lanes of a warp hold, once for neighbouring lanes of one part.
SEGUNC_DEVICE void add_to_parts(LaneSum mine, int64_t* sum, unsigned* count) {
  const unsigned part_before = shuffle_up(kFullMask, mine.part, 1);
  const bool leads = lane() == 0 || mine.part != part_before;
  const unsigned leaders_after = ballot(kFullMask, leads) & (kFullMask << 1 << lane());
  const unsigned end = leaders_after ? unsigned(find_first_set(leaders_after)) - 1 : kWarpSize;
#pragma unroll
  for (unsigned delta = 1; delta < kWarpSize; delta *= 2) {
    const int64_t next_sum = shuffle_down(kFullMask, mine.sum, delta);
    const unsigned next_count = shuffle_down(kFullMask, mine.count, delta);
    if (lane() + delta < end) {
      mine.sum += next_sum;
      mine.count += next_count;
    }
  }
  if (leads) add_to_part(mine, sum, count);
}

// ---- component_mean ----

template <class Label, class T>
__global__ void __launch_bounds__(Policy::kTileThreads, kTileBlocks<Label, T>)
    component_mean_tiles_kernel(const LabelMap map, const Tiles tiles, const T* values,
                                const FixedPoint<accumulate_t<T>> fixed_point,
                                const Parts<int32_t> parts, const PartSums sums, const bool wide) {
  using A = accumulate_t<T>;
  union Memory {
    alignas(16) int32_t forest[kTilePixels];
    int64_t sum[kTilePixels];  // by part, once every pixel knows its own
  };
  SEGUNC_SHARED(memory, Memory);
  SEGUNC_SHARED(count, unsigned[kTilePixels]);
  // report: hot 8
  const Tile tile = tile_at(tiles, block_index());
  const Span span(tiles, tile, wide);
  const Vector<T, kSpan> value = span.load(values);  // report: vector 16
  PartSpan part;
  const int tile_parts = label_tile<Label>(
      map, tiles, span, memory.forest, part, [](int, int, int) {},
      [&](int, int number) {
        make_root(parts.forest, tile.slot + number, 0);
        count[number] = 0;
      });
  span.store(parts.part_of_pixel, part);  // report: vector 16
  barrier();                              // nobody reads the forest any more
  // report: begin rare
  for (int i = int(thread()); i < tile_parts; i += Policy::kTileThreads) memory.sum[i] = 0;
  // report: end
  barrier();

  const PowerOfTwo<A> units_of_one = fixed_point.units_of_one_in(tile.image);
  LaneSum mine{part[0], 0, 0};
#pragma unroll
  for (int i = 0; i < kSpan; i++) {
    if (part[i] != mine.part) {
      // report: begin rare
      add_to_part(mine, memory.sum, count);
      mine = {part[i], 0, 0};
      // report: end
    }
    const A units = units_of_one.times(to_accumulate(value[i]));
    if (std::fabs(units) <= fixed_point.limit) {
      mine.sum += std::llrint(units);
      mine.count++;
    } else {
      mine.count += 1u << 16;
    }
  }
  add_to_parts(mine, memory.sum, count);
  barrier();
  // report: begin rare
  for (int i = int(thread()); i < tile_parts; i += Policy::kTileThreads) {
    sums.sum[tile.slot + i] = memory.sum[i];
    sums.count[tile.slot + i] = count[i] >> 16 ? kNotFinite : count[i];
  }
  // report: end
  if (thread() == 0) parts.parts_of_tile[block_index()] = tile_parts;
  // report: end
}

// A warp a tile, a lane a part: a part's sum moves once, whatever its size.
__global__ void __launch_bounds__(Policy::kRootThreads)
    component_mean_roots_kernel(const Tiles tiles, const Parts<int32_t> parts,
                                const PartSums sums) {
  const int64_t index =
      (int64_t(block_index()) * Policy::kRootThreads + thread()) / int64_t(kWarpSize);
  if (index >= tiles.count) return;
  const int first = tile_at(tiles, index).slot;
  for (int i = int(lane()); i < parts.parts_of_tile[index]; i += int(kWarpSize)) {
    const int slot = first + i;
    const int root = find_root(parts.forest, slot);
    if (root == slot) continue;
    store_relaxed(parts.forest + slot, root);
    if (sums.count[slot] & kNotFinite) {
      // Counts added to this stay below 2^32.
      atomic_max(sums.count + root, kNotFinite);
    } else {
      atomic_add(sums.sum + root, sums.sum[slot]);
      atomic_add(sums.count + root, sums.count[slot]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(Policy::kTileThreads, 4)
    component_mean_means_kernel(const Tiles tiles, const Parts<int32_t> parts, const PartSums sums,
                                const FixedPoint<accumulate_t<T>> fixed_point, T* means,
                                const bool wide) {
  using A = accumulate_t<T>;
  SEGUNC_SHARED(mean, T[kTilePixels]);
  // report: hot 8
  const Tile tile = tile_at(tiles, block_index());
  const Span span(tiles, tile, wide);
  const PartSpan part = span.load(parts.part_of_pixel);  // report: vector 16
  const PowerOfTwo<double> unit = fixed_point.unit_in(tile.image);
  const int tile_parts = parts.parts_of_tile[block_index()];
  // report: begin rare
  for (int i = int(thread()); i < tile_parts; i += Policy::kTileThreads) {
    const int root = parts.forest[tile.slot + i];
    const uint32_t count = sums.count[root];
    const A result =
        count & kNotFinite ? kNaN<A> : A(unit.times(double(sums.sum[root]) / double(count)));
    mean[i] = from_accumulate<T>(result);
  }
  // report: end
  barrier();
  store_results(span, part, means, [&](unsigned i) { return mean[i]; });  // report: vector 16
  // report: end
}

// ---- launch and dispatch ----

PartSums take_sums(Scratch& scratch, const Plan& plan) {
  const int64_t pixels = plan.chunk_images * plan.image_pixels;
  PartSums sums{};
  sums.sum = scratch.take<int64_t>(pixels);
  sums.count = scratch.take<uint32_t>(pixels);
  return sums;
}

bool knows_bound(const ComponentMeanParams& p) { return p.bound > 0 && std::isfinite(p.bound); }

template <class T>
struct MeanScratch {
  using A = accumulate_t<T>;
  Parts<int32_t> parts;
  PartSums sums;
  A* maxima;
  FixedPoint<A> fixed_point;
  int64_t bytes;

  MeanScratch(const ComponentMeanParams& p, const Plan& plan) {
    Scratch scratch(p.scratch);
    parts = take_parts<int32_t>(scratch, plan);
    sums = take_sums(scratch, plan);
    fixed_point = {};
    while (int64_t(1) << fixed_point.log2_pixels < plan.image_pixels) fixed_point.log2_pixels++;
    fixed_point.limit = std::ldexp(A(1), 62 - fixed_point.log2_pixels);
    if (!knows_bound(p)) {
      constexpr int64_t kShare = int64_t(MaximumPolicy::kThreads) * MaximumPolicy::kPixels;
      const int64_t shares =
          std::min(divide_up(plan.image_pixels, kShare), MaximumPolicy::kMaxBlocks);
      maxima = scratch.take<A>(plan.chunk_images * shares);
      fixed_point.maxima = maxima;
      fixed_point.maxima_per_image = int(shares);
    } else {
      const double largest = double(std::numeric_limits<A>::max());
      const int exponent = fixed_point.exponent(A(std::min(p.bound, largest)));
      fixed_point.units_of_one = PowerOfTwo<A>(exponent);
      fixed_point.unit = PowerOfTwo<double>(-exponent);
    }
    bytes = scratch.bytes();
  }
};

template <class T>
void launch_component_mean(const ComponentMeanParams& p, const Plan& plan, Stream stream) {
  const MeanScratch<T> scratch(p, plan);
  for_each_chunk(p.map, plan, [&](const LabelMap& map, const Tiles& tiles, int64_t first_image) {
    const T* values = static_cast<const T*>(p.values) + first_image * plan.image_pixels;
    T* means = static_cast<T*>(p.means) + first_image * plan.image_pixels;
    const bool wide = has_whole_spans(tiles, map.labels, map.label_bytes) &&
                      has_whole_spans(tiles, values, sizeof(T)) &&
                      has_whole_spans(tiles, means, sizeof(T));
    if (scratch.fixed_point.maxima) {
      const int64_t shares = scratch.fixed_point.maxima_per_image;
      launch(component_mean_maximum_kernel<T>, map.images * shares, MaximumPolicy::kThreads, 0,
             stream, map, tiles, values, Divisor(shares), scratch.maxima);
    }
    with_label(map.label_bytes, [&](auto label) {
      launch(component_mean_tiles_kernel<decltype(label), T>, tiles.count, Policy::kTileThreads, 0,
             stream, map, tiles, values, scratch.fixed_point, scratch.parts, scratch.sums, wide);
    });
    launch_seams(map, tiles, scratch.parts, stream);
    launch(component_mean_roots_kernel, root_blocks(tiles), Policy::kRootThreads, 0, stream, tiles,
           scratch.parts, scratch.sums);
    launch(component_mean_means_kernel<T>, tiles.count, Policy::kTileThreads, 0, stream, tiles,
           scratch.parts, scratch.sums, scratch.fixed_point, means, wide);
  });
}

}  // namespace

int64_t component_mean_scratch_bytes(const ComponentMeanParams& params) {
  const Plan plan = make_plan(params.map);
  ComponentMeanParams sized = params;
  sized.scratch = nullptr;
  return with_dtype("component_mean", params.dtype,
                    [&](auto t) { return MeanScratch<decltype(t)>(sized, plan).bytes; });
}

void component_mean(const ComponentMeanParams& params, Stream stream) {
  const Plan plan = make_plan(params.map);
  if (params.map.images == 0 || plan.image_pixels == 0) return;
  with_dtype("component_mean", params.dtype,
             [&](auto t) { launch_component_mean<decltype(t)>(params, plan, stream); });
}

}  // namespace segunc::cuda
