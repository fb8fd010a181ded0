// Weighted cross-entropy on a GPU: loss and gradients from one read of the logits.
//
//   value     l = a (log s - d_y) + sum_c b_c (log s - d_c),   d = z - max z,  s = sum_c exp d_c
//   gradient  k (total / s * exp d_c - t_c),   t_c = a [c = y] + b_c,  total = sum_c t_c
// A pixel's exponentials stay in registers between the sum over the classes and the gradient, so
// the logits are read once, the gradient is written once and no log-sum-exp is ever stored.
//
//   planar_registers  a thread owns V neighbouring pixels and all of their at most 32 classes
//   staged            a tile goes through shared memory; up to 16 threads share a pixel's classes
//   strided           a thread a pixel, the logits read twice: whatever the others do not take
#include <type_traits>
#include <utility>

#include "../../common/device/class_tile.h"
#include "../../common/device/integer.h"
#include "../../common/device/work.h"
#include "kernels.h"
#include "pixel.h"

namespace segunc::cuda {
namespace {

// ---- Launch policy ----

enum class Strategy { planar_registers, staged, strided };

// Derived from occupancy and bytes in flight, not yet measured on a GPU. At 4.8 TB/s and about
// 0.8 us latency an H200 needs 4 MB in flight, 30 KB a multiprocessor. With 19 classes:
//   planar_registers  two pixels a thread, at most 128 registers: 512 threads are resident and have
//                     up to 152 bytes each in flight, 78 KB (bf16: 39 KB)
//   staged            at most 80 registers: 3 blocks of 256, with a tile of 19 KB each (bf16: 10
//   KB)
// A logit and its gradient cost about 25 instructions, of which a multiprocessor issues enough for
// 4.8 TB/s in fp32 with half of its slots and in bf16 with nearly all of them.
// Blocks of 128 rather than 256 where nothing is shared: a shorter last wave.
struct Policy {
  static constexpr int kPlanarThreads = 128;
  static constexpr int kStagedThreads = 256;
  static constexpr int kStridedThreads = 256;
  // One partial sum each: few enough for a single block to add up, enough for a dozen waves, so
  // that blocks which take one tile more than others do not show.
  static constexpr int64_t kMaxBlocks = at_scale(8192);
};

// Instructions an element on sm_90.
// report: budget cross_entropy_planar_registers_kernel<float, 4, 4*> 114
// report: budget cross_entropy_planar_registers_kernel<float, 12, 2*> 50
// report: budget cross_entropy_planar_registers_kernel<float, 20, 2*> 43
// report: budget cross_entropy_planar_registers_kernel<float, 24, 2*> 46
// report: budget cross_entropy_planar_registers_kernel<float, 32, 1*> 90
// report: budget cross_entropy_planar_registers_kernel<bfloat16, 4, 4*> 123
// report: budget cross_entropy_planar_registers_kernel<bfloat16, 12, 2*> 53
// report: budget cross_entropy_planar_registers_kernel<bfloat16, 20, 2*> 46
// report: budget cross_entropy_planar_registers_kernel<bfloat16, 24, 2*> 48
// report: budget cross_entropy_planar_registers_kernel<bfloat16, 32, 1*> 94
// report: budget cross_entropy_staged_kernel<float, 20*> 72
// report: budget cross_entropy_staged_kernel<bfloat16, 20*> 66

// Pixels a thread of planar_registers: at most 64 values.
template <int K>
constexpr int kPlanarWidth = K <= 8 ? 4 : 2;

// Resident blocks that the compiler has to leave registers for, as many as it can without spilling.
template <int Values>
constexpr int kPlanarBlocks = Values > 40   ? 3
                              : Values > 24 ? 4
                                            : 5;

template <int Values>
constexpr int kStagedBlocks = Values > 24 ? 2 : 3;

// Which kernel, and how it walks over the pixels.
struct StoredWork : LossWork {
  Strategy strategy;
  int bucket;  // registers for the classes of a pixel
};

CrossEntropyParams with_merged_images(CrossEntropyParams p) {
  if (is_one_image(p.map) && (!p.grad_input || is_one_image(p.grad_map))) {
    merge_images(p.map);
    merge_images(p.grad_map);
  }
  return p;
}

template <int... K>
int64_t planar_tile(int bucket, std::integer_sequence<int, K...>) {
  int width = 0;
  ((width = bucket == K ? kPlanarWidth<K> : width), ...);
  return int64_t(Policy::kPlanarThreads) * width;
}

using PlanarBuckets = std::integer_sequence<int, 4, 8, 12, 16, 20, 24, 32>;
using NarrowBuckets = std::integer_sequence<int, 16, 32>;  // one pixel a thread
using StagedBuckets = std::integer_sequence<int, 16, 20, 24, 32>;

// p has its images merged. The alignment of pointers plays no part, so that the order of the sums
// follows from sizes and layout alone.
StoredWork make_stored_work(const CrossEntropyParams& p) {
  const ClassMap& map = p.map;
  const bool same_layout = !p.grad_input || p.grad_map.layout == map.layout;
  const bool tiled = same_layout && p.dtype != Dtype::f64 && map.layout != Layout::strided &&
                     map.pixels >= kMinTiledPixels;
  if (tiled && map.layout == Layout::planar && map.classes <= kMaxClassesOfThread) {
    const int bucket = smallest_bucket(map.classes, PlanarBuckets());
    return {make_loss_work(p, map.images, map.pixels, planar_tile(bucket, PlanarBuckets()),
                           Policy::kMaxBlocks),
            Strategy::planar_registers, bucket};
  }
  if (tiled && map.classes <= kMaxTileClasses) {
    const int team = 1 << team_shift_of(map.classes, kMaxClassesOfThread);
    return {make_loss_work(p, map.images, map.pixels, Policy::kStagedThreads / team,
                           Policy::kMaxBlocks),
            Strategy::staged,
            smallest_bucket(classes_of_tile_thread(map.classes), StagedBuckets())};
  }
  return {
      make_loss_work(p, 1, map.images * map.pixels, Policy::kStridedThreads, Policy::kMaxBlocks),
      Strategy::strided, 0};
}

// ---- planar_registers ----

template <class T, int K, int V>
__global__ void __launch_bounds__(Policy::kPlanarThreads, kPlanarBlocks<K * V>)
    cross_entropy_planar_registers_kernel(const CrossEntropyParams p, const LossWork work) {
  using A = accumulate_t<T>;
  const Constants<A> constants(p, work.shares);
  const Alone owner{int(p.map.classes)};
  Vector<T, V> absent;  // beyond the classes: has no mass
#pragma unroll
  for (int j = 0; j < V; j++) absent[j] = from_accumulate<T>(-kInfinity<A>);
  double sum = 0;
  // report: hot C * V
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t start;
    const int64_t image = work.tiles_per_image.divide(tile, start);
    start *= work.tile;
    const int count = tile_pixels(work, p.map.pixels - start);
    const T* logits = static_cast<const T*>(p.input) + image * p.map.image_stride + start;
#pragma unroll 1
    for (int at = int(thread()) * V; at < count; at += Policy::kPlanarThreads * V) {
      const int64_t class_stride = rematerialized(p.map.class_stride);
      Vector<T, V> raw[K];
#pragma unroll
      for (int c = 0; c < K; c++) {
        // report: vector min(16, sizeof(T) * V)
        raw[c] = c < owner.owned ? load_vector<V>(logits + c * class_stride + at) : absent;
      }
      const int64_t first = image * p.map.pixels + start + at;
      int label[V];
      load_labels(p, first, label);
      const auto pixel_weight = load_factors<V, A>(p.pixel_weight, first);
      const auto upstream = load_factors<V, A>(upstream_map(p), first);

      // The line is on its way to the cache: cheaper than a comparison for every class.
      A target_logit[V];
#pragma unroll
      for (int j = 0; j < V; j++) {
        target_logit[j] =
            label[j] >= 0 ? to_accumulate(logits[label[j] * class_stride + at + j]) : A(0);
      }

      A value[K][V], maximum[V];
      SoftmaxTerms<A> softmax[V];
#pragma unroll
      for (int c = 0; c < K; c++) {
#pragma unroll
        for (int j = 0; j < V; j++) value[c][j] = to_accumulate(raw[c][j]);
      }
      largest_logit(owner, value, maximum);
#pragma unroll
      for (int j = 0; j < V; j++) softmax[j].target_shifted = target_logit[j] - maximum[j];
      softmax_in_place(constants, owner, maximum, value, softmax);

      PixelTerms<A> terms[V];
      Vector<A, V> loss, weight_gradient;
#pragma unroll
      for (int j = 0; j < V; j++) {
        terms[j] = pixel_terms(constants, label[j], softmax[j], pixel_weight[j], upstream[j]);
        loss[j] = terms[j].loss;
        weight_gradient[j] = terms[j].weight_gradient;
        sum += double(loss[j]);
      }
      if (p.loss) store_vector(static_cast<A*>(p.loss) + first, loss);
      if (p.grad_pixel_weight) {
        store_vector(static_cast<A*>(p.grad_pixel_weight) + first, weight_gradient);
      }
      if (p.grad_input) {
        T* gradient = static_cast<T*>(p.grad_input) + image * p.grad_map.image_stride + start + at;
        const int64_t gradient_stride = rematerialized(p.grad_map.class_stride);
#pragma unroll
        for (int c = 0; c < K; c++) {
          const A b = constants.smooths() && c < owner.owned ? constants.smoothing(c) : A(0);
          Vector<T, V> result;
#pragma unroll
          for (int j = 0; j < V; j++) {
            result[j] = from_accumulate<T>(
                logit_gradient(terms[j], value[c][j], target_share(terms[j], label[j], c, b)));
          }
          // report: vector min(16, sizeof(T) * V)
          if (c < owner.owned) store_vector(gradient + c * gradient_stride, result);
        }
      }
    }
  }
  // report: end
  store_partial(p, sum);
}

// ---- staged ----

template <class T, int K>
__global__ void __launch_bounds__(Policy::kStagedThreads, kStagedBlocks<K>)
    cross_entropy_staged_kernel(const CrossEntropyParams p, const LossWork work,
                                const ClassTile shape) {
  using A = accumulate_t<T>;
  T* tile_data = dynamic_shared<T>();
  const Constants<A> constants(p, work.shares);
  const int pixel = int(thread()) >> shape.team_shift;
  const int64_t image_pixels = p.map.pixels;
  double sum = 0;
  // report: hot C / team
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t start;
    const int64_t image = work.tiles_per_image.divide(tile, start);
    start *= work.tile;
    const int count = tile_pixels(work, image_pixels - start);
    const int64_t index = image * image_pixels + start + pixel;
    const bool inside = pixel < count;

    barrier();  // the tile before may still be in use
    load_tile(shape, p.map, count,
              static_cast<const T*>(p.input) + image * p.map.image_stride + start * p.map.stride[2],
              tile_data);
    int label[1] = {kIgnored};
    if (inside) load_labels(p, index, label);
    const bool valid = label[0] >= 0;
    const A pixel_weight = valid ? load_factors<1, A>(p.pixel_weight, index)[0] : A(1);
    const A upstream = valid ? load_factors<1, A>(upstream_map(p), index)[0] : A(1);
    barrier();

    const Team owner(shape.classes, shape.team_shift,
                     rematerialized(int(thread()) & (shape.team - 1)));
    T* const classes = tile_data + pixel * shape.pixel_pitch;
    T* const mine = classes + owner.part * shape.class_pitch;
    const int step = rematerialized(shape.class_pitch << shape.team_shift);
    A value[K][1], maximum[1];
    SoftmaxTerms<A> softmax[1];
#pragma unroll
    for (int i = 0; i < K; i++) {
      value[i][0] = inside && i < owner.owned ? to_accumulate(mine[i * step]) : -kInfinity<A>;
    }
    largest_logit(owner, value, maximum);
    softmax[0].target_shifted =
        valid ? to_accumulate(classes[label[0] * shape.class_pitch]) - maximum[0] : A(0);
    softmax_in_place(constants, owner, maximum, value, softmax);

    const PixelTerms<A> terms =
        pixel_terms(constants, label[0], softmax[0], pixel_weight, upstream);
    if (inside && owner.part == 0) {
      sum += double(terms.loss);
      if (p.loss) static_cast<A*>(p.loss)[index] = terms.loss;
      if (p.grad_pixel_weight) {
        static_cast<A*>(p.grad_pixel_weight)[index] = terms.weight_gradient;
      }
    }
    if (p.grad_input) {
      warp_sync();  // the team has read the target's logit
#pragma unroll
      for (int i = 0; i < K; i++) {
        if (inside && i < owner.owned) {
          const int c = owner.class_of(i);
          const A b = constants.smooths() ? constants.smoothing(c) : A(0);
          mine[i * step] = from_accumulate<T>(
              logit_gradient(terms, value[i][0], target_share(terms, label[0], c, b)));
        }
      }
      barrier();
      store_tile(shape, p.grad_map, count, tile_data,
                 static_cast<T*>(p.grad_input) + image * p.grad_map.image_stride +
                     start * p.grad_map.stride[2]);
    }
  }
  // report: end
  store_partial(p, sum);
}

// ---- strided ----

template <class T>
__global__ void __launch_bounds__(Policy::kStridedThreads, 3)
    cross_entropy_strided_kernel(const CrossEntropyParams p, const LossWork work,
                                 const Divisor pixels_of_image, const PixelOffset offset,
                                 const PixelOffset grad_offset) {
  using A = accumulate_t<T>;
  const Constants<A> constants(p, work.shares);
  const int64_t classes = p.map.classes, pixels = p.map.images * p.map.pixels;
  double sum = 0;
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    if (index >= pixels) continue;
    int64_t pixel;
    const int64_t image = pixels_of_image.divide(index, pixel);
    const T* logits = static_cast<const T*>(p.input) + image * p.map.image_stride + offset(pixel);
    int label[1];
    load_labels(p, index, label);
    const bool valid = label[0] >= 0;
    SoftmaxTerms<A> terms_of_softmax{};
    A maximum = 0, pixel_weight = 1, upstream = 1;
    if (valid) {
      const auto online = online_softmax<A>(
          classes, [&](int64_t c) { return to_accumulate(logits[c * p.map.class_stride]); });
      maximum = online.maximum;
      terms_of_softmax.sum = online.sum;
      terms_of_softmax.target_shifted =
          to_accumulate(logits[label[0] * p.map.class_stride]) - maximum;
      if (constants.smooths()) {
        for (int64_t c = 0; c < classes; c++) {
          const A b = constants.smoothing(int(c));
          terms_of_softmax.smooth_total += b;
          terms_of_softmax.smooth_dot +=
              b * (to_accumulate(logits[c * p.map.class_stride]) - maximum);
        }
      }
      pixel_weight = load_factors<1, A>(p.pixel_weight, index)[0];
      upstream = load_factors<1, A>(upstream_map(p), index)[0];
    }
    const PixelTerms<A> terms =
        pixel_terms(constants, label[0], terms_of_softmax, pixel_weight, upstream);
    sum += double(terms.loss);
    if (p.loss) static_cast<A*>(p.loss)[index] = terms.loss;
    if (p.grad_pixel_weight) static_cast<A*>(p.grad_pixel_weight)[index] = terms.weight_gradient;
    if (p.grad_input) {
      T* gradient =
          static_cast<T*>(p.grad_input) + image * p.grad_map.image_stride + grad_offset(pixel);
#pragma unroll 4
      for (int64_t c = 0; c < classes; c++) {
        const A b = constants.smooths() ? constants.smoothing(int(c)) : A(0);
        const A exponential =
            valid ? math::exp_nonpositive(to_accumulate(logits[c * p.map.class_stride]) - maximum)
                  : A(0);
        gradient[c * p.grad_map.class_stride] = from_accumulate<T>(
            logit_gradient(terms, exponential, target_share(terms, label[0], int(c), b)));
      }
    }
  }
  store_partial(p, sum);
}

// ---- launch and dispatch ----

// Whether every V neighbouring pixels are one aligned vector in every array.
template <class T, int V>
bool all_fit_vectors(const CrossEntropyParams& p) {
  const auto factors_fit = [](const void* factors) {
    return is_vector_aligned(factors, V * sizeof(accumulate_t<T>));
  };
  return fits_vectors<T, V>(p.input, p.map) &&
         (!p.grad_input || fits_vectors<T, V>(p.grad_input, p.grad_map)) &&
         fits_vectors<V>(p.target, p.target_type) && factors_fit(p.pixel_weight) &&
         (p.upstream_is_scalar || factors_fit(p.upstream)) && factors_fit(p.loss) &&
         factors_fit(p.grad_pixel_weight);
}

template <class T>
bool launch_planar_registers(const CrossEntropyParams& p, const StoredWork& work, Stream stream) {
  return with_bucket(work.bucket, PlanarBuckets(), [&](auto bucket) {
    constexpr int kWidth = kPlanarWidth<bucket()>;
    if (all_fit_vectors<T, kWidth>(p)) {
      launch(cross_entropy_planar_registers_kernel<T, bucket(), kWidth>, work.blocks,
             Policy::kPlanarThreads, 0, stream, p, work);
    } else {
      with_bucket(work.bucket, NarrowBuckets(), [&](auto narrow) {
        launch(cross_entropy_planar_registers_kernel<T, narrow(), 1>, work.blocks,
               Policy::kPlanarThreads, 0, stream, p, work);
      });
    }
  });
}

template <class T>
bool launch_staged(const CrossEntropyParams& p, const StoredWork& work, Stream stream) {
  const bool aligned = vectors_are_aligned(p.input, p.map, sizeof(T)) &&
                       (!p.grad_input || vectors_are_aligned(p.grad_input, p.grad_map, sizeof(T)));
  const ClassTile tile = make_class_tile(p.map, sizeof(T), Policy::kStagedThreads, aligned);
  return with_bucket(work.bucket, StagedBuckets(), [&](auto bucket) {
    launch(cross_entropy_staged_kernel<T, bucket()>, work.blocks, Policy::kStagedThreads,
           tile.shared_bytes, stream, p, work, tile);
  });
}

template <class T>
bool launch_strided(const CrossEntropyParams& p, const StoredWork& work, Stream stream) {
  launch(cross_entropy_strided_kernel<T>, work.blocks, Policy::kStridedThreads, 0, stream, p, work,
         Divisor(p.map.pixels), PixelOffset(p.map), PixelOffset(p.grad_input ? p.grad_map : p.map));
  return true;
}

template <class T>
void launch_stored(const CrossEntropyParams& p, const StoredWork& work, Stream stream) {
  bool done = false;
  if (work.strategy == Strategy::strided) {
    done = launch_strided<T>(p, work, stream);
  } else if constexpr (!std::is_same_v<T, double>) {
    done = work.strategy == Strategy::planar_registers ? launch_planar_registers<T>(p, work, stream)
                                                       : launch_staged<T>(p, work, stream);
  }
  if (!done) no_kernel("cross_entropy", p.dtype, p.map.classes);
}

}  // namespace

CrossEntropyPlan plan_stored_cross_entropy(const CrossEntropyParams& params) {
  if (is_empty(params.map)) return {};
  const StoredWork work = make_stored_work(with_merged_images(params));
  return {work.blocks, 0, [work](const CrossEntropyParams& unmerged, Stream stream) {
            const CrossEntropyParams p = with_merged_images(unmerged);
            with_dtype("cross_entropy", p.dtype,
                       [&](auto t) { launch_stored<decltype(t)>(p, work, stream); });
          }};
}

}  // namespace segunc::cuda
