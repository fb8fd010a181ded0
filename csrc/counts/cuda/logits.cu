// Counts behind metrics on a GPU, from one read of the logits or probabilities.
//
// A pixel's classes come down to its prediction and the sums that the scores of math/counts.h need.
// Then it is counted in tables (tables.h), and its scores are summed in registers.
//
//   planar_registers  a thread owns V pixels and all of their at most 32 classes
//   staged            a tile goes through shared memory; up to 16 threads share a pixel's classes
//   interpolated      a thread a pixel of the target, blending its values from their neighbours
//                     in memory; warps share the classes where these are many
//   strided           a thread a pixel, the classes read twice: whatever the others do not take,
//                     interpolated or not
#include <type_traits>

#include "../../common/device/class_tile.h"
#include "../../common/device/integer.h"
#include "../../common/device/interpolation.h"
#include "../../common/device/labels.h"
#include "../../common/device/warp_team.h"
#include "../../common/device/work.h"
#include "kernels.h"
#include "tables.h"

namespace segunc::cuda {
namespace {

using namespace counting;

// ---- Launch policy ----

// Derived from machine code and occupancy, not yet measured on a GPU.
//
// Instructions are the budget. At the bandwidth of a copy an H200 issues 27 for an fp32 logit that
// is read, all of its slots used, and 14 for a bf16 one. With int64 targets and the tables of
// confusion, calibration and scores, planar_registers takes on sm_90 (fp32 / bf16)
//   15.8 / 16.9  with 19 classes, in at most 80 registers, so that 768 threads are resident
//   18.6 / 20.2  with 17, where the compiler does not know their number
//   17.1 / 18.8  with 19, where pixels are no aligned vectors, either
// 9 or 10 of which are a logit's, the rest a pixel's.
//
// Interpolated values come from the caches; blending them takes four loads and three
// interpolations, more instructions than counting them.
struct Policy {                                     // tuning
  static constexpr int kTileThreads = 128;          // of planar_registers and staged
  static constexpr int kInterpolatedThreads = 256;  // at most
  static constexpr int kStridedThreads = 128;
};

// Instructions an element on sm_90.
// report: budget counts_planar_registers_kernel<float, *Adjacent*, 19, 19* 17
// report: budget counts_planar_registers_kernel<float, *Adjacent*, 20, 17* 20
// report: budget counts_planar_registers_kernel<float, *Spaced* 19
// report: budget counts_planar_registers_kernel<bfloat16, *Adjacent*, 19, 19* 18
// report: budget counts_planar_registers_kernel<bfloat16, *Adjacent*, 20, 17* 22
// report: budget counts_planar_registers_kernel<bfloat16, *Spaced* 21

// Pixels a thread of planar_registers: at most 64 values.
template <int K>
constexpr int kPlanarWidth = K <= 8 ? 4 : 2;  // tuning

// Resident blocks that the compiler has to leave registers for.
template <int Values>
constexpr int kPlanarBlocks = Values > 40 ? 4 : 5;  // tuning
// The same of blocks of kInterpolatedThreads.
template <int Values>
constexpr int kInterpolatedBlocks = Values > 8 ? 2 : 3;  // tuning

using AdjacentBuckets = std::integer_sequence<int, 4, 8, 16, 20, 24, 32>;  // tuning
using SpacedBuckets = std::integer_sequence<int, 8, 20, 32>;               // tuning
using ExactClasses = std::integer_sequence<int, 19, 21>;       // with planar_registers of their own
using StagedBuckets = std::integer_sequence<int, 16, 20, 32>;  // tuning
using InterpolatedBuckets = std::integer_sequence<int, 8, 20, 24, 32>;  // tuning

// ---- A pixel ----

// A thread's share of the scores.
struct ScoreSums {
  int64_t brier = 0, negative_log = 0;
  int pixels = 0, defined = 0, possible = 0;

  // A pixel, if it counts.
  template <class A>
  SEGUNC_DEVICE void add(bool counts, const math::PixelScores<A>& pixel) {
    const bool is_defined = counts && math::has_scores(pixel);
    const bool is_possible = is_defined && math::is_finite_likelihood(pixel.negative_log);
    if (counts) pixels++;
    if (is_defined) defined++;
    if (is_possible) possible++;
    brier += is_defined ? math::to_fixed<int32_t>(pixel.brier) : 0;
    negative_log += is_possible ? math::to_fixed(pixel.negative_log) : 0;
  }

  // The whole warp takes part.
  SEGUNC_DEVICE void add_to_state(int64_t* scores) const {
    const int64_t values[kScores] = {pixels, brier, negative_log, defined - possible,
                                     pixels - defined};
#pragma unroll
    for (int i = 0; i < kScores; i++) {
      const int64_t sum = warp_sum(values[i]);
      if (lane() == 0) add_unless_zero(scores + i, sum);
    }
  }
};

// What a pixel's classes come down to.
template <class A>
struct ClassSums {
  A maximum, others, squares;  // the sums are over the classes but the target
  A moved;  // exponentials are e^moved times those of the differences from the maximum
  int best;
};

SEGUNC_DEVICE bool needs_sums(const CountsParams& p) {
  return p.tables.calibration || p.tables.scores;
}

SEGUNC_DEVICE float target_exponential(float shifted) { return exponential(shifted); }
SEGUNC_DEVICE double target_exponential(double shifted) { return math::exp_nonpositive(shifted); }

// target: the value of the label's class.
template <class A>
SEGUNC_DEVICE math::PixelScores<A> scores_of(const CountsParams& p, const ClassSums<A>& classes,
                                             A target) {
  if (p.probabilities) {
    // report: rare
    return math::scores_of_probabilities(classes.others, classes.squares, target, classes.maximum);
  }
  const A shifted = target - classes.maximum + classes.moved;
  const A sum = classes.others + target_exponential(shifted), largest = A(1) + classes.moved;
  return math::scores_of_logits(classes.others, classes.squares, shifted, largest,
                                inverse_of_sum(sum), log_of_sum(sum));
}

// All that is counted of V pixels; threads that share a pixel count it once, the others bring
// kOutside. The whole warp takes part. index_of: a pixel's among all.
template <int V, class A, class Index>
SEGUNC_DEVICE void count_pixels(const CountsParams& p, const Counting<A>& to, uint32_t* words,
                                Index index_of, const int (&label)[V],
                                const ClassSums<A> (&classes)[V], const A (&target)[V],
                                ScoreSums& scores) {
  int best[V];
#pragma unroll
  for (int j = 0; j < V; j++) best[j] = classes[j].best;
  count_predictions(to, words, index_of, label, best);
  if (!needs_sums(p)) return;
  math::PixelScores<A> pixel[V];
  A confidence[V];
#pragma unroll
  for (int j = 0; j < V; j++) {
    pixel[j] = scores_of(p, classes[j], target[j]);
    confidence[j] = pixel[j].confidence;
  }
  if (to.state.calibration) count_confidences(to, words, label, best, confidence);
  if (!to.state.scores) return;
#pragma unroll
  for (int j = 0; j < V; j++) scores.add(label[j] >= 0, pixel[j]);
}

// Owners that can also agree on the lowest class, and tell which of their registers a label is.
struct Pixel : Alone {
  using Alone::Alone;
  SEGUNC_DEVICE int lowest(int label) const { return label; }
  SEGUNC_DEVICE int register_of(int label) const { return label; }
};
struct PixelWarps : WarpTeam {
  using WarpTeam::WarpTeam;
  SEGUNC_DEVICE int lowest(int label) const {
    return reduce(label, [](int a, int b) { return smaller(a, b); });
  }
  SEGUNC_DEVICE int register_of(int label) const { return label - first; }
};
struct PixelTeam : Team {
  int shift;

  SEGUNC_DEVICE PixelTeam(int classes, int size_log2, int part)
      : Team(classes, size_log2, part), shift(size_log2) {}
  SEGUNC_DEVICE int lowest(int label) const {
    // report: trips log2(team)
    for (int distance = size / 2; distance > 0; distance /= 2) {
      label = smaller(label, shuffle_xor(kFullMask, label, distance));
    }
    return label;
  }
  SEGUNC_DEVICE int register_of(int label) const {
    return (label & (size - 1)) == part ? label >> shift : -1;
  }
};

// Values, logits in place to exponentials. Classes beyond the owned ones, of which there are Least
// at least, hold -inf.
template <int Least, int K, int V, class Owner>
SEGUNC_DEVICE void reduce_classes(const CountsParams& p, const Owner& owner, const int (&label)[V],
                                  float (&value)[K][V], ClassSums<float> (&classes)[V]) {
  float maximum[V];
  int best[V];
#pragma unroll
  for (int j = 0; j < V; j++) {
    maximum[j] = -kInfinity<float>;
    best[j] = 0x7fffffff;
  }
#pragma unroll
  for (int i = 0; i < K; i++) {
#pragma unroll
    for (int j = 0; j < V; j++) maximum[j] = larger(value[i][j], maximum[j]);  // never NaN
  }
#pragma unroll
  for (int j = 0; j < V; j++) maximum[j] = owner.maximum(maximum[j]);
#pragma unroll
  for (int i = K - 1; i >= 0; i--) {
#pragma unroll
    for (int j = 0; j < V; j++) {
      if (value[i][j] == maximum[j]) best[j] = owner.class_of(i);
    }
  }
#pragma unroll
  for (int j = 0; j < V; j++) {
    best[j] = owner.lowest(best[j]);
    // A pixel of nothing but NaN has class 0.
    classes[j] = {maximum[j], 0, 0, 0, best[j] < int(p.map.classes) ? best[j] : 0};
  }
  if (!needs_sums(p)) return;
  if (p.probabilities) {
    // report: begin rare
#pragma unroll
    for (int i = Least; i < K; i++) {
#pragma unroll
      for (int j = 0; j < V; j++) value[i][j] = i < owner.owned ? value[i][j] : 0;
    }
    // report: end
  } else {
    float moved[V];
    exponentials_in_place(value, maximum, moved);
#pragma unroll
    for (int j = 0; j < V; j++) classes[j].moved = moved[j];
  }
#pragma unroll
  for (int j = 0; j < V; j++) {
    const int target = owner.register_of(label[j]);
#pragma unroll
    for (int i = 0; i < K; i++) {
      if (i == target) continue;
      classes[j].others += value[i][j];
      classes[j].squares += value[i][j] * value[i][j];
    }
    classes[j].others = owner.sum(classes[j].others);
    classes[j].squares = owner.sum(classes[j].squares);
  }
}

template <class A>
SEGUNC_DEVICE void finish_block(const Counting<A>& to, const uint32_t* words,
                                const ScoreSums& scores) {
  if (to.state.scores) scores.add_to_state(to.state.scores);
  add_to_state(to, words);
}

// ---- planar_registers ----

// What the compiler knows of a launch: the pixels of a thread, the registers for their classes and
// how many of these are always in use.
template <class ThreadPixels, int Classes, int Least>
struct PlanarVariant {
  using Pixels = ThreadPixels;
  static constexpr int kClasses = Classes, kLeast = Least, kValues = Classes * Pixels::kCount;
};

template <class T, class Variant>
__global__ void __launch_bounds__(Policy::kTileThreads, kPlanarBlocks<Variant::kValues>)
    counts_planar_registers_kernel(const CountsParams p, const Work work,
                                   const Counting<float> to) {
  using Pixels = typename Variant::Pixels;
  constexpr int K = Variant::kClasses, V = Pixels::kCount;
  uint32_t* const words = dynamic_shared<uint32_t>();
  clear_words(words, to.shared.words);
  const Pixel owner{int(p.map.classes)};
  const auto present = [&](int c) { return c < Variant::kLeast || c < owner.owned; };
  const T absent = from_accumulate<T>(-kInfinity<float>);
  ScoreSums scores;
  BadTarget bad;
  // report: hot C * V
  for (TileWalk walk(work); walk.image < p.map.images; walk.advance(work)) {
    const int64_t start = int64_t(walk.tile) * (Policy::kTileThreads * V);
    const int count = tile_pixels(work.tile, p.map.pixels - start);
    // A thread without pixels reads the tile's first ones.
    const bool inside = Pixels::first(int(thread())) < count;
    const int at = inside ? Pixels::first(int(thread())) : 0;
    const Pixels pixels(count - at);
    const int64_t first = walk.image * p.map.pixels + start + at;

    // All that is read is on its way before anything waits.
    int64_t target[V];
    load_targets(p, pixels, first, target);
    const unsigned class_stride = rematerialized(unsigned(p.map.class_stride));
    const T* logits = static_cast<const T*>(p.input) + walk.image * p.map.image_stride + start + at;
    Vector<T, V> raw[K];
    load_classes(pixels, logits, class_stride, absent, present, raw);
    int label[V];
    labels_of(p, target, label, bad);
    // The line is on its way to the cache: cheaper than a comparison for every class.
    float target_value[V], value[K][V];
#pragma unroll
    for (int j = 0; j < V; j++) {
      target_value[j] =
          label[j] < 0
              ? 0
              : to_accumulate(logits[product(label[j], class_stride) + pixels.distance(j)]);
      if (!inside || !pixels.has(j)) label[j] = kOutside;
    }
#pragma unroll
    for (int c = 0; c < K; c++) {
      const Vector<float, V> widened = to_accumulates(raw[c]);
#pragma unroll
      for (int j = 0; j < V; j++) value[c][j] = widened[j];
    }
    ClassSums<float> classes[V];
    reduce_classes<Variant::kLeast>(p, owner, label, value, classes);
    const auto index_of = [&](int j) { return first + pixels.distance(j); };
    count_pixels(p, to, words, index_of, label, classes, target_value, scores);
  }
  // report: end
  bad.report(p.bad_target);
  finish_block(to, words, scores);
}

// ---- staged ----

template <class T, int K>
__global__ void __launch_bounds__(Policy::kTileThreads, 5)
    counts_staged_kernel(const CountsParams p, const Work work, const Counting<float> to,
                         const ClassTile shape, const int tile_words) {
  uint32_t* const words = dynamic_shared<uint32_t>() + tile_words;
  T* const tile_data = dynamic_shared<T>();
  clear_words(words, to.shared.words);
  const int pixel = int(thread()) >> shape.team_shift;
  ScoreSums scores;
  BadTarget bad;
  // report: hot C / team
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t start;
    const int64_t image = work.tiles_per_image.divide(tile, start);
    start *= work.tile;
    const int count = tile_pixels(work.tile, p.map.pixels - start);
    const int64_t index = image * p.map.pixels + start + pixel;
    const bool inside = pixel < count;

    barrier();  // the tile before may still be in use
    load_tile(shape, p.map, count,
              static_cast<const T*>(p.input) + image * p.map.image_stride + start * p.map.stride[2],
              tile_data);
    int label[1] = {kOutside};
    if (inside) load_labels(p, index, label, bad);
    barrier();

    const PixelTeam owner(shape.classes, shape.team_shift,
                          rematerialized(int(thread()) & (shape.team - 1)));
    const T* const of_pixel = tile_data + pixel * shape.pixel_pitch;
    const T* const mine = of_pixel + owner.part * shape.class_pitch;
    const int step = rematerialized(shape.class_pitch << shape.team_shift);
    float value[K][1];
    ClassSums<float> classes[1];
#pragma unroll
    for (int i = 0; i < K; i++) {
      value[i][0] = inside && i < owner.owned ? to_accumulate(mine[i * step]) : -kInfinity<float>;
    }
    reduce_classes<0>(p, owner, label, value, classes);
    const float target = label[0] >= 0 ? to_accumulate(of_pixel[label[0] * shape.class_pitch]) : 0;
    count_pixels<1>(
        p, to, words, [&](int) { return index; }, {owner.part == 0 ? label[0] : kOutside}, classes,
        {target}, scores);
  }
  // report: end
  bad.report(p.bad_target);
  finish_block(to, words, scores);
}

// ---- interpolated ----

template <class T, int K>
__global__ void __launch_bounds__(Policy::kInterpolatedThreads, kInterpolatedBlocks<K>)
    counts_interpolated_kernel(const CountsParams p, const Work work, const Counting<float> to,
                               const InterpolatedPixels<float> pixels, const WarpTeams teams) {
  SEGUNC_SHARED(told, WarpTeam::Words);
  uint32_t* const words = dynamic_shared<uint32_t>();
  clear_words(words, to.shared.words);
  const PixelWarps owner(teams, told);
  const T* const data = static_cast<const T*>(p.input);
  ScoreSums scores;
  BadTarget bad;
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t pixel;
    const int64_t image = work.tiles_per_image.divide(tile, pixel);
    pixel = pixel * work.tile + owner.pixel();
    const int64_t index = image * pixels.count + pixel;
    const bool inside = pixel < pixels.count;
    int label[1] = {kOutside};
    if (inside) load_labels(p, index, label, bad);
    const int64_t class_stride = rematerialized(p.map.class_stride);
    const auto blended = pixels.at(image, pixel);
    float value[K][1];
    load_logits(blended, data + owner.first * class_stride, class_stride, inside ? owner.owned : 0,
                value);
    ClassSums<float> classes[1];
    reduce_classes<0>(p, owner, label, value, classes);
    const bool counts = owner.leads() && label[0] >= 0;
    const float target = counts ? blended.logit(data + label[0] * class_stride) : 0;
    count_pixels<1>(
        p, to, words, [&](int) { return index; }, {owner.leads() ? label[0] : kOutside}, classes,
        {target}, scores);
  }
  bad.report(p.bad_target);
  finish_block(to, words, scores);
}

// ---- strided ----

template <class T, class Pixels>
__global__ void __launch_bounds__(Policy::kStridedThreads, 4)
    counts_strided_kernel(const CountsParams p, const Work work, const Counting<accumulate_t<T>> to,
                          const Divisor pixels_of_image, const Pixels pixels) {
  using A = accumulate_t<T>;
  uint32_t* const words = dynamic_shared<uint32_t>();
  clear_words(words, to.shared.words);
  const int64_t count = p.map.classes, class_stride = p.map.class_stride;
  ScoreSums scores;
  BadTarget bad;
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    int label[1] = {kOutside};
    if (index < work.pixels) load_labels(p, index, label, bad);
    ClassSums<A> of_pixel[1] = {{-kInfinity<A>, 0, 0, 0, 0}};
    ClassSums<A>& classes = of_pixel[0];
    A target = 0;
    if (label[0] >= 0) {
      int64_t in_image;
      const int64_t image = pixels_of_image.divide(index, in_image);
      const auto pixel = pixels.at(image, in_image);
      const auto value_of = [&](int64_t c) {
        return pixel.logit(static_cast<const T*>(p.input) + c * class_stride);
      };
      target = value_of(label[0]);
      bool found = false;
#pragma unroll 4
      for (int64_t c = 0; c < count; c++) {
        const A v = value_of(c);
        // The first of equals stays, -inf among them; NaN is never taken.
        if (v > classes.maximum || (!found && v == classes.maximum)) {
          classes.maximum = v;
          classes.best = int(c);
          found = true;
        }
      }
      if (needs_sums(p)) {
#pragma unroll 4
        for (int64_t c = 0; c < count; c++) {
          A v = value_of(c);
          if (!p.probabilities) v = math::exp_nonpositive(v - classes.maximum);
          if (c == label[0]) v = A(0);
          classes.others += v;
          classes.squares += v * v;
        }
      }
    }
    count_pixels<1>(p, to, words, [&](int) { return index; }, label, of_pixel, {target}, scores);
  }
  bad.report(p.bad_target);
  finish_block(to, words, scores);
}

// ---- launch and dispatch ----

// Whether every V neighbouring pixels are one aligned vector of logits and of targets.
template <class T, int V>
bool pixels_fit_vectors(const CountsParams& p) {
  return fits_vectors<T, V>(p.input, p.map) && fits_vectors<V>(p.target, p.target_type);
}

// Whether the classes were few enough.
template <class T>
bool launch_counts_planar_registers(const CountsParams& p, const Counting<float>& to,
                                    Stream stream) {
  const auto run = [&](auto variant) {
    using Variant = decltype(variant);
    const Work work =
        make_work(p.map.images, p.map.pixels,
                  int64_t(Policy::kTileThreads) * Variant::Pixels::kCount, TablePolicy::kMaxBlocks);
    launch(counts_planar_registers_kernel<T, Variant>, work.blocks, Policy::kTileThreads,
           to.shared.words * sizeof(uint32_t), stream, p, work, to);
  };
  return with_bucket(p.map.classes, AdjacentBuckets(), [&](auto bucket) {
    constexpr int K = bucket(), kLeast = largest_bucket_below(K, AdjacentBuckets()) + 1;
    using Adjacent = AdjacentPixels<kPlanarWidth<K>>;
    if (!pixels_fit_vectors<T, Adjacent::kCount>(p)) {
      with_bucket(p.map.classes, SpacedBuckets(), [&](auto spaced_bucket) {
        constexpr int S = spaced_bucket(), kSpacedLeast = largest_bucket_below(S, SpacedBuckets());
        run(PlanarVariant<SpacedPixels<kPlanarWidth<S>, Policy::kTileThreads>, S,
                          kSpacedLeast + 1>());
      });
    } else if (!with_exact(p.map.classes, ExactClasses(), [&](auto classes) {
                 constexpr int C = classes();
                 if constexpr (kLeast <= C && C <= K) run(PlanarVariant<Adjacent, C, C>());
               })) {
      run(PlanarVariant<Adjacent, K, kLeast>());
    }
  });
}

template <class T, int K>
void launch_counts_staged(const CountsParams& p, const Counting<accumulate_t<T>>& to,
                          Stream stream) {
  const bool aligned = vectors_are_aligned(p.input, p.map, sizeof(T));
  const ClassTile tile = make_class_tile(p.map, sizeof(T), Policy::kTileThreads, aligned);
  const Work work = make_work(p.map.images, p.map.pixels, tile.pixels, TablePolicy::kMaxBlocks);
  const int tile_words = int(divide_up(tile.shared_bytes, sizeof(uint32_t)));
  launch(counts_staged_kernel<T, K>, work.blocks, Policy::kTileThreads,
         (tile_words + to.shared.words) * sizeof(uint32_t), stream, p, work, to, tile, tile_words);
}

// Whether the classes were few enough.
template <class T>
bool launch_counts_interpolated(const CountsParams& p, const Counting<float>& to, Stream stream) {
  const InterpolatedPixels<float> pixels(p.map, p.interpolation);
  if (pixels.count < kMinTiledPixels) return false;
  return with_warp_teams(p, InterpolatedBuckets(), TablePolicy::kMaxBlocks,
                         [&](auto bucket, const Work& work, const WarpTeams& teams) {
                           launch(counts_interpolated_kernel<T, bucket()>, work.blocks,
                                  teams.threads(), to.shared.words * sizeof(uint32_t), stream, p,
                                  work, to, pixels, teams);
                         });
}

template <class T>
void launch_counts(const CountsParams& p, Stream stream) {
  const ClassMap& map = p.map;
  const auto to = make_counting<accumulate_t<T>>(p, map.classes);
  bool done = false;
  if constexpr (!std::is_same_v<T, double>) {
    if (p.interpolation.used) done = launch_counts_interpolated<T>(p, to, stream);
    const bool tiled = !p.interpolation.used && map.layout != Layout::strided &&
                       map.pixels >= kMinTiledPixels && map.classes <= kMaxTileClasses &&
                       has_short_strides(map);
    if (tiled && map.layout == Layout::planar && map.classes <= kMaxClassesOfThread) {
      done = launch_counts_planar_registers<T>(p, to, stream);
    } else if (tiled) {
      done = with_bucket(classes_of_tile_thread(map.classes), StagedBuckets(),
                         [&](auto bucket) { launch_counts_staged<T, bucket()>(p, to, stream); });
    }
  }
  if (done) return;
  with_pixels<accumulate_t<T>>(p, [&](auto pixels) {
    const Work work =
        make_work(1, map.images * pixels.count, Policy::kStridedThreads, TablePolicy::kMaxBlocks);
    launch(counts_strided_kernel<T, decltype(pixels)>, work.blocks, Policy::kStridedThreads,
           to.shared.words * sizeof(uint32_t), stream, p, work, to, Divisor(pixels.count), pixels);
  });
}

}  // namespace

void counts(const CountsParams& params, Stream stream) {
  CountsParams p = params;
  if (!p.interpolation.used && is_one_image(p.map)) merge_images(p.map);
  if (is_empty(p.map)) return;
  with_dtype("counts", p.dtype, [&](auto t) { launch_counts<decltype(t)>(p, stream); });
}

}  // namespace segunc::cuda
