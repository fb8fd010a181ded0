// planar_registers: a thread owns V pixels of planar logits and all of their at most 32 classes.
// What the kernels of the sums and of the gradient share.
//
// A pixel's exponentials stay in registers, so the logits are read once. What is the same for a
// launch and costs more than an instruction a pixel is known to the compiler: how pixels move and,
// where many networks have it, the number of classes.
#pragma once
#include "pixel.h"
#include "sums.h"

namespace segunc::cuda {

struct PlanarPolicy {  // tuning
  static constexpr int kPlanarThreads = 128;
  static constexpr int kWidth = 2;  // pixels a thread
  static constexpr int kTile = kPlanarThreads * kWidth;
  // A row of sums each, but enough for half a dozen waves.
  static constexpr int64_t kMaxSumsBlocks = at_scale(4096);
  static constexpr int64_t kMaxGradientBlocks = at_scale(8192);
};

// Classes that there are registers for. More than 24 are too rare for kernels of their own where
// pixels are aligned vectors.
using AdjacentBuckets = std::integer_sequence<int, 4, 8, 16, 24>;  // tuning
using SpacedBuckets = std::integer_sequence<int, 8, 24, 32>;       // tuning
using ExactClasses = std::integer_sequence<int, 2, 19>;            // with kernels of their own
constexpr int kMaxPlanarClasses = 32;

// What the compiler knows of a launch: the pixels of a thread, the registers for their classes and
// how many of these are always in use.
template <class ThreadPixels, int Classes, int Least>
struct PlanarVariant {
  using Pixels = ThreadPixels;
  static constexpr int kClasses = Classes, kLeast = Least;
};

// Whether planar_registers takes the pixels; how they are aligned plays no part. Smoothed labels
// would take registers and code from all others.
inline bool takes_planar_registers(const DiceParams& p) {
  const auto fits = [](const ClassMap& map) {
    return map.layout == Layout::planar && has_short_strides(map);
  };
  return !p.interpolation.used && p.label_smoothing == 0 && p.dtype != Dtype::f64 && fits(p.map) &&
         (!p.grad_input || fits(p.grad_map)) && p.map.classes > 0 &&
         p.map.classes <= kMaxPlanarClasses && p.map.pixels >= kMinTiledPixels;
}

inline ImageWork make_planar_work(const DiceParams& p, int64_t max_blocks) {
  return make_image_work(p.map.images, p.map.pixels, PlanarPolicy::kTile, max_blocks);
}

// Whether the neighbouring pixels of a thread are one aligned vector in every array.
template <class T>
bool pixels_fit_vectors(const DiceParams& p) {
  constexpr int V = PlanarPolicy::kWidth;
  const auto factors_fit = [](const void* factors) {
    return is_vector_aligned(factors, V * sizeof(float));
  };
  return fits_vectors<T, V>(p.input, p.map) && fits_vectors<V>(p.target, p.target_type) &&
         (!p.grad_input || fits_vectors<T, V>(p.grad_input, p.grad_map)) &&
         factors_fit(p.pixel_weight) && factors_fit(p.grad_pixel_weight);
}

// Calls run(Variant()) with that of the launch.
template <class T, class Run>
void with_planar_variant(const DiceParams& p, Run run) {
  using Adjacent = AdjacentPixels<PlanarPolicy::kWidth>;
  using Spaced = SpacedPixels<PlanarPolicy::kWidth, PlanarPolicy::kPlanarThreads>;
  const auto run_adjacent = [&] {
    return with_exact(p.map.classes, ExactClasses(),
                      [&](auto c) { run(PlanarVariant<Adjacent, c(), c()>()); }) ||
           with_bucket(p.map.classes, AdjacentBuckets(), [&](auto bucket) {
             constexpr int K = bucket(), kLeast = largest_bucket_below(K, AdjacentBuckets()) + 1;
             run(PlanarVariant<Adjacent, K, kLeast>());
           });
  };
  if (pixels_fit_vectors<T>(p) && run_adjacent()) return;
  with_bucket(p.map.classes, SpacedBuckets(), [&](auto bucket) {
    constexpr int K = bucket(), kLeast = largest_bucket_below(K, SpacedBuckets()) + 1;
    run(PlanarVariant<Spaced, K, kLeast>());
  });
}

// A thread's pixels.
template <int K, int V>
struct PlanarPixels {
  int label[V];
  Vector<float, V> weight;
  float exponential[K][V];
  math::SoftmaxTerms<float> softmax[V];
};

// logits: of class 0 and the first pixel. index: of that pixel among all.
template <class Variant, class T, class Bad, int K, int V>
SEGUNC_DEVICE void load_pixels(const DiceParams& p, const typename Variant::Pixels& pixels,
                               const T* logits, int64_t index, Bad& bad, PlanarPixels<K, V>& of) {
  const Alone owner{int(p.map.classes)};
  const auto present = [&](int c) { return c < Variant::kLeast || c < owner.owned; };
  // All that is read is on its way before anything waits.
  int64_t target[V];
  load_targets(p, pixels, index, target);
  of.weight = load_factors<float>(pixels, p.pixel_weight, index);
  // 32 bits: a product with a constant and the sum with a pointer are one instruction.
  const unsigned class_stride = rematerialized(unsigned(p.map.class_stride));
  Vector<T, V> raw[K];
  load_classes(pixels, logits, class_stride, from_accumulate<T>(-kInfinity<float>), present, raw);
  labels_of(p, target, of.label, bad);
  // The line is on its way to the cache: cheaper than a comparison for every class.
  float labelled[V], maximum[V], moved[V];
#pragma unroll
  for (int j = 0; j < V; j++) {
    labelled[j] =
        of.label[j] < 0
            ? 0.f
            : to_accumulate(logits[product(of.label[j], class_stride) + pixels.distance(j)]);
  }
#pragma unroll
  for (int c = 0; c < K; c++) {
    const Vector<float, V> widened = to_accumulates(raw[c]);
#pragma unroll
    for (int j = 0; j < V; j++) of.exponential[c][j] = widened[j];
  }
  largest_logit(owner, of.exponential, maximum);
#pragma unroll
  for (int j = 0; j < V; j++) of.softmax[j] = {0.f, labelled[j] - maximum[j], 0.f, 0.f};
  exponentials_in_place(of.exponential, maximum, moved);
#pragma unroll
  for (int j = 0; j < V; j++) {
    of.softmax[j].target_shifted += moved[j];
#pragma unroll
    for (int c = 0; c < K; c++) of.softmax[j].sum += of.exponential[c][j];
  }
}

// What an ignored pixel, or one whose target is no class, has instead.
SEGUNC_DEVICE float if_valid(int label, float value) {
  return label >= 0 ? value : label == kOutOfRange ? kNaN<float> : 0.f;
}

// A pixel's cross-entropy, without its weight.
SEGUNC_DEVICE float cross_entropy_of(const DiceShares<float>& shares, int label,
                                     const math::SoftmaxTerms<float>& softmax) {
  const float on_target = label >= 0 ? shares.on_target(label) : 0.f;
  return math::cross_entropy(on_target, softmax, log_of_sum(softmax.sum));
}

// The kernels, of pixels that planar_registers takes.
void launch_planar_sums(const DiceParams& params, const SumsWork& work, Stream stream);
void launch_planar_gradient(const DiceParams& params, const ImageWork& work, Stream stream);

}  // namespace segunc::cuda
