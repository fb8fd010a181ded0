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
struct MaximumPolicy {  // tuning
  static constexpr int kThreads = 256;
  // Of an image: a warp reads what they have found.
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

// bound < 2^log2_above(bound), and twice that is more.
template <class A>
SEGUNC_HD int log2_above(A bound) {
  int exponent = 0;
  std::frexp(bound, &exponent);
  return exponent;
}

// Values are added as integers, in units that are a power of two, such that the sum of an image
// stays within 2^62 for all values that are admitted: those of up to twice the bound, and none
// of more than four times it. log2_pixels: of an image, rounded up.
template <class A>
struct FixedPoint;

// A value is high * radix + low. Adding 1.5 * 2^23 to a float rounds it to an integer, which then
// is what their bits differ by: no conversion to 64 bits, of which GPUs do few in a clock.
template <>
struct FixedPoint<float> {
  static constexpr float kRounding = 12582912.f;
  static constexpr uint32_t kRoundingBits = 0x4b400000;
  static constexpr float kLargest = std::numeric_limits<float>::max();

  float limit;  // of values' magnitudes
  float highs;  // in 1: at most 2^22 in a value
  float radix;  // at most 2^23
  double unit;

  FixedPoint() = default;
  SEGUNC_HD FixedPoint(float bound, int log2_pixels) {
    const int log2_bound = log2_above(bound);
    const float largest = std::ldexp(1.f, log2_bound + 1);
    limit = largest < kInfinity<float> ? largest : kLargest;
    // Where 127 is less, all floats are whole numbers of units.
    const int log2_highs = smaller(21 - log2_bound, 127);
    const int log2_radix = smaller(23, 61 - log2_pixels - log2_bound - log2_highs);
    highs = std::ldexp(1.f, log2_highs);
    radix = std::ldexp(1.f, log2_radix);
    unit = std::ldexp(1.0, -log2_highs - log2_radix);
  }

  // Of at most 64 values, a row of a tile.
  struct Sum {
    uint32_t high, low;

    SEGUNC_DEVICE void add(const Sum& other) {
      high += other.high;
      low += other.low;
    }
    SEGUNC_DEVICE void subtract(const Sum& other) {
      high -= other.high;
      low -= other.low;
    }
    SEGUNC_DEVICE Sum of_lane_after(unsigned distance) const {
      return {shuffle_down(kFullMask, high, distance), shuffle_down(kFullMask, low, distance)};
    }
  };

  SEGUNC_DEVICE bool admits(float value) const { return std::fabs(value) <= limit; }
  // Of an admitted value.
  SEGUNC_DEVICE Sum of(float value) const {
    const float high = std::fma(value, highs, kRounding);
    const float rest = std::fma(value, highs, kRounding - high);
    const float low = std::fma(rest, radix, kRounding);
    return {bit_cast<uint32_t>(high) - kRoundingBits, bit_cast<uint32_t>(low) - kRoundingBits};
  }
  SEGUNC_DEVICE int64_t units(const Sum& sum) const {
    return int64_t(int32_t(sum.high)) * int32_t(radix) + int32_t(sum.low);
  }
  SEGUNC_DEVICE double value(double units) const { return units * unit; }
};

template <>
struct FixedPoint<double> {
  double limit;  // of units
  PowerOfTwo<double> units_of_one, unit;

  FixedPoint() = default;
  SEGUNC_HD FixedPoint(double bound, int log2_pixels) {
    const int exponent = 61 - log2_pixels - log2_above(bound);
    limit = std::ldexp(1.0, 62 - log2_pixels);
    units_of_one = PowerOfTwo<double>(exponent);
    unit = PowerOfTwo<double>(-exponent);
  }

  struct Sum {
    uint64_t units;

    SEGUNC_DEVICE void add(const Sum& other) { units += other.units; }
    SEGUNC_DEVICE void subtract(const Sum& other) { units -= other.units; }
    SEGUNC_DEVICE Sum of_lane_after(unsigned distance) const {
      return {shuffle_down(kFullMask, units, distance)};
    }
  };

  SEGUNC_DEVICE bool admits(double value) const {
    return std::fabs(units_of_one.times(value)) <= limit;
  }
  SEGUNC_DEVICE Sum of(double value) const {
    return {uint64_t(int64_t(std::llrint(units_of_one.times(value))))};
  }
  SEGUNC_DEVICE int64_t units(const Sum& sum) const { return int64_t(sum.units); }
  SEGUNC_DEVICE double value(double units) const { return unit.times(units); }
};

// One for all images, or what the device has found for each.
template <class A>
struct FixedPoints {
  FixedPoint<A> known;
  const FixedPoint<A>* found;  // [images], or null

  SEGUNC_DEVICE FixedPoint<A> of_image(int image) const {
    return found ? found[image] : known;  // report: rare
  }
};

template <class A>
SEGUNC_DEVICE A warp_maximum(A value) {
#pragma unroll
  for (unsigned distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value = larger(value, shuffle_xor(kFullMask, value, distance));
  }
  return value;
}

// ---- Bounds that nobody knows ----

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

// A warp an image.
template <class A>
__global__ void __launch_bounds__(kWarpSize)
    component_mean_bounds_kernel(const A* maxima, const int maxima_per_image, const int log2_pixels,
                                 FixedPoint<A>* found) {
  const int64_t first = int64_t(block_index()) * maxima_per_image;
  A largest = A(0);
  for (int i = int(lane()); i < maxima_per_image; i += int(kWarpSize)) {
    largest = larger(largest, maxima[first + i]);
  }
  largest = warp_maximum(largest);
  if (lane() == 0) found[block_index()] = FixedPoint<A>(largest, log2_pixels);
}

// ---- The parts' sums ----

// A count whose values are not all finite numbers within the bound.
constexpr uint32_t kNotFinite = 0x80000000u;

struct PartSums {
  int64_t* sum;     // by slot
  uint32_t* count;  // by slot
};

// Sums of the values of a span, from which those of the runs that start in it follow.
template <class A>
struct SpanSums {
  using Sum = typename FixedPoint<A>::Sum;

  unsigned refused;  // pixels whose values are not admitted, and not added
  Sum before_pixel[kSpan];
  Sum before_start;  // before the first start, all without one
  Sum onward;        // of the span and of what follows it up to the next start

  // A warp calls it as a whole.
  template <class T>
  SEGUNC_DEVICE SpanSums(const FixedPoint<A>& fixed_point, const Vector<T, kSpan>& values,
                         unsigned starts) {
    Vector<A, kSpan> value;
    bool admitted = true;
#pragma unroll
    for (int i = 0; i < kSpan; i++) {
      value[i] = to_accumulate(values[i]);
      admitted = fixed_point.admits(value[i]) && admitted;
    }
    refused = 0;
    if (!admitted) {
      // report: begin rare
#pragma unroll
      for (int i = 0; i < kSpan; i++) {
        if (fixed_point.admits(value[i])) continue;
        value[i] = A(0);
        refused |= 1u << i;
      }
      // report: end
    }
    Sum sum{};
#pragma unroll
    for (int i = 0; i < kSpan; i++) {
      before_pixel[i] = sum;
      sum.add(fixed_point.of(value[i]));
    }
    onward = sum;
    before_start = starts != 0 ? before(find_first_set(starts) - 1) : sum;

    // Of this lane's pixels and of those that follow, up to the next start or the end of the row.
    constexpr unsigned kLanesOfRow = kTileWidth / kSpan;
    static_assert(kLanesOfRow == 4);
    const unsigned ends = ballot(kFullMask, starts != 0) | 0x88888888u;
    const unsigned reach = unsigned(find_first_set(ends >> lane())) - 1;
    Sum up_to_start = before_start;
#pragma unroll
    for (unsigned distance = 1; distance < kLanesOfRow; distance *= 2) {
      const Sum next = up_to_start.of_lane_after(distance);
      if (distance <= reach) up_to_start.add(next);
    }
    const Sum after = up_to_start.of_lane_after(1);
    if (lane() % kLanesOfRow != kLanesOfRow - 1) onward.add(after);
  }

  // before_pixel[i], by choices: an index would take it from the registers to memory.
  SEGUNC_DEVICE Sum before(int i) const {
    Sum chosen[kSpan];
#pragma unroll
    for (int j = 0; j < kSpan; j++) chosen[j] = before_pixel[j];
    constexpr int kHalvings = 4;
    static_assert(kSpan == 1 << kHalvings);
#pragma unroll
    for (int halving = 0; halving < kHalvings; halving++) {
      const int half = kSpan / 2 >> halving;
#pragma unroll
      for (int j = 0; j < kSpan / 2; j++) {
        if (j < half && (i & half) != 0) chosen[j] = chosen[j + half];
      }
    }
    return chosen[0];
  }
};

// ---- component_mean ----

// What is added up of each run, and then at a part's first run of the whole part.
struct RunSums {
  uint32_t low[kTilePixels];
  int32_t high[kTilePixels];
  // Pixels in the lower half, those whose values are not admitted in the upper.
  unsigned count[kTilePixels];

  SEGUNC_DEVICE void set(int run, int64_t sum) {
    low[run] = uint32_t(sum);
    high[run] = int32_t(sum >> 32);
    count[run] = 0;
  }
  SEGUNC_DEVICE int64_t sum(int run) const {
    return int64_t(uint64_t(uint32_t(high[run])) << 32 | low[run]);
  }
  // GPUs have no atomic sum of 64 bits in shared memory. Whoever makes the lower half overflow
  // carries, in whichever order.
  SEGUNC_DEVICE void add(int run, int64_t sum) {
    const uint32_t added = uint32_t(sum);
    const uint32_t before = atomic_add(low + run, added);
    atomic_add(high + run, int32_t(sum >> 32) + int32_t(before + added < added));
  }
};

template <class Label, class T>
__global__ void __launch_bounds__(Policy::kTileThreads, kTileBlocks<Label, T>)
    component_mean_tiles_kernel(const LabelMap map, const Tiles tiles, const T* values,
                                const FixedPoints<accumulate_t<T>> fixed_points,
                                const Parts<int32_t> parts, const PartSums sums, const bool wide) {
  using A = accumulate_t<T>;
  struct Memory {
    TileForest forest;
    RunSums of_run;
  };
  SEGUNC_SHARED(memory, Memory);
  TileForest& forest = memory.forest;
  RunSums& of_run = memory.of_run;
  // report: hot 16
  const Tile tile = tile_at(tiles, int(block_index()));
  const Span span(tiles, tile, wide);
  const Vector<T, kSpan> value = span.load(values);  // report: vector 16
  const TileRuns<Label> runs(map, tiles, tile, span, parts, forest);
  const FixedPoint<A> fixed_point = fixed_points.of_image(tile.image);
  const SpanSums<A> in_span(fixed_point, value, runs.here.starts);
  auto before = in_span.before_start;
  runs.plant(forest, [&](int run, int next) {
    const auto up_to = next < kSpan ? in_span.before(next) : in_span.onward;
    auto sum = up_to;
    sum.subtract(before);
    before = up_to;
    of_run.set(run, fixed_point.units(sum));
  });
  barrier();
  runs.unite(forest, map.diagonal);
  // report: begin rare
  for (unsigned rest = in_span.refused; rest != 0; rest &= rest - 1) {
    atomic_add(of_run.count + runs.here.run_of(find_first_set(rest) - 1), 1u << 16);
  }
  // report: end
  barrier();
  runs.number_parts(map, tiles, tile, forest,
                    [&](int, int number) { make_root(parts.forest, tile.slot + number, 0); });
  barrier();
  runs.for_each_run([&](int run) {
    const int root = forest.root_of(run);
    parts.part_of_run[tile.slot + run] = uint16_t(forest.number_of(root));
    const int next = forest.first_pixel[run + 1] % kTileWidth;
    const int pixels = (next == 0 ? tile.width : next) - forest.first_pixel[run] % kTileWidth;
    if (root == run) {
      atomic_add(of_run.count + root, unsigned(pixels));
    } else {
      atomic_add(of_run.count + root, of_run.count[run] + unsigned(pixels));
      of_run.add(root, of_run.sum(run));
    }
  });
  barrier();
  runs.for_each_run([&](int run) {
    if (forest.root_of(run) != run || forest.number_of(run) == int(kNoPart)) return;
    const int slot = tile.slot + forest.number_of(run);
    const unsigned count = of_run.count[run];
    sums.sum[slot] = of_run.sum(run);
    sums.count[slot] = count >> 16 ? kNotFinite : count;
  });
  if (thread() == 0) parts.parts_of_tile[block_index()] = forest.parts;
  // report: end
}

// A warp a tile, a lane a part: a part's sum moves once, whatever its size.
__global__ void __launch_bounds__(Policy::kRootThreads)
    component_mean_roots_kernel(const Tiles tiles, const Parts<int32_t> parts,
                                const PartSums sums) {
  const int64_t index =
      (int64_t(block_index()) * Policy::kRootThreads + thread()) / int64_t(kWarpSize);
  if (index >= tiles.count) return;
  const int first = tile_at(tiles, int(index)).slot;
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
                                const FixedPoints<accumulate_t<T>> fixed_points, T* means,
                                const bool wide) {
  using A = accumulate_t<T>;
  SEGUNC_SHARED(mean, T[kTilePixels + 1]);
  // report: hot 16
  const Tile tile = tile_at(tiles, int(block_index()));
  const Span span(tiles, tile, wide);
  const PartsOfSpan<int32_t> part(parts, tile, span);
  const int tile_parts = parts.parts_of_tile[block_index()];
  // report: trips 0.3
#pragma unroll 1
  for (int i = int(thread()); i < tile_parts; i += Policy::kTileThreads) {
    const int root = parts.forest[tile.slot + i];
    const uint32_t count = sums.count[root];
    const double units = double(sums.sum[root]) / double(count);
    const FixedPoint<A> fixed_point = fixed_points.of_image(tile.image);
    mean[i] = from_accumulate<T>(count & kNotFinite ? kNaN<A> : A(fixed_point.value(units)));
  }
  if (thread() == 0) mean[kNoPart] = from_accumulate<T>(A(0));
  barrier();
  part.store_results(span, mean, means);
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
  A* maxima;  // [chunk's images, shares], or null where the bound is known
  int64_t shares;
  int log2_pixels = 0;  // of an image, rounded up
  FixedPoint<A>* found;
  FixedPoints<A> fixed_points{};
  int64_t bytes;

  MeanScratch(const ComponentMeanParams& p, const Plan& plan) {
    Scratch scratch(p.scratch);
    parts = take_parts<int32_t>(scratch, plan);
    sums = take_sums(scratch, plan);
    while (int64_t(1) << log2_pixels < plan.image_pixels) log2_pixels++;
    constexpr int64_t kShare = int64_t(MaximumPolicy::kThreads) * MaximumPolicy::kPixels;
    shares = knows_bound(p)
                 ? 0
                 : std::min(divide_up(plan.image_pixels, kShare), MaximumPolicy::kMaxBlocks);
    maxima = scratch.take<A>(plan.chunk_images * shares);
    found = scratch.take<FixedPoint<A>>(shares > 0 ? plan.chunk_images : 0);
    if (shares > 0) {
      fixed_points.found = found;
    } else {
      const double largest = double(std::numeric_limits<A>::max());
      fixed_points.known = FixedPoint<A>(A(std::min(p.bound, largest)), log2_pixels);
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
    const bool wide = has_whole_pieces(tiles, map.labels, map.label_bytes) &&
                      has_whole_pieces(tiles, values, sizeof(T)) &&
                      has_whole_pieces(tiles, means, sizeof(T));
    if (scratch.fixed_points.found) {
      launch(component_mean_maximum_kernel<T>, map.images * scratch.shares, MaximumPolicy::kThreads,
             0, stream, map, tiles, values, Divisor(scratch.shares), scratch.maxima);
      launch(component_mean_bounds_kernel<accumulate_t<T>>, map.images, kWarpSize, 0, stream,
             scratch.maxima, int(scratch.shares), scratch.log2_pixels, scratch.found);
    }
    with_label(map.label_bytes, [&](auto label) {
      launch(component_mean_tiles_kernel<decltype(label), T>, tiles.count, Policy::kTileThreads, 0,
             stream, map, tiles, values, scratch.fixed_points, scratch.parts, scratch.sums, wide);
    });
    launch_seams(map, tiles, scratch.parts, stream);
    launch(component_mean_roots_kernel, root_blocks(tiles), Policy::kRootThreads, 0, stream, tiles,
           scratch.parts, scratch.sums);
    launch(component_mean_means_kernel<T>, tiles.count, Policy::kTileThreads, 0, stream, tiles,
           scratch.parts, scratch.sums, scratch.fixed_points, means, wide);
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
