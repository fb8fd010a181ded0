// Predictive statistics on a GPU: a few maps from one read of S samples' logits.
//
// With p_s = softmax(z_s) and m = mean_s p_s, a pixel needs the running mean and the running sum of
// squared deviations of every class (Welford), and the sum of the samples' entropies
//   H[p_s] = log sum_c exp d_c - sum_c d_c exp d_c / sum_c exp d_c,   d = z - max z.
// Only when all samples are in, the predicted class, its std and H[m] are known.
//
//   planar_registers  a thread owns V neighbouring pixels and all of their at most 32 classes
//   staged            a tile a sample goes through shared memory; threads share a pixel's classes
//   interpolated      a thread a pixel of the results, blending its logits from their neighbours
//                     in memory; warps share the classes where these are many
//   strided           a thread a pixel, the logits read twice: whatever the others do not take,
//                     interpolated or not
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../../common/device/class_tile.h"
#include "../../common/device/integer.h"
#include "../../common/device/interpolation.h"
#include "../../common/device/warp_team.h"
#include "../../common/device/work.h"
#include "../../math/moments.h"
#include "kernels.h"

namespace segunc::cuda {
namespace {

using namespace device;

// ---- Launch policy ----

enum class Strategy { planar_registers, staged, interpolated, strided };

// Derived from occupancy and bytes in flight, not yet measured on a GPU. At 4.8 TB/s and about
// 0.8 us latency an H200 needs 4 MB in flight, 30 KB a multiprocessor. A thread keeps three numbers
// a class and pixel (exponential, mean, squared deviations), so V K is at most 32: with 19 classes
// these are 60 of 128 registers, 512 threads are resident and have 76 bytes each in flight, 39 KB.
// Fewer than 30 instructions an element keep fp32 at the bandwidth; bf16 is bound by them.
// Interpolated logits come from the caches: at four times the height and width 128 pixels of a row
// blend 33 logits of each of two rows, in fp32 2.5 bytes a logit of the results from the second
// level, and next to nothing from memory. Blending takes four loads, three interpolations and their
// addresses, about as many instructions as the rest: these are the limit. Of a stream it is the
// state, 16 bytes a logit of the results read and written.
struct Policy {
  static constexpr int kRegisterThreads = 128;      // of planar_registers and staged
  static constexpr int kInterpolatedThreads = 256;  // at most
  static constexpr int kStridedThreads = 128;
  static constexpr int kMapThreads = 256;  // where nothing but maps is kept
  static constexpr int64_t kMaxBlocks = at_scale(1 << 30);
  // Tiles do not span images: on smaller ones most of their threads would idle.
  static constexpr int64_t kMinTiledPixels = 32;
};

// Pixels a thread of planar_registers.
template <int K>
constexpr int kPlanarWidth = K <= 8    ? 4
                             : K <= 16 ? 2
                                       : 1;

using PlanarBuckets = std::integer_sequence<int, 4, 8, 16, 20, 24, 32>;
using NarrowBuckets = std::integer_sequence<int, 16, 20, 24, 32>;  // one pixel a thread
using StagedBuckets = std::integer_sequence<int, 16, 20, 24, 32>;
using InterpolatedBuckets = std::integer_sequence<int, 4, 8, 16, 20, 24, 32>;
// More classes than there are have little weight beside the state that is read and written.
using InterpolatedStateBuckets = std::integer_sequence<int, 16, 20, 24, 32>;

Strategy strategy_of(const ClassMap& map, const Interpolation& interpolation, Dtype dtype) {
  if (interpolation.used) {
    const bool in_warps = dtype != Dtype::f64 && make_warp_teams(map.classes) &&
                          result_pixels(map, interpolation) >= Policy::kMinTiledPixels;
    return in_warps ? Strategy::interpolated : Strategy::strided;
  }
  if (dtype == Dtype::f64 || map.layout == Layout::strided || map.classes > kMaxTileClasses ||
      map.pixels < Policy::kMinTiledPixels) {
    return Strategy::strided;
  }
  const bool registers = map.layout == Layout::planar && map.classes <= kMaxClassesOfThread;
  return registers ? Strategy::planar_registers : Strategy::staged;
}

// The samples' addresses: equally spaced, or one by one.
struct Samples {
  const char* base;
  int64_t stride;  // in bytes; 0 if they are not equally spaced
  int64_t count;
  const void* scattered[kMaxScatteredSamples];

  template <class T>
  SEGUNC_DEVICE const T* operator()(int64_t s) const {
    return static_cast<const T*>(stride || s == 0 ? static_cast<const void*>(base + s * stride)
                                                  : scattered[s]);
  }
};

Samples make_samples(const StatisticsParams& p) {
  Samples samples{};
  samples.count = p.count;
  samples.base = static_cast<const char*>(p.samples[0]);
  if (p.count > 1) samples.stride = static_cast<const char*>(p.samples[1]) - samples.base;
  for (int64_t s = 1; s < p.count && samples.stride; s++) {
    if (p.samples[s] != samples.base + s * samples.stride) samples.stride = 0;
  }
  if (!samples.stride) {
    if (p.count > kMaxScatteredSamples) {
      throw std::invalid_argument(
          "predictive_statistics: expected equally spaced samples or at most " +
          std::to_string(kMaxScatteredSamples) + ", got " + std::to_string(p.count));
    }
    std::copy(p.samples, p.samples + p.count, samples.scattered);
  }
  return samples;
}

// ---- A pixel ----

// 1 / sum times an exponential, rounded: fused into the sums of squares below, it would leave a
// residue of its rounding there, and equal samples would have a deviation.
SEGUNC_DEVICE float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
SEGUNC_DEVICE double rounded_product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// What a thread keeps of V pixels over the samples.
template <class A, int K, int V>
struct Moments {
  A mean[K][V], squared_deviations[K][V];
  A entropy_sum[V];
};

// Takes the logits of one more sample. inverse_count: 1 / samples, this one included.
template <class A, int K, int V, class Owner>
SEGUNC_DEVICE void add_sample(const Owner& owner, A inverse_count, A (&value)[K][V],
                              Moments<A, K, V>& moments) {
  A maximum[V], sum[V], dot[V], inverse_sum[V];
  largest_logit(owner, value, maximum);
#pragma unroll
  for (int j = 0; j < V; j++) sum[j] = dot[j] = A(0);
#pragma unroll
  for (int i = 0; i < K; i++) {
#pragma unroll
    for (int j = 0; j < V; j++) {
      const A d = value[i][j] - maximum[j];
      value[i][j] = math::exp_nonpositive(d);
      sum[j] += value[i][j];
      dot[j] += math::weighted_exponent(value[i][j], d);
    }
  }
#pragma unroll
  for (int j = 0; j < V; j++) {
    sum[j] = owner.sum(sum[j]);
    dot[j] = owner.sum(dot[j]);
    inverse_sum[j] = inverse(sum[j]);
    moments.entropy_sum[j] +=
        math::softmax_entropy(math::log_positive(sum[j]), dot[j], inverse_sum[j]);
  }
#pragma unroll
  for (int i = 0; i < K; i++) {
#pragma unroll
    for (int j = 0; j < V; j++) {
      math::accumulate_moments(rounded_product(value[i][j], inverse_sum[j]), inverse_count,
                               moments.mean[i][j], moments.squared_deviations[i][j]);
    }
  }
}

// The most probable class, the lowest one of equals; class 0 where the means are NaN.
template <class A>
struct Prediction {
  A mean, squared_deviations;
  int label;

  SEGUNC_DEVICE void consider(A other_mean, A other_squared_deviations, int other_label) {
    if (other_mean > mean || (other_mean == mean && other_label < label)) {
      mean = other_mean;
      squared_deviations = other_squared_deviations;
      label = other_label;
    }
  }
};

template <class A>
struct PixelMaps {
  A confidence, std, entropy, expected_entropy, mutual_information;
};

// variance: squared deviations by count - 1, which is 0 / 0 for one sample. entropy_sum has met
// every sample: where one is NaN, so is everything, while the entropy of NaN means is a sum of
// zeros.
template <class A>
SEGUNC_DEVICE PixelMaps<A> pixel_maps(A confidence, A squared_deviations, A entropy, A entropy_sum,
                                      A count) {
  const A expected = entropy_sum / count, information = entropy - expected;
  if (entropy_sum != entropy_sum) entropy = entropy_sum;
  return {confidence, std::sqrt(squared_deviations / (count - A(1))), entropy, expected,
          information < A(0) ? A(0) : information};
}

template <class A>
SEGUNC_DEVICE void store_maps(const StatisticsMaps& maps, int64_t index, int64_t label,
                              const PixelMaps<A>& pixel) {
  maps.prediction[index] = label;
  static_cast<A*>(maps.confidence)[index] = pixel.confidence;
  static_cast<A*>(maps.std)[index] = pixel.std;
  static_cast<A*>(maps.entropy)[index] = pixel.entropy;
  static_cast<A*>(maps.expected_entropy)[index] = pixel.expected_entropy;
  static_cast<A*>(maps.mutual_information)[index] = pixel.mutual_information;
}

// What the moments of pixel j come to; its prediction and maps are the same for the whole team.
template <class A, int K, int V, class Owner>
SEGUNC_DEVICE PixelMaps<A> finish_pixel(const Owner& owner, const Moments<A, K, V>& moments, int j,
                                        A count, int& label) {
  Prediction<A> best{moments.mean[0][j], moments.squared_deviations[0][j], owner.class_of(0)};
  A entropy = math::entropy_term(best.mean);
#pragma unroll
  for (int i = 1; i < K; i++) {
    if (i < owner.owned) {
      const A mean = moments.mean[i][j];
      entropy += math::entropy_term(mean);
      best.consider(mean, moments.squared_deviations[i][j], owner.class_of(i));
    }
  }
  entropy = owner.sum(entropy);
  owner.choose(best);
  label = best.label;
  return pixel_maps(best.mean, best.squared_deviations, entropy, moments.entropy_sum[j], count);
}

// Owners that can also agree on a prediction.
struct Pixel : Alone {
  using Alone::Alone;
  SEGUNC_DEVICE bool leads() const { return true; }
  template <class A>
  SEGUNC_DEVICE void choose(Prediction<A>&) const {}
};
struct PixelWarps : WarpTeam {
  using WarpTeam::WarpTeam;
  template <class A>
  SEGUNC_DEVICE void choose(Prediction<A>& best) const {
    if (size == 1) return;
    tell(best.mean);
    int winner = 0;
    best.mean = of<A>(0);
    for (int i = 1; i < size; i++) {  // labels increase with parts
      const A mean = of<A>(i);
      if (mean > best.mean) {
        best.mean = mean;
        winner = i;
      }
    }
    tell(best.squared_deviations);
    best.squared_deviations = of<A>(winner);
    tell(best.label);
    best.label = of<int>(winner);
  }
};
struct PixelTeam : Team {
  using Team::Team;
  template <class A>
  SEGUNC_DEVICE void choose(Prediction<A>& best) const {
    for (int distance = size / 2; distance > 0; distance /= 2) {
      const A mean = shuffle_xor(kFullMask, best.mean, distance);
      const A squared_deviations = shuffle_xor(kFullMask, best.squared_deviations, distance);
      const int label = shuffle_xor(kFullMask, best.label, distance);
      best.consider(mean, squared_deviations, label);
    }
  }
};

template <class A, int K, int V>
SEGUNC_DEVICE void clear(Moments<A, K, V>& moments) {
#pragma unroll
  for (int j = 0; j < V; j++) moments.entropy_sum[j] = A(0);
#pragma unroll
  for (int i = 0; i < K; i++) {
#pragma unroll
    for (int j = 0; j < V; j++) moments.mean[i][j] = moments.squared_deviations[i][j] = A(0);
  }
}

// The logits of V pixels of a planar map; classes beyond the last have no mass.
template <int K, int V, class T, class A>
SEGUNC_DEVICE void load_logits(const T* pixel, int64_t class_stride, int classes,
                               A (&value)[K][V]) {
  Vector<T, V> absent, raw[K];
#pragma unroll
  for (int j = 0; j < V; j++) absent[j] = from_accumulate<T>(-kInfinity<A>);
#pragma unroll
  for (int c = 0; c < K; c++) {
    raw[c] = c < classes ? load_vector<V>(pixel + c * class_stride) : absent;
  }
#pragma unroll
  for (int c = 0; c < K; c++) {
#pragma unroll
    for (int j = 0; j < V; j++) value[c][j] = to_accumulate(raw[c][j]);
  }
}

// Resident blocks that the compiler has to leave registers for.
template <int Values>
constexpr int kResidentBlocks = Values > 32   ? 2
                                : Values > 24 ? 3
                                              : 4;
// The same of blocks of kInterpolatedThreads.
template <int Values>
constexpr int kInterpolatedBlocks = Values > 24  ? 1
                                    : Values > 8 ? 2
                                    : Values > 4 ? 3
                                                 : 4;

// ---- predictive_statistics, planar_registers ----

template <class T, int K, int V>
__global__ void __launch_bounds__(Policy::kRegisterThreads, kResidentBlocks<K * V>)
    statistics_planar_registers_kernel(const Samples samples, const ClassMap map,
                                       const StatisticsMaps maps, accumulate_t<T>* mean,
                                       const Work work) {
  using A = accumulate_t<T>;
  const Pixel owner(int(map.classes));
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t start;
    const int64_t image = work.tiles_per_image.divide(tile, start);
    start = start * work.tile + thread() * V;
    if (start >= map.pixels) continue;
    const int64_t offset = image * map.image_stride + start;
    Moments<A, K, V> moments;
    clear(moments);
#pragma unroll 1
    for (int64_t s = 0; s < samples.count; s++) {
      A value[K][V];
      load_logits(samples.template operator()<T>(s) + offset, rematerialized(map.class_stride),
                  owner.owned, value);
      add_sample(owner, inverse(A(s + 1)), value, moments);
    }
    const int64_t index = image * map.pixels + start;
#pragma unroll
    for (int j = 0; j < V; j++) {
      int label;
      const PixelMaps<A> pixel = finish_pixel(owner, moments, j, A(samples.count), label);
      store_maps(maps, index + j, label, pixel);
    }
    if (mean) {
      A* mean_of_pixel = mean + image * map.classes * map.pixels + start;
      const int64_t class_stride = rematerialized(map.pixels);
#pragma unroll
      for (int c = 0; c < K; c++) {
        if (c < owner.owned) {
          Vector<A, V> result;
#pragma unroll
          for (int j = 0; j < V; j++) result[j] = moments.mean[c][j];
          store_vector(mean_of_pixel + c * class_stride, result);
        }
      }
    }
  }
}

// ---- predictive_statistics, staged ----

template <class T, int K>
__global__ void __launch_bounds__(Policy::kRegisterThreads, kResidentBlocks<K>)
    statistics_staged_kernel(const Samples samples, const ClassMap map, const StatisticsMaps maps,
                             accumulate_t<T>* mean, const Work work, const ClassTile shape) {
  using A = accumulate_t<T>;
  T* tile_data = dynamic_shared<T>();
  const int pixel = int(thread()) >> shape.team_shift;
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t start;
    const int64_t image = work.tiles_per_image.divide(tile, start);
    start *= work.tile;
    const int count = tile_pixels(work, map.pixels - start);
    const int64_t offset = image * map.image_stride + start * map.stride[2];
    const bool inside = pixel < count;
    const PixelTeam owner(shape.classes, shape.team_shift,
                          rematerialized(int(thread()) & (shape.team - 1)));
    const T* const mine = tile_data + pixel * shape.pixel_pitch + owner.part * shape.class_pitch;
    Moments<A, K, 1> moments;
    clear(moments);
#pragma unroll 1
    for (int64_t s = 0; s < samples.count; s++) {
      barrier();  // the sample before may still be in use
      load_tile(shape, map, count, samples.template operator()<T>(s) + offset, tile_data);
      barrier();
      const int step = rematerialized(shape.class_pitch << shape.team_shift);
      A value[K][1];
#pragma unroll
      for (int i = 0; i < K; i++) {
        value[i][0] = inside && i < owner.owned ? to_accumulate(mine[i * step]) : -kInfinity<A>;
      }
      add_sample(owner, inverse(A(s + 1)), value, moments);
    }
    int label;
    const PixelMaps<A> result = finish_pixel(owner, moments, 0, A(samples.count), label);
    const int64_t in_image = start + pixel;
    if (inside && owner.part == 0) {
      store_maps(maps, image * map.pixels + in_image, label, result);
    }
    if (inside && mean) {
      A* mean_of_pixel = mean + image * map.classes * map.pixels + in_image;
      const int64_t class_stride = rematerialized(map.pixels);
#pragma unroll
      for (int i = 0; i < K; i++) {
        if (i < owner.owned) mean_of_pixel[owner.class_of(i) * class_stride] = moments.mean[i][0];
      }
    }
  }
}

// ---- predictive_statistics, interpolated ----

template <class T, int K>
__global__ void __launch_bounds__(Policy::kInterpolatedThreads, kInterpolatedBlocks<K>)
    statistics_interpolated_kernel(const Samples samples,
                                   const InterpolatedPixels<accumulate_t<T>> pixels,
                                   const StatisticsMaps maps, accumulate_t<T>* mean,
                                   const Work work, const WarpTeams teams) {
  using A = accumulate_t<T>;
  SEGUNC_SHARED(words, WarpTeam::Words);
  const PixelWarps owner(teams, words);
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t pixel;
    const int64_t image = work.tiles_per_image.divide(tile, pixel);
    pixel = pixel * work.tile + owner.pixel();
    const bool inside = pixel < pixels.count;
    const auto blended = pixels.at(image, pixel);
    const int64_t class_stride = pixels.map.class_stride, offset = owner.first * class_stride;
    Moments<A, K, 1> moments;
    clear(moments);
#pragma unroll 1
    for (int64_t s = 0; s < samples.count; s++) {
      A value[K][1];
      load_logits(blended, samples.template operator()<T>(s) + offset, rematerialized(class_stride),
                  inside ? owner.owned : 0, value);
      add_sample(owner, inverse(A(s + 1)), value, moments);
    }
    int label;
    const PixelMaps<A> result = finish_pixel(owner, moments, 0, A(samples.count), label);
    if (inside && owner.leads()) store_maps(maps, image * pixels.count + pixel, label, result);
    if (inside && mean) {
      A* const mean_of_pixel = mean + (image * teams.classes + owner.first) * pixels.count + pixel;
      const int64_t stride = rematerialized(pixels.count);
#pragma unroll
      for (int i = 0; i < K; i++) {
        if (i < owner.owned) mean_of_pixel[i * stride] = moments.mean[i][0];
      }
    }
  }
}

// ---- predictive_statistics, strided ----

// First every sample's maximum and sum, kept in shared memory; then class by class the mean over
// the samples; at last the deviations of the predicted class, about a mean that is known.
template <class T, class Pixels>
__global__ void __launch_bounds__(Policy::kStridedThreads, 4)
    statistics_strided_kernel(const Samples samples, const Pixels pixels, const int64_t classes,
                              const int64_t class_stride, const StatisticsMaps maps,
                              accumulate_t<T>* mean, const Work work,
                              const Divisor pixels_of_image) {
  using A = accumulate_t<T>;
  // [2, S, threads]: no thread reads another's.
  A* maximum = dynamic_shared<A>() + thread();
  A* inverse_sum = maximum + samples.count * block_size();
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    if (index >= work.pixels) continue;
    int64_t in_image;
    const int64_t image = pixels_of_image.divide(index, in_image);
    const auto pixel = pixels.at(image, in_image);
    const auto logit = [&](int64_t s, int64_t c) {
      return pixel.logit(samples.template operator()<T>(s) + c * class_stride);
    };
    A entropy_sum = 0;
    for (int64_t s = 0; s < samples.count; s++) {
      const auto softmax = online_softmax<A>(classes, [&](int64_t c) { return logit(s, c); });
      maximum[s * block_size()] = softmax.maximum;
      inverse_sum[s * block_size()] = inverse(softmax.sum);
      entropy_sum += math::log_positive(softmax.sum);
    }
    const A inverse_count = inverse(A(samples.count));
    Prediction<A> best{A(0), A(0), 0};
    A entropy = 0;
    for (int64_t c = 0; c < classes; c++) {
      A sum = 0;
#pragma unroll 2
      for (int64_t s = 0; s < samples.count; s++) {
        const int64_t slot = s * block_size();
        const A d = logit(s, c) - maximum[slot];
        const A exponential = math::exp_nonpositive(d);
        sum += rounded_product(exponential, inverse_sum[slot]);
        entropy_sum -= math::weighted_exponent(exponential, d) * inverse_sum[slot];
      }
      const A class_mean = sum * inverse_count;
      entropy += math::entropy_term(class_mean);
      if (c == 0) best.mean = class_mean;
      best.consider(class_mean, A(0), int(c));
      if (mean) mean[(image * classes + c) * pixels.count + in_image] = class_mean;
    }
    for (int64_t s = 0; s < samples.count; s++) {
      const int64_t slot = s * block_size();
      const A exponential = math::exp_nonpositive(logit(s, best.label) - maximum[slot]);
      const A deviation = rounded_product(exponential, inverse_sum[slot]) - best.mean;
      best.squared_deviations += deviation * deviation;
    }
    store_maps(
        maps, index, best.label,
        pixel_maps(best.mean, best.squared_deviations, entropy, entropy_sum, A(samples.count)));
  }
}

// ---- accumulate ----

// The state is planar and contiguous whatever the logits are.
template <class A>
struct State {
  A* mean;
  A* squared_deviations;
  A* entropy_sum;
  A inverse_count;
  bool first;  // there is nothing to read yet
};

// index: of the pixel; first: of the owner's first class in the state.
template <class A, int K, class Owner>
SEGUNC_DEVICE void add_to_state(const Owner& owner, const State<A>& state, int64_t index,
                                int64_t first, int64_t class_stride, bool inside,
                                A (&value)[K][1]) {
  Moments<A, K, 1> moments;
  clear(moments);
  const bool reads = inside && !state.first;
  if (reads) {
    if (owner.leads()) moments.entropy_sum[0] = state.entropy_sum[index];
#pragma unroll
    for (int i = 0; i < K; i++) {
      if (i < owner.owned) {
        moments.mean[i][0] = state.mean[first + i * class_stride];
        moments.squared_deviations[i][0] = state.squared_deviations[first + i * class_stride];
      }
    }
  }
  add_sample(owner, state.inverse_count, value, moments);
  if (!inside) return;
  if (owner.leads()) state.entropy_sum[index] = moments.entropy_sum[0];
#pragma unroll
  for (int i = 0; i < K; i++) {
    if (i < owner.owned) {
      state.mean[first + i * class_stride] = moments.mean[i][0];
      state.squared_deviations[first + i * class_stride] = moments.squared_deviations[i][0];
    }
  }
}

template <class T, int K>
__global__ void __launch_bounds__(Policy::kRegisterThreads, kResidentBlocks<K + 8>)
    accumulate_planar_registers_kernel(const T* logits, const ClassMap map,
                                       const State<accumulate_t<T>> state, const Work work) {
  using A = accumulate_t<T>;
  const Pixel owner(int(map.classes));
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t pixel;
    const int64_t image = work.tiles_per_image.divide(tile, pixel);
    pixel = pixel * work.tile + thread();
    if (pixel >= map.pixels) continue;
    A value[K][1];
    load_logits(logits + image * map.image_stride + pixel, rematerialized(map.class_stride),
                owner.owned, value);
    add_to_state(owner, state, image * map.pixels + pixel, image * map.classes * map.pixels + pixel,
                 rematerialized(map.pixels), true, value);
  }
}

template <class T, int K>
__global__ void __launch_bounds__(Policy::kInterpolatedThreads, kInterpolatedBlocks<K>)
    accumulate_interpolated_kernel(const T* logits,
                                   const InterpolatedPixels<accumulate_t<T>> pixels,
                                   const State<accumulate_t<T>> state, const Work work,
                                   const WarpTeams teams) {
  using A = accumulate_t<T>;
  SEGUNC_SHARED(words, WarpTeam::Words);
  const PixelWarps owner(teams, words);
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t pixel;
    const int64_t image = work.tiles_per_image.divide(tile, pixel);
    pixel = pixel * work.tile + owner.pixel();
    const bool inside = pixel < pixels.count;
    A value[K][1];
    load_logits(pixels.at(image, pixel), logits + owner.first * pixels.map.class_stride,
                rematerialized(pixels.map.class_stride), inside ? owner.owned : 0, value);
    add_to_state(owner, state, image * pixels.count + pixel,
                 (image * teams.classes + owner.first) * pixels.count + pixel,
                 rematerialized(pixels.count), inside, value);
  }
}

template <class T, class Pixels>
__global__ void __launch_bounds__(Policy::kMapThreads, 2)
    accumulate_strided_kernel(const T* logits, const Pixels pixels, const int64_t classes,
                              const int64_t class_stride, const State<accumulate_t<T>> state,
                              const Work work, const Divisor pixels_of_image) {
  using A = accumulate_t<T>;
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    if (index >= work.pixels) continue;
    int64_t in_image;
    const int64_t image = pixels_of_image.divide(index, in_image);
    const auto pixel = pixels.at(image, in_image);
    const auto logit = [&](int64_t c) { return pixel.logit(logits + c * class_stride); };
    const int64_t first = image * classes * pixels.count + in_image;
    const auto softmax = online_softmax<A>(classes, logit);
    const A inverse_sum = inverse(softmax.sum);
    A dot = 0;
#pragma unroll 4
    for (int64_t c = 0; c < classes; c++) {
      const int64_t at = first + c * pixels.count;
      A mean = 0, squared_deviations = 0;
      if (!state.first) {
        mean = state.mean[at];
        squared_deviations = state.squared_deviations[at];
      }
      const A d = logit(c) - softmax.maximum;
      const A exponential = math::exp_nonpositive(d);
      dot += math::weighted_exponent(exponential, d);
      math::accumulate_moments(rounded_product(exponential, inverse_sum), state.inverse_count, mean,
                               squared_deviations);
      state.mean[at] = mean;
      state.squared_deviations[at] = squared_deviations;
    }
    const A before = state.first ? A(0) : state.entropy_sum[index];
    state.entropy_sum[index] =
        before + math::softmax_entropy(math::log_positive(softmax.sum), dot, inverse_sum);
  }
}

// ---- finalize ----

// Reads the means, and the squared deviations of the predicted class alone.
template <class A>
__global__ void __launch_bounds__(Policy::kMapThreads)
    finalize_kernel(const FinalizeParams p, const Work work, const Divisor pixels_of_image) {
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    if (index >= work.pixels) continue;
    int64_t pixel;
    const int64_t image = pixels_of_image.divide(index, pixel);
    const int64_t first = image * p.classes * p.pixels + pixel;
    const A* mean = static_cast<const A*>(p.mean) + first;
    Prediction<A> best{mean[0], A(0), 0};
    A entropy = 0;
#pragma unroll 8
    for (int64_t c = 0; c < p.classes; c++) {
      const A class_mean = mean[c * p.pixels];
      entropy += math::entropy_term(class_mean);
      best.consider(class_mean, A(0), int(c));
    }
    best.squared_deviations =
        static_cast<const A*>(p.squared_deviations)[first + best.label * p.pixels];
    store_maps(p.maps, index, best.label,
               pixel_maps(best.mean, best.squared_deviations, entropy,
                          static_cast<const A*>(p.entropy_sum)[index], A(p.count)));
  }
}

// ---- launch and dispatch ----

[[noreturn]] void no_kernel(const char* name, Dtype dtype, int64_t classes) {
  static const char* const kDtypes[] = {"float64", "float32", "bfloat16", "float16"};
  throw std::runtime_error(std::string("no kernel ") + name + " of " + kDtypes[int(dtype)] +
                           " and " + std::to_string(classes) + " classes");
}

// True if every V neighbouring pixels are one aligned vector in every sample and in the means.
template <class T, int V>
bool fits_vectors(const StatisticsParams& p) {
  const auto aligned = [](const void* data, size_t element_bytes) {
    return reinterpret_cast<uintptr_t>(data) % std::min<size_t>(16, V * element_bytes) == 0;
  };
  bool fits = p.map.pixels % V == 0 && p.map.class_stride % V == 0 && p.map.image_stride % V == 0 &&
              aligned(p.mean, sizeof(accumulate_t<T>));
  for (int64_t s = 0; s < p.count; s++) fits = fits && aligned(p.samples[s], sizeof(T));
  return fits;
}

template <class T, int K, int V>
void launch_statistics_planar_registers(const StatisticsParams& p, Stream stream) {
  const Work work = make_work(p.map.images, p.map.pixels, int64_t(Policy::kRegisterThreads) * V,
                              Policy::kMaxBlocks);
  launch(statistics_planar_registers_kernel<T, K, V>, work.blocks, Policy::kRegisterThreads, 0,
         stream, make_samples(p), p.map, p.maps, static_cast<accumulate_t<T>*>(p.mean), work);
}

template <class T, int K>
void launch_statistics_staged(const StatisticsParams& p, Stream stream) {
  bool aligned = true;
  for (int64_t s = 0; s < p.count; s++) {
    aligned = aligned && vectors_are_aligned(p.samples[s], p.map, sizeof(T));
  }
  const ClassTile tile = make_class_tile(p.map, sizeof(T), Policy::kRegisterThreads, aligned);
  const Work work = make_work(p.map.images, p.map.pixels, tile.pixels, Policy::kMaxBlocks);
  launch(statistics_staged_kernel<T, K>, work.blocks, Policy::kRegisterThreads, tile.shared_bytes,
         stream, make_samples(p), p.map, p.maps, static_cast<accumulate_t<T>*>(p.mean), work, tile);
}

template <class T>
void launch_statistics_strided(const StatisticsParams& p, Stream stream) {
  using A = accumulate_t<T>;
  // With many samples a block has fewer threads, so that what they keep of each fits.
  const int64_t bytes = 2 * int64_t(sizeof(A)) * p.count;
  const int64_t most = int64_t(kMaxSharedBytes) / bytes;
  if (most == 0) {
    throw std::invalid_argument("predictive_statistics: expected at most " +
                                std::to_string(kMaxSharedBytes / (2 * sizeof(A))) +
                                " samples of this layout, got " + std::to_string(p.count));
  }
  const int64_t threads = std::min<int64_t>(most >= kWarpSize ? most / kWarpSize * kWarpSize : most,
                                            Policy::kStridedThreads);
  with_pixels<A>(p, [&](auto pixels) {
    const Work work = make_work(1, p.map.images * pixels.count, threads, Policy::kMaxBlocks);
    launch(statistics_strided_kernel<T, decltype(pixels)>, work.blocks, unsigned(threads),
           size_t(threads * bytes), stream, make_samples(p), pixels, p.map.classes,
           p.map.class_stride, p.maps, static_cast<A*>(p.mean), work, Divisor(pixels.count));
  });
}

// Launches over tiles of pixels whose classes warps share.
template <class Buckets, class Params, class Launch>
bool with_warp_teams(const Params& p, Buckets buckets, Launch launch_bucket) {
  const std::optional<WarpTeams> teams = make_warp_teams(p.map.classes);
  const Work work = make_work(p.map.images, result_pixels(p.map, p.interpolation), teams->pixels(),
                              Policy::kMaxBlocks);
  return with_bucket(teams->classes_of_warp, buckets,
                     [&](auto bucket) { launch_bucket(bucket, work, *teams); });
}

template <class T>
void launch_statistics(const StatisticsParams& p, Stream stream) {
  const Strategy strategy = strategy_of(p.map, p.interpolation, p.dtype);
  bool done = false;
  if (strategy == Strategy::strided) {
    launch_statistics_strided<T>(p, stream);
    done = true;
  } else if constexpr (!std::is_same_v<T, double>) {
    if (strategy == Strategy::planar_registers) {
      done = with_bucket(p.map.classes, PlanarBuckets(), [&](auto bucket) {
        constexpr int kWidth = kPlanarWidth<bucket()>;
        if (kWidth > 1 && fits_vectors<T, kWidth>(p)) {
          launch_statistics_planar_registers<T, bucket(), kWidth>(p, stream);
        } else {
          with_bucket(p.map.classes, NarrowBuckets(), [&](auto narrow) {
            launch_statistics_planar_registers<T, narrow(), 1>(p, stream);
          });
        }
      });
    } else if (strategy == Strategy::interpolated) {
      const InterpolatedPixels<float> pixels(p.map, p.interpolation);
      done = with_warp_teams(p, InterpolatedBuckets(),
                             [&](auto bucket, const Work& work, const WarpTeams& teams) {
                               launch(statistics_interpolated_kernel<T, bucket()>, work.blocks,
                                      teams.threads(), 0, stream, make_samples(p), pixels, p.maps,
                                      static_cast<float*>(p.mean), work, teams);
                             });
    } else {
      int64_t team = 1;
      while (p.map.classes > kMaxClassesOfThread * team) team *= 2;
      done = with_bucket((p.map.classes + team - 1) / team, StagedBuckets(),
                         [&](auto bucket) { launch_statistics_staged<T, bucket()>(p, stream); });
    }
  }
  if (!done) no_kernel("predictive_statistics", p.dtype, p.map.classes);
}

template <class T>
void launch_accumulate(const AccumulateParams& p, Stream stream) {
  using A = accumulate_t<T>;
  const T* logits = static_cast<const T*>(p.sample);
  const State<A> state{static_cast<A*>(p.mean), static_cast<A*>(p.squared_deviations),
                       static_cast<A*>(p.entropy_sum), A(1.0 / double(p.count)), p.count == 1};
  bool done = false;
  if constexpr (!std::is_same_v<T, double>) {
    const Strategy strategy = strategy_of(p.map, p.interpolation, p.dtype);
    if (strategy == Strategy::interpolated) {
      const InterpolatedPixels<float> pixels(p.map, p.interpolation);
      done =
          with_warp_teams(p, InterpolatedStateBuckets(),
                          [&](auto bucket, const Work& work, const WarpTeams& teams) {
                            launch(accumulate_interpolated_kernel<T, bucket()>, work.blocks,
                                   teams.threads(), 0, stream, logits, pixels, state, work, teams);
                          });
    } else if (strategy == Strategy::planar_registers) {
      const Work work =
          make_work(p.map.images, p.map.pixels, Policy::kRegisterThreads, Policy::kMaxBlocks);
      done = with_bucket(p.map.classes, NarrowBuckets(), [&](auto bucket) {
        launch(accumulate_planar_registers_kernel<T, bucket()>, work.blocks,
               Policy::kRegisterThreads, 0, stream, logits, p.map, state, work);
      });
    }
  }
  if (!done) {
    with_pixels<A>(p, [&](auto pixels) {
      const Work work =
          make_work(1, p.map.images * pixels.count, Policy::kMapThreads, Policy::kMaxBlocks);
      launch(accumulate_strided_kernel<T, decltype(pixels)>, work.blocks, Policy::kMapThreads, 0,
             stream, logits, pixels, p.map.classes, p.map.class_stride, state, work,
             Divisor(pixels.count));
    });
  }
}

template <class A>
void launch_finalize(const FinalizeParams& p, Stream stream) {
  const Work work = make_work(1, p.images * p.pixels, Policy::kMapThreads, Policy::kMaxBlocks);
  launch(finalize_kernel<A>, work.blocks, Policy::kMapThreads, 0, stream, p, work,
         Divisor(p.pixels));
}

bool is_empty(int64_t images, int64_t classes, int64_t pixels) {
  return images == 0 || classes == 0 || pixels == 0;
}

}  // namespace

void predictive_statistics(const StatisticsParams& params, Stream stream) {
  if (params.count < 1) {
    throw std::invalid_argument("predictive_statistics: expected at least one sample, got none");
  }
  if (is_empty(params.map.images, params.map.classes, params.map.pixels)) return;
  with_dtype("predictive_statistics", params.dtype,
             [&](auto t) { launch_statistics<decltype(t)>(params, stream); });
}

void accumulate(const AccumulateParams& params, Stream stream) {
  if (is_empty(params.map.images, params.map.classes, params.map.pixels)) return;
  with_dtype("accumulate", params.dtype,
             [&](auto t) { launch_accumulate<decltype(t)>(params, stream); });
}

void finalize(const FinalizeParams& params, Stream stream) {
  if (is_empty(params.images, params.classes, params.pixels)) return;
  if (params.dtype == Dtype::f64) {
    launch_finalize<double>(params, stream);
  } else {
    launch_finalize<float>(params, stream);
  }
}

}  // namespace segunc::cuda
