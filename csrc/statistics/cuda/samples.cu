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
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "../../common/device/class_tile.h"
#include "../../common/device/integer.h"
#include "../../common/device/interpolation.h"
#include "../../common/device/warp_team.h"
#include "../../common/device/work.h"
#include "kernels.h"
#include "pixel.h"
#include "policy.h"

namespace segunc::cuda {
namespace {

using namespace statistics;

// ---- Launch policy ----

constexpr int kStridedThreads = 128;  // tuning

// Instructions a logit on sm_90.
// report: budget statistics_planar_registers_kernel<float, *, 19, 19* 18
// report: budget statistics_planar_registers_kernel<bfloat16, *, 19, 19* 18

// Pixels a thread of planar_registers, where they are aligned vectors: those of 16 bits need more
// instructions for a byte, and with them more resident threads.
template <class T, int K>
constexpr int kPlanarWidth = K <= 4                                  ? 4  // tuning
                             : K <= 8 || (K <= 16 && sizeof(T) == 4) ? 2
                                                                     : 1;

// Resident blocks that the compiler has to leave registers for, as many as it can without spilling:
// 4 let it use 128, 5 96 and 6 80.
template <int Values>
constexpr int kPlanarBlocks = Values > 24   ? 4  // tuning
                              : Values > 20 ? 5
                                            : 6;

// Classes that a thread has registers for, and numbers of classes that have kernels of their own:
// the labels of Cityscapes and of Pascal VOC.
using PlanarBuckets = std::integer_sequence<int, 4, 8, 12, 16, 20, 24, 28, 32>;  // tuning
using ExactClasses = std::integer_sequence<int, 19, 21>;                         // tuning
using StagedBuckets = std::integer_sequence<int, 16, 20, 24, 32>;                // tuning
using InterpolatedBuckets = std::integer_sequence<int, 4, 8, 16, 20, 24, 32>;    // tuning

// ---- Samples ----

// Where samples lie, in bytes from the first: equally spaced, or one by one.
struct Samples {
  const char* first;
  int64_t stride;  // 0 if they are not equally spaced
  int64_t count;
  int64_t scattered[kMaxScatteredSamples];

  // What lies at `data` in the first sample, in sample s.
  template <class T>
  SEGUNC_DEVICE const T* of(int s, const T* data) const {
    const int64_t distance = stride ? s * stride : scattered[s];
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(data) + distance);
  }
  template <class T>
  SEGUNC_DEVICE const T* data() const {
    return reinterpret_cast<const T*>(first);
  }
};

Samples make_samples(const StatisticsParams& p) {
  Samples samples{};
  const auto distance = [&](int64_t s) {
    return static_cast<const char*>(p.samples[s]) - samples.first;
  };
  samples.first = static_cast<const char*>(p.samples[0]);
  samples.count = p.count;
  if (p.count > 1) samples.stride = distance(1);
  for (int64_t s = 1; s < p.count && samples.stride; s++) {
    if (distance(s) != s * samples.stride) samples.stride = 0;
  }
  if (!samples.stride) {
    if (p.count > kMaxScatteredSamples) {
      throw std::invalid_argument(
          "predictive_statistics: expected equally spaced samples or at most " +
          std::to_string(kMaxScatteredSamples) + ", got " + std::to_string(p.count));
    }
    for (int64_t s = 0; s < p.count; s++) samples.scattered[s] = distance(s);
  }
  return samples;
}

// ---- predictive_statistics, planar_registers ----

// What the compiler knows of a launch: the pixels of a thread, the registers for their classes and
// how many of these are always in use.
template <int Pixels, int Classes, int Least>
struct SampledVariant {
  static constexpr int kPixels = Pixels, kClasses = Classes, kLeast = Least;
};

template <class T, class Variant>
__global__ void __launch_bounds__(Policy::kRegisterThreads,
                                  kPlanarBlocks<Variant::kClasses * Variant::kPixels>)
    statistics_planar_registers_kernel(const Samples samples, const ClassMap map,
                                       const StatisticsMaps maps, float* mean, const Work work,
                                       const InverseCounts<float> inverse) {
  constexpr int K = Variant::kClasses, V = Variant::kPixels;
  const Pixel owner(int(map.classes));
  // report: hot C * Pixels * S
  for (TileWalk walk(work); walk.image < map.images; walk.advance(work)) {
    const int64_t first = int64_t(walk.tile) * (Policy::kRegisterThreads * V) + int(thread()) * V;
    if (first >= map.pixels) continue;
    // Opaque to the compiler, which would compute it anew for every sample.
    const T* const pixel =
        samples.data<T>() + rematerialized(walk.image * map.image_stride + first);
    Moments<K, V> moments;
    clear(moments);
#pragma unroll 1
    // report: trips S
    for (int s = 0; s < int(samples.count); s++) {
      float value[K][V];
      // report: vector min(16, sizeof(T) * Pixels)
      load_logits<Variant::kLeast>(samples.of(s, pixel), rematerialized(unsigned(map.class_stride)),
                                   owner.owned, value);
      add_sample(owner, inverse_of_count(s + 1), value, moments);
    }
    const int64_t index = walk.image * map.pixels + first;
#pragma unroll
    for (int j = 0; j < V; j++) {
      int label;
      const PixelMaps<float> result = finish_pixel(owner, moments, j, inverse, label);
      store_maps(maps, index + j, label, result);
    }
    if (!mean) continue;
    float* mean_of_pixel = mean + walk.image * map.classes * map.pixels + first;
    const int64_t class_stride = rematerialized(map.pixels);
#pragma unroll
    for (int c = 0; c < K; c++) {
      if (c < Variant::kLeast || c < owner.owned) {
        Vector<float, V> result;
#pragma unroll
        for (int j = 0; j < V; j++) result[j] = moments.mean[c][j];
        store_vector(mean_of_pixel + c * class_stride, result);
      }
    }
  }
  // report: end
}

// ---- predictive_statistics, staged ----

template <class T, int K>
__global__ void __launch_bounds__(Policy::kRegisterThreads, kResidentBlocks<K>)
    statistics_staged_kernel(const Samples samples, const ClassMap map, const StatisticsMaps maps,
                             float* mean, const Work work, const InverseCounts<float> inverse,
                             const ClassTile shape) {
  T* tile_data = dynamic_shared<T>();
  const int pixel = int(thread()) >> shape.team_shift;
  // report: hot C / team * S
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t start;
    const int64_t image = work.tiles_per_image.divide(tile, start);
    start *= work.tile;
    const int count = tile_pixels(work.tile, map.pixels - start);
    const T* const tile_of_first =
        samples.data<T>() + image * map.image_stride + start * map.stride[2];
    const bool inside = pixel < count;
    const PixelTeam owner(shape.classes, shape.team_shift,
                          rematerialized(int(thread()) & (shape.team - 1)));
    const T* const mine = tile_data + pixel * shape.pixel_pitch + owner.part * shape.class_pitch;
    Moments<K, 1> moments;
    clear(moments);
#pragma unroll 1
    // report: trips S
    for (int s = 0; s < int(samples.count); s++) {
      barrier();  // the sample before may still be in use
      load_tile(shape, map, count, samples.of(s, tile_of_first), tile_data);
      barrier();
      const int step = rematerialized(shape.class_pitch << shape.team_shift);
      float value[K][1];
#pragma unroll
      for (int i = 0; i < K; i++) {
        value[i][0] = inside && i < owner.owned ? to_accumulate(mine[i * step]) : -kInfinity<float>;
      }
      add_sample(owner, inverse_of_count(s + 1), value, moments);
    }
    int label;
    const PixelMaps<float> result = finish_pixel(owner, moments, 0, inverse, label);
    const int64_t in_image = start + pixel;
    if (inside && owner.part == 0) {
      store_maps(maps, image * map.pixels + in_image, label, result);
    }
    if (inside && mean) {
      float* mean_of_pixel = mean + image * map.classes * map.pixels + in_image;
      const int64_t class_stride = rematerialized(map.pixels);
#pragma unroll
      for (int i = 0; i < K; i++) {
        if (i < owner.owned) mean_of_pixel[owner.class_of(i) * class_stride] = moments.mean[i][0];
      }
    }
  }
  // report: end
}

// ---- predictive_statistics, interpolated ----

template <class T, int K>
__global__ void __launch_bounds__(Policy::kInterpolatedThreads, kInterpolatedBlocks<K>)
    statistics_interpolated_kernel(const Samples samples, const InterpolatedPixels<float> pixels,
                                   const StatisticsMaps maps, float* mean, const Work work,
                                   const InverseCounts<float> inverse, const WarpTeams teams) {
  SEGUNC_SHARED(words, WarpTeam::Words);
  const PixelWarps owner(teams, words);
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t pixel;
    const int64_t image = work.tiles_per_image.divide(tile, pixel);
    pixel = pixel * work.tile + owner.pixel();
    const bool inside = pixel < pixels.count;
    const auto blended = pixels.at(image, pixel);
    const int64_t class_stride = pixels.map.class_stride;
    const T* const classes = samples.data<T>() + owner.first * class_stride;
    Moments<K, 1> moments;
    clear(moments);
#pragma unroll 1
    for (int s = 0; s < int(samples.count); s++) {
      float value[K][1];
      load_logits(blended, samples.of(s, classes), rematerialized(class_stride),
                  inside ? owner.owned : 0, value);
      add_sample(owner, inverse_of_count(s + 1), value, moments);
    }
    int label;
    const PixelMaps<float> result = finish_pixel(owner, moments, 0, inverse, label);
    if (inside && owner.leads()) store_maps(maps, image * pixels.count + pixel, label, result);
    if (inside && mean) {
      const int64_t row = image * rematerialized(teams.classes) + owner.first;
      float* const mean_of_pixel = mean + row * pixels.count + pixel;
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
__global__ void __launch_bounds__(kStridedThreads, 4)
    statistics_strided_kernel(const Samples samples, const Pixels pixels, const int64_t classes,
                              const int64_t class_stride, const StatisticsMaps maps,
                              accumulate_t<T>* mean, const Work work,
                              const InverseCounts<accumulate_t<T>> inverse_counts,
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
    const auto logit = [&](int s, int64_t c) {
      return pixel.logit(samples.of(s, samples.data<T>() + c * class_stride));
    };
    A entropy_sum = 0;
    for (int s = 0; s < int(samples.count); s++) {
      const auto softmax = online_softmax<A>(classes, [&](int64_t c) { return logit(s, c); });
      maximum[s * block_size()] = softmax.maximum;
      inverse_sum[s * block_size()] = inverse(softmax.sum);
      entropy_sum += math::log_positive(softmax.sum);
    }
    Prediction<A> best{A(0), A(0), 0};
    A entropy = 0;
    for (int64_t c = 0; c < classes; c++) {
      A sum = 0;
#pragma unroll 2
      for (int s = 0; s < int(samples.count); s++) {
        const unsigned slot = s * block_size();
        const A d = logit(s, c) - maximum[slot];
        const A exponential = math::exp_nonpositive(d);
        sum += rounded_product(exponential, inverse_sum[slot]);
        entropy_sum -= math::weighted_exponent(exponential, d) * inverse_sum[slot];
      }
      const A class_mean = sum * inverse_counts.all;
      entropy += math::entropy_term(class_mean);
      if (c == 0) best.mean = class_mean;
      best.consider_next(class_mean, A(0), int(c));
      if (mean) mean[(image * classes + c) * pixels.count + in_image] = class_mean;
    }
    for (int s = 0; s < int(samples.count); s++) {
      const unsigned slot = s * block_size();
      const A exponential = math::exp_nonpositive(logit(s, best.label) - maximum[slot]);
      const A deviation = rounded_product(exponential, inverse_sum[slot]) - best.mean;
      best.squared_deviations += deviation * deviation;
    }
    store_maps(
        maps, index, best.label,
        pixel_maps(best.mean, best.squared_deviations, entropy, entropy_sum, inverse_counts));
  }
}

// ---- launch and dispatch ----

// Whether every V neighbouring pixels are one aligned vector in every sample and in the means.
template <class T, int V>
bool pixels_fit_vectors(const StatisticsParams& p) {
  bool fit = is_vector_aligned(p.mean, V * sizeof(accumulate_t<T>));
  for (int64_t s = 0; s < p.count; s++) fit = fit && fits_vectors<T, V>(p.samples[s], p.map);
  return fit;
}

template <class T, class Variant>
void launch_planar_variant(const StatisticsParams& p, Stream stream) {
  const Work work =
      make_work(p.map.images, p.map.pixels, int64_t(Policy::kRegisterThreads) * Variant::kPixels,
                Policy::kMaxBlocks);
  launch(statistics_planar_registers_kernel<T, Variant>, work.blocks, Policy::kRegisterThreads, 0,
         stream, make_samples(p), p.map, p.maps, static_cast<float*>(p.mean), work,
         InverseCounts<float>(p.count));
}

template <class T>
bool launch_statistics_planar_registers(const StatisticsParams& p, Stream stream) {
  return with_bucket(p.map.classes, PlanarBuckets(), [&](auto bucket) {
    constexpr int K = bucket(), kLeast = largest_bucket_below(K, PlanarBuckets()) + 1;
    constexpr int kWidth = kPlanarWidth<T, K>;
    if (!pixels_fit_vectors<T, kWidth>(p)) {
      launch_planar_variant<T, SampledVariant<1, K, kLeast>>(p, stream);
    } else if (!with_exact(p.map.classes, ExactClasses(), [&](auto classes) {
                 constexpr int C = classes();
                 if constexpr (kLeast <= C && C <= K) {  // tuning
                   launch_planar_variant<T, SampledVariant<kWidth, C, C>>(p, stream);
                 }
               })) {
      launch_planar_variant<T, SampledVariant<kWidth, K, kLeast>>(p, stream);
    }
  });
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
         stream, make_samples(p), p.map, p.maps, static_cast<float*>(p.mean), work,
         InverseCounts<float>(p.count), tile);
}

template <class T>
void launch_statistics_strided(const StatisticsParams& p, Stream stream) {
  using A = accumulate_t<T>;
  // With many samples a block has fewer threads, so that what they keep of each fits.
  const int64_t bytes = 2 * int64_t(sizeof(A)) * p.count;
  // report: dynamic statistics_strided_kernel<* 49152
  const int64_t most = int64_t(kMaxDynamicSharedBytes<>) / bytes;
  if (most == 0) {
    throw std::invalid_argument("predictive_statistics: expected at most " +
                                std::to_string(kMaxDynamicSharedBytes<> / (2 * sizeof(A))) +
                                " samples of this layout, got " + std::to_string(p.count));
  }
  const int64_t threads =
      std::min<int64_t>(most >= kWarpSize ? most / kWarpSize * kWarpSize : most, kStridedThreads);
  with_pixels<A>(p, [&](auto pixels) {
    const Work work = make_work(1, p.map.images * pixels.count, threads, Policy::kMaxBlocks);
    launch(statistics_strided_kernel<T, decltype(pixels)>, work.blocks, unsigned(threads),
           size_t(threads * bytes), stream, make_samples(p), pixels, p.map.classes,
           p.map.class_stride, p.maps, static_cast<A*>(p.mean), work, InverseCounts<A>(p.count),
           Divisor(pixels.count));
  });
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
      done = launch_statistics_planar_registers<T>(p, stream);
    } else if (strategy == Strategy::interpolated) {
      const InterpolatedPixels<float> pixels(p.map, p.interpolation);
      done = with_warp_teams(p, InterpolatedBuckets(), Policy::kMaxBlocks,
                             [&](auto bucket, const Work& work, const WarpTeams& teams) {
                               launch(statistics_interpolated_kernel<T, bucket()>, work.blocks,
                                      teams.threads(), 0, stream, make_samples(p), pixels, p.maps,
                                      static_cast<float*>(p.mean), work,
                                      InverseCounts<float>(p.count), teams);
                             });
    } else {
      done = with_bucket(classes_of_tile_thread(p.map.classes), StagedBuckets(),
                         [&](auto bucket) { launch_statistics_staged<T, bucket()>(p, stream); });
    }
  }
  if (!done) no_kernel("predictive_statistics", p.dtype, p.map.classes);
}

}  // namespace

void predictive_statistics(const StatisticsParams& params, Stream stream) {
  if (params.count < 1) {
    throw std::invalid_argument("predictive_statistics: expected at least one sample, got none");
  }
  if (is_empty(params.map)) return;
  with_dtype("predictive_statistics", params.dtype,
             [&](auto t) { launch_statistics<decltype(t)>(params, stream); });
}

}  // namespace segunc::cuda
