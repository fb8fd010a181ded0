// Weighted cross-entropy on a GPU: loss and gradients from one read of the logits.
//
//   value     l = a (log s - d_y) + sum_c b_c (log s - d_c),   d = z - max z,  s = sum_c exp d_c
//   gradient  k (total / s * exp d_c - t_c),   t_c = a [c = y] + b_c,  total = sum_c t_c
// A pixel's exponentials stay in registers between the sum over the classes and the gradient, so
// the logits are read once, the gradient is written once and no log-sum-exp is ever stored.
//
//   planar_registers  a thread owns V pixels and all of their at most 32 classes
//   staged            a tile goes through shared memory; up to 16 threads share a pixel's classes
//   strided           a thread a pixel, the logits read twice: whatever the others do not take
// A loss that has more than a weighted target (pixel.h) has variants of its own, general ones and
// some for popular numbers of classes; with noise it takes the strided kernel.
// What counts in an inner loop and is the same for a launch is known to the compiler: whether
// labels are smoothed, how pixels move and, where many networks have it, the number of classes. All
// else costs an instruction a pixel at most and is tested at run time. The labelled class takes
// part in the loops as any other; its element is written once more, by the thread that has written
// it.
#include <type_traits>
#include <utility>

#include "../../common/device/exact_tile.h"
#include "../../common/device/integer.h"
#include "../../common/device/work.h"
#include "kernels.h"
#include "pixel.h"

namespace segunc::cuda {
namespace {

// ---- Launch policy ----

enum class Strategy { planar_registers, staged, strided };

// Derived from machine code, occupancy and bytes in flight, not yet measured on a GPU.
//
// Instructions are the budget. At the bandwidth of a copy an H200 issues 55 for a logit and its
// gradient in fp32 and 27 in bf16, all of its slots used; half of that is the aim. With int64
// targets, a weight a pixel and no smoothing, sm_90 takes (fp32 / bf16)
//   planar_registers  12.5 / 14.9 with 19 classes, up to 15.2 / 18.2 with any number from 17 to 32;
//                     2.7 more where pixels are no aligned vectors
//   staged            21 / 23 with 150 classes, 19 / 21 with 19 in channels_last; about 40 where
//                     the compiler does not know the tile, more where it has no vectors
// 70 to 100 of which are a pixel's own: with 8 classes it is 19 / 21, with 2 about 55.
//
// Memory: at 4.8 TB/s and about 0.8 us latency an H200 needs 4 MB in flight, 30 KB a
// multiprocessor. With 19 classes:
//   planar_registers  two pixels a thread, at most 96 registers: 640 threads are resident and have
//                     up to 152 bytes each in flight, 97 KB (bf16: 49 KB)
//   staged            at most 80 registers: 3 blocks of 256, with a tile of 19 KB each (bf16 where
//                     the compiler knows the classes: at most 64, 4 blocks, half of that each)
// Blocks of 128 rather than 256 where nothing is shared: a shorter last wave.
struct Policy {  // tuning
  static constexpr int kPlanarThreads = 128;
  static constexpr int kStagedThreads = 256;
  static constexpr int kStridedThreads = 256;
  // One partial sum each: few enough for a single block to add up, enough for a dozen waves, so
  // that blocks which take one tile more than others do not show.
  static constexpr int64_t kMaxBlocks = at_scale(8192);
};

// Instructions a logit on sm_90, in training without smoothing.
// report: budget cross_entropy_planar_registers_kernel<float, *Adjacent*, 2, 2, 0* 56
// report: budget cross_entropy_planar_registers_kernel<float, *Adjacent*, 11, 11, 0* 18
// report: budget cross_entropy_planar_registers_kernel<float, *Adjacent*, 19, 19, 0* 15
// report: budget cross_entropy_planar_registers_kernel<float, *Adjacent*, 21, 21, 0* 15
// report: budget cross_entropy_planar_registers_kernel<float, *Adjacent*, 19, 19, 1* 17
// report: budget cross_entropy_planar_registers_kernel<float, *Adjacent*, 20, 17, 0* 18
// report: budget cross_entropy_planar_registers_kernel<float, *Adjacent*, 32, 29, 0* 18
// report: budget cross_entropy_planar_registers_kernel<float, *Spaced*, 20, 17, 0* 25
// report: budget cross_entropy_staged_kernel<float, ExactStaged*, 0* 25
// report: budget cross_entropy_staged_kernel<float, ExactStaged*, 1* 30
// report: budget cross_entropy_staged_kernel<float, GeneralStaged<20, 16, 0* 45
// report: budget cross_entropy_planar_registers_kernel<bfloat16, *Adjacent*, 2, 2, 0* 60
// report: budget cross_entropy_planar_registers_kernel<bfloat16, *Adjacent*, 11, 11, 0* 20
// report: budget cross_entropy_planar_registers_kernel<bfloat16, *Adjacent*, 19, 19, 0* 17
// report: budget cross_entropy_planar_registers_kernel<bfloat16, *Adjacent*, 21, 21, 0* 17
// report: budget cross_entropy_planar_registers_kernel<bfloat16, *Adjacent*, 19, 19, 1* 20
// report: budget cross_entropy_planar_registers_kernel<bfloat16, *Adjacent*, 20, 17, 0* 20
// report: budget cross_entropy_planar_registers_kernel<bfloat16, *Adjacent*, 32, 29, 0* 20
// report: budget cross_entropy_planar_registers_kernel<bfloat16, *Spaced*, 20, 17, 0* 25
// report: budget cross_entropy_staged_kernel<bfloat16, ExactStaged*, 0* 25
// report: budget cross_entropy_staged_kernel<bfloat16, ExactStaged*, 1* 31
// report: budget cross_entropy_staged_kernel<bfloat16, GeneralStaged<20, 16, 0* 45

// Pixels a thread of planar_registers: at most 64 values.
template <int K>
constexpr int kPlanarWidth = K <= 8 ? 4 : 2;  // tuning

// Resident blocks that the compiler has to leave registers for, as many as it can without spilling:
// 3 let it use 168, 4 128, 5 96 and 6 80.
template <int Values, int Width, int variation>
constexpr int kPlanarBlocks = Values > 56 && variation != kPlain ? 3  // tuning
                              : Values > (Width > 2 ? 24 : 44)   ? 4
                              : Values > 24                      ? 5
                                                                 : 6;

template <int Values, int Bytes, bool Exact>
constexpr int kStagedBlocks = Values > 24                          ? 2  // tuning
                              : Exact && Values <= 20 && Bytes < 4 ? 4
                                                                   : 3;

// Which kernel, and how it walks over the pixels.
struct StoredWork : LossWork {
  Strategy strategy;
  int bucket;  // registers for the classes of a pixel
};

CrossEntropyParams with_merged_images(CrossEntropyParams p) {
  // Factors by image need to know which it is.
  if (p.modulation.image_factor) return p;
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

// Classes of a thread that there are registers for, and numbers of classes that have kernels of
// their own: foreground against background, and the labels of CamVid, Cityscapes, Pascal VOC and
// ADE20K.
using PlanarBuckets = std::integer_sequence<int, 4, 8, 12, 16, 20, 24, 28, 32>;  // tuning
using VariedBuckets = std::integer_sequence<int, 8, 16, 24, 32>;                 // tuning
using StagedBuckets = std::integer_sequence<int, 16, 20, 24, 32>;                // tuning
using ExactClasses = std::integer_sequence<int, 2, 11, 19, 21, 150>;             // tuning
using ExactVariedTiles = std::integer_sequence<int, 19, 150>;                    // tuning

// p has its images merged. The alignment of pointers plays no part here: how many sums there are,
// and of which pixels, follows from sizes and layout alone.
StoredWork make_stored_work(const CrossEntropyParams& p) {
  const ClassMap& map = p.map;
  const bool same_layout = !p.grad_input || p.grad_map.layout == map.layout;
  const bool tiled = same_layout && p.dtype != Dtype::f64 && map.layout != Layout::strided &&
                     !is_noisy(p) && map.pixels >= kMinTiledPixels && has_short_strides(map) &&
                     (!p.grad_input || has_short_strides(p.grad_map));
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

// What the compiler knows of a launch: the pixels of a thread, the registers for their classes and
// how many of these are always in use, whether the loss may vary and whether labels may be
// smoothed.
template <class ThreadPixels, int Classes, int Least, int LossVariation, bool Smooths>
struct PlanarVariant {
  using Pixels = ThreadPixels;
  static constexpr int kClasses = Classes, kLeast = Least, kValues = Classes * Pixels::kCount;
  static constexpr int kVariation = LossVariation;
  static constexpr bool kSmooths = Smooths;
};

template <class T, class Variant>
__global__ void __launch_bounds__(
    Policy::kPlanarThreads,
    kPlanarBlocks<Variant::kValues, Variant::Pixels::kCount, Variant::kVariation>)
    cross_entropy_planar_registers_kernel(const CrossEntropyParams p, const LossWork work) {
  using A = accumulate_t<T>;
  using Pixels = typename Variant::Pixels;
  constexpr int K = Variant::kClasses, V = Pixels::kCount;
  const Constants<A> constants(p, Variant::kSmooths ? work.shares : TargetShares{1, 0});
  const Alone owner{int(p.map.classes)};
  const auto labels = block_smoothing<Variant::kSmooths, K>(constants, owner.owned);
  const auto present = [&](int c) { return c < Variant::kLeast || c < owner.owned; };
  const T absent = from_accumulate<T>(-kInfinity<A>);  // has no mass
  double sum = 0;
  BadTarget bad;
  // report: hot C * V
  for (TileWalk walk(work); walk.image < p.map.images; walk.advance(work)) {
    const int64_t start = int64_t(walk.tile) * (Policy::kPlanarThreads * V);
    const int count = tile_pixels(work.tile, p.map.pixels - start);
    const int at = Pixels::first(int(thread()));
    if (at >= count) continue;
    const Pixels pixels(count - at);
    const int64_t first = walk.image * p.map.pixels + start + at;

    // All that is read is on its way before anything waits.
    int64_t target[V];
    load_targets(p, pixels, first, target);
    const auto pixel_weight = load_factors<A>(pixels, p.pixel_weight, first);
    const auto upstream = load_factors<A>(pixels, upstream_map(p), first);
    // 32 bits: a product with a constant and the sum with a pointer are one instruction.
    const unsigned class_stride = rematerialized(unsigned(p.map.class_stride));
    const T* logits = static_cast<const T*>(p.input) + walk.image * p.map.image_stride + start + at;
    Vector<T, V> raw[K];
    load_classes(pixels, logits, class_stride, absent, present, raw);
    int label[V];
    labels_of(p, target, label, bad);
    // The line is on its way to the cache: cheaper than a comparison for every class.
    A target_logit[V];
#pragma unroll
    for (int j = 0; j < V; j++) {
      target_logit[j] =
          label[j] < 0
              ? A(0)
              : to_accumulate(logits[product(label[j], class_stride) + pixels.distance(j)]);
    }

    A value[K][V], maximum[V];
    SoftmaxTerms<A> softmax[V];
#pragma unroll
    for (int c = 0; c < K; c++) {
#pragma unroll
      for (int j = 0; j < V; j++) value[c][j] = to_accumulate(raw[c][j]);
    }
    adjust_logits<Variant::kVariation>(p.adjustment, constants, owner, label, value);
    largest_logit(owner, value, maximum);
#pragma unroll
    for (int j = 0; j < V; j++) {
      if (label[j] >= 0) {
        target_logit[j] = adjusted<Variant::kVariation>(p.adjustment, constants, target_logit[j],
                                                        label[j], label[j]);
      }
      softmax[j].target_shifted = target_logit[j] - maximum[j];
    }
    softmax_in_place(labels, owner, maximum, value, softmax);

    PixelTerms<A> terms[V];
    Vector<A, V> loss, weight_gradient;
#pragma unroll
    for (int j = 0; j < V; j++) {
      terms[j] = pixel_terms<Variant::kVariation>(p, constants, walk.image, label[j], softmax[j],
                                                  pixel_weight[j], upstream[j]);
      loss[j] = terms[j].loss;
      weight_gradient[j] = terms[j].weight_gradient;
      sum += double(loss[j]);
    }
    if (p.loss) pixels.store(static_cast<A*>(p.loss) + first, loss);
    if (p.grad_pixel_weight) {
      pixels.store(static_cast<A*>(p.grad_pixel_weight) + first, weight_gradient);
    }
    if (!p.grad_input) continue;
    clear_ignored(label, softmax, value);
    const unsigned gradient_stride = rematerialized(unsigned(p.grad_map.class_stride));
    T* gradient = static_cast<T*>(p.grad_input) + walk.image * p.grad_map.image_stride + start + at;
#pragma unroll
    for (int c = 0; c < K; c++) {
      if (!present(c)) continue;
      Vector<T, V> result;
#pragma unroll
      for (int j = 0; j < V; j++) {
        result[j] = from_accumulate<T>(logit_gradient(labels, terms[j], value[c][j], c));
      }
      pixels.store(gradient + product(c, gradient_stride), result);
    }
    // Once more the labelled class, as one element.
#pragma unroll
    for (int j = 0; j < V; j++) {
      if (label[j] < 0) continue;
      const A e = exponential(softmax[j].target_shifted);
      gradient[product(label[j], gradient_stride) + pixels.distance(j)] =
          from_accumulate<T>(target_gradient(labels, terms[j], e, label[j]));
    }
  }
  // report: end
  bad.report(p.bad_target);
  store_partial(p, sum);
}

// ---- staged ----

// A tile of any layout and size, with registers for K classes of a thread, of which the first Least
// are always in use.
template <int K, int Least, int LossVariation>
struct GeneralStaged {
  static constexpr int kClasses = K, kLeast = Least;
  static constexpr int kVariation = LossVariation;
  static constexpr bool kExact = false, kSmooths = kVariation != kPlain;

  SEGUNC_DEVICE static ClassTile tile(const ClassTile& shape) { return shape; }
  template <class T>
  SEGUNC_DEVICE static void load(const ClassTile& shape, const ClassMap& map, int pixels,
                                 const T* data, T* tile) {
    load_tile(shape, map, pixels, data, tile);
  }
  template <class T>
  SEGUNC_DEVICE static void store(const ClassTile& shape, const ClassMap& map, int pixels,
                                  const T* tile, T* data) {
    store_tile(shape, map, pixels, tile, data);
  }
};

// One that the compiler knows, for labels that are not smoothed.
template <class Tile, int LossVariation>
struct ExactStaged {
  static constexpr int kClasses = int(classes_of_tile_thread(Tile::kTile.classes));
  static constexpr int kLeast = Tile::kTile.classes / Tile::kTile.team;
  static constexpr int kVariation = LossVariation;
  static constexpr bool kExact = true, kSmooths = false;

  SEGUNC_DEVICE static ClassTile tile(const ClassTile&) {
    constexpr ClassTile kTile = Tile::kTile;
    return kTile;
  }
  template <class T>
  SEGUNC_DEVICE static void load(const ClassTile&, const ClassMap& map, int pixels, const T* data,
                                 T* tile) {
    load_exact_tile<Tile>(map, pixels, data, tile);
  }
  template <class T>
  SEGUNC_DEVICE static void store(const ClassTile&, const ClassMap& map, int pixels, const T* tile,
                                  T* data) {
    store_exact_tile<Tile>(map, pixels, tile, data);
  }
};

template <class T, class Variant>
__global__ void __launch_bounds__(
    Policy::kStagedThreads,
    kStagedBlocks<Variant::kClasses, sizeof(T), Variant::kExact && Variant::kVariation == kPlain>)
    cross_entropy_staged_kernel(const CrossEntropyParams p, const LossWork work,
                                const ClassTile any_shape) {
  using A = accumulate_t<T>;
  constexpr int K = Variant::kClasses;
  const ClassTile shape = Variant::tile(any_shape);
  T* tile_data = dynamic_shared<T>();
  const Constants<A> constants(p, Variant::kSmooths ? work.shares : TargetShares{1, 0});
  const auto labels = block_smoothing<Variant::kSmooths, kMaxTileClasses>(constants, shape.classes);
  const int pixel = int(thread()) >> shape.team_shift;
  double sum = 0;
  BadTarget bad;
  // report: hot C / team
  for (TileWalk walk(work); walk.image < p.map.images; walk.advance(work)) {
    const int64_t start = int64_t(walk.tile) * shape.pixels;
    const int count = tile_pixels(work.tile, p.map.pixels - start);
    const int64_t index = walk.image * p.map.pixels + start + pixel;
    const bool inside = pixel < count;

    const AdjacentPixels<1> one;
    int64_t target[1] = {p.ignore_index};
    Vector<A, 1> pixel_weight{}, upstream{};
    if (inside) {
      load_targets(p, one, index, target);
      pixel_weight = load_factors<A>(one, p.pixel_weight, index);
      upstream = load_factors<A>(one, upstream_map(p), index);
    }
    barrier();  // the tile before may still be in use
    Variant::load(
        shape, p.map, count,
        static_cast<const T*>(p.input) + walk.image * p.map.image_stride + start * p.map.stride[2],
        tile_data);
    int label[1];
    labels_of(p, target, label, bad);
    barrier();

    const Team owner(shape.classes, shape.team_shift,
                     rematerialized(int(thread()) & (shape.team - 1)));
    const auto present = [&](int i) { return i < Variant::kLeast || i < owner.owned; };
    T* const classes = tile_data + pixel * shape.pixel_pitch;
    T* const mine = classes + owner.part * shape.class_pitch;
    const int step = shape.class_pitch << shape.team_shift;
    A value[K][1], maximum[1];
    SoftmaxTerms<A> softmax[1];
#pragma unroll
    for (int i = 0; i < K; i++) value[i][0] = -kInfinity<A>;
    if (inside) {
#pragma unroll
      for (int i = 0; i < K; i++) {
        if (present(i)) value[i][0] = to_accumulate(mine[i * step]);
      }
    }
    adjust_logits<Variant::kVariation>(p.adjustment, constants, owner, label, value);
    largest_logit(owner, value, maximum);
    softmax[0].target_shifted =
        label[0] < 0
            ? A(0)
            : adjusted<Variant::kVariation>(p.adjustment, constants,
                                            to_accumulate(classes[label[0] * shape.class_pitch]),
                                            label[0], label[0]) -
                  maximum[0];
    softmax_in_place(labels, owner, maximum, value, softmax);

    const PixelTerms<A> terms = pixel_terms<Variant::kVariation>(
        p, constants, walk.image, label[0], softmax[0], pixel_weight[0], upstream[0]);
    if (inside && owner.part == 0) {
      sum += double(terms.loss);
      if (p.loss) static_cast<A*>(p.loss)[index] = terms.loss;
      if (p.grad_pixel_weight) {
        static_cast<A*>(p.grad_pixel_weight)[index] = terms.weight_gradient;
      }
    }
    if (!p.grad_input) continue;
    clear_ignored(label, softmax, value);
    warp_sync();  // the team has read the target's logit
    if (inside) {
#pragma unroll
      for (int i = 0; i < K; i++) {
        if (present(i)) {
          mine[i * step] =
              from_accumulate<T>(logit_gradient(labels, terms, value[i][0], owner.class_of(i)));
        }
      }
      // Once more the labelled class, by the thread that has it.
      if (label[0] >= 0 && (label[0] & (shape.team - 1)) == owner.part) {
        classes[label[0] * shape.class_pitch] = from_accumulate<T>(
            target_gradient(labels, terms, exponential(softmax[0].target_shifted), label[0]));
      }
    }
    barrier();
    Variant::store(shape, p.grad_map, count, tile_data,
                   static_cast<T*>(p.grad_input) + walk.image * p.grad_map.image_stride +
                       start * p.grad_map.stride[2]);
  }
  // report: end
  bad.report(p.bad_target);
  store_partial(p, sum);
}

// ---- strided ----

template <class T>
__global__ void __launch_bounds__(Policy::kStridedThreads, sizeof(T) > 4 ? 1 : 3)
    cross_entropy_strided_kernel(const CrossEntropyParams p, const LossWork work,
                                 const Divisor pixels_of_image, const PixelOffset offset,
                                 const PixelOffset grad_offset) {
  using A = accumulate_t<T>;
  const Constants<A> constants(p, work.shares);
  const int64_t classes = p.map.classes, pixels = p.map.images * p.map.pixels;
  double sum = 0;
  BadTarget bad;
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    if (index >= pixels) continue;
    int64_t pixel;
    const int64_t image = pixels_of_image.divide(index, pixel);
    const T* logits = static_cast<const T*>(p.input) + image * p.map.image_stride + offset(pixel);
    int label[1];
    load_labels(p, index, label, bad);
    const bool valid = label[0] >= 0;
    const auto logit_of = [&](int64_t c) {
      return adjusted<kNoisy>(p.adjustment, constants,
                              to_accumulate(logits[c * p.map.class_stride]), int(c), label[0],
                              index);
    };
    SoftmaxTerms<A> terms_of_softmax{};
    A maximum = 0, pixel_weight = 1, upstream = 1;
    if (valid) {
      const auto online = online_softmax<A>(classes, logit_of);
      maximum = online.maximum;
      terms_of_softmax.sum = online.sum;
      terms_of_softmax.target_shifted = logit_of(label[0]) - maximum;
      if (constants.smooths()) {
        for (int64_t c = 0; c < classes; c++) {
          const A b = constants.smoothing(int(c));
          terms_of_softmax.smooth_total += b;
          terms_of_softmax.smooth_dot += b * (logit_of(c) - maximum);
        }
      }
      pixel_weight = load_factors<1, A>(p.pixel_weight, index)[0];
      upstream = load_factors<1, A>(upstream_map(p), index)[0];
    }
    const PixelTerms<A> terms = pixel_terms<kNoisy>(p, constants, image, label[0], terms_of_softmax,
                                                    pixel_weight, upstream);
    sum += double(terms.loss);
    if (p.loss) static_cast<A*>(p.loss)[index] = terms.loss;
    if (p.grad_pixel_weight) static_cast<A*>(p.grad_pixel_weight)[index] = terms.weight_gradient;
    if (p.grad_input) {
      T* gradient =
          static_cast<T*>(p.grad_input) + image * p.grad_map.image_stride + grad_offset(pixel);
#pragma unroll 4
      for (int64_t c = 0; c < classes; c++) {
        const A exponential = valid ? math::exp_nonpositive(logit_of(c) - maximum) : A(0);
        const A g = logit_gradient(constants, terms, exponential, int(c));
        gradient[c * p.grad_map.class_stride] =
            from_accumulate<T>(c == label[0] ? g - terms.on_target : g);
      }
    }
  }
  bad.report(p.bad_target);
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
  const auto run = [&](auto variant) {
    launch(cross_entropy_planar_registers_kernel<T, decltype(variant)>, work.blocks,
           Policy::kPlanarThreads, 0, stream, p, work);
  };
  // A number of classes that has a kernel of its own, if there are vectors: false without.
  const auto run_exact = [&](auto bucket, auto loss_varies) {
    constexpr int K = bucket(), kLeast = largest_bucket_below(K, PlanarBuckets()) + 1;
    using Adjacent = AdjacentPixels<kPlanarWidth<K>>;
    return all_fit_vectors<T, Adjacent::kCount>(p) &&
           with_exact(p.map.classes, ExactClasses(), [&](auto classes) {
             constexpr int C = classes();
             // tuning
             if constexpr (kLeast <= C && C <= K) {
               run(PlanarVariant<Adjacent, C, C, loss_varies(), false>());
             }
           });
  };
  if (varies(p)) {
    bool launched = false;
    if (p.label_smoothing == 0) {
      with_bucket(work.bucket, PlanarBuckets(),
                  [&](auto bucket) { launched = run_exact(bucket, Variation<kVaried>()); });
    }
    return launched || with_bucket(p.map.classes, VariedBuckets(), [&](auto bucket) {
             constexpr int K = bucket(), kLeast = largest_bucket_below(K, VariedBuckets()) + 1;
             using Spaced = SpacedPixels<kPlanarWidth<K>, Policy::kPlanarThreads>;
             run(PlanarVariant<Spaced, K, kLeast, kVaried, true>());
           });
  }
  return with_bucket(work.bucket, PlanarBuckets(), [&](auto bucket) {
    constexpr int K = bucket(), kLeast = largest_bucket_below(K, PlanarBuckets()) + 1;
    using Adjacent = AdjacentPixels<kPlanarWidth<K>>;
    using Spaced = SpacedPixels<kPlanarWidth<K>, Policy::kPlanarThreads>;
    if (run_exact(bucket, Variation<kPlain>())) return;
    if (all_fit_vectors<T, Adjacent::kCount>(p)) {
      run(PlanarVariant<Adjacent, K, kLeast, kPlain, false>());
    } else {
      run(PlanarVariant<Spaced, K, kLeast, kPlain, false>());
    }
  });
}

template <class T>
bool launch_staged(const CrossEntropyParams& p, const StoredWork& work, Stream stream) {
  const bool aligned = vectors_are_aligned(p.input, p.map, sizeof(T)) &&
                       (!p.grad_input || vectors_are_aligned(p.grad_input, p.grad_map, sizeof(T)));
  const ClassTile tile =
      make_class_tile<float[kMaxTileClasses]>(p.map, sizeof(T), Policy::kStagedThreads, aligned);
  const auto run = [&](auto variant) {
    launch(cross_entropy_staged_kernel<T, decltype(variant)>, work.blocks, Policy::kStagedThreads,
           tile.shared_bytes, stream, p, work, tile);
  };
  const auto run_exact = [&](auto layout, auto exact_classes, auto loss_varies) {
    return p.map.layout == layout() && with_exact(p.map.classes, exact_classes, [&](auto classes) {
             constexpr int C = classes();
             // planar_registers has the others.
             // tuning
             if constexpr (layout() == Layout::channels_last || C > kMaxClassesOfThread) {
               using Tile = ExactTile<T, layout(), C, Policy::kStagedThreads>;
               run(ExactStaged<Tile, loss_varies()>());
             }
           });
  };
  const auto run_any_exact = [&](auto exact_classes, auto loss_varies) {
    using Planar = std::integral_constant<Layout, Layout::planar>;
    using ChannelsLast = std::integral_constant<Layout, Layout::channels_last>;
    return run_exact(Planar(), exact_classes, loss_varies) ||
           run_exact(ChannelsLast(), exact_classes, loss_varies);
  };
  if (aligned && p.label_smoothing == 0 &&
      (varies(p) ? run_any_exact(ExactVariedTiles(), Variation<kVaried>())
                 : run_any_exact(ExactClasses(), Variation<kPlain>()))) {
    return true;
  }
  return with_bucket(work.bucket, StagedBuckets(), [&](auto bucket) {
    constexpr int K = bucket(), kLeast = largest_bucket_below(K, StagedBuckets());
    if (varies(p)) {
      run(GeneralStaged<K, kLeast, kVaried>());
    } else {
      run(GeneralStaged<K, kLeast, kPlain>());
    }
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
