// Counts behind metrics on a GPU, from one read of the logits or probabilities.
//
// A pixel's classes come down to its prediction and the sums that the scores of math/counts.h need.
// Then it is counted in tables (tables.h), and its scores are summed in registers.
//
//   planar_registers  a thread owns V neighbouring pixels and all of their at most 32 classes
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

// Derived from occupancy, not yet measured on a GPU. Interpolated values come from the caches;
// blending them takes four loads and three interpolations, more instructions than counting them.
struct Policy {
  static constexpr int kTileThreads = 128;          // of planar_registers and staged
  static constexpr int kInterpolatedThreads = 256;  // at most
  static constexpr int kStridedThreads = 128;
};

// Instructions an element on sm_90.
// report: budget counts_planar_registers_kernel<float, 20, 2*> 45
// report: budget counts_planar_registers_kernel<bfloat16, 20, 2*> 47

// Pixels a thread of planar_registers: at most 64 values.
template <int K>
constexpr int kPlanarWidth = K <= 8 ? 4 : 2;

// Resident blocks that the compiler has to leave registers for.
template <int Values>
constexpr int kPlanarBlocks = Values > 40 ? 4 : 5;
// The same of blocks of kInterpolatedThreads.
template <int Values>
constexpr int kInterpolatedBlocks = Values > 8 ? 2 : 3;

using PlanarBuckets = std::integer_sequence<int, 4, 8, 16, 20, 24, 32>;
using NarrowBuckets = std::integer_sequence<int, 16, 32>;  // one pixel a thread
using StagedBuckets = std::integer_sequence<int, 16, 20, 32>;
using InterpolatedBuckets = std::integer_sequence<int, 4, 8, 16, 20, 24, 32>;

// ---- A pixel ----

// A thread's share of the scores.
struct ScoreSums {
  int64_t brier = 0, negative_log = 0;
  int pixels = 0, impossible = 0, undefined = 0;

  template <class A>
  SEGUNC_DEVICE void add(const math::PixelScores<A>& pixel) {
    pixels++;
    if (!math::has_scores(pixel)) {
      undefined++;
      return;
    }
    brier += math::to_fixed(pixel.brier);
    if (math::is_finite_likelihood(pixel.negative_log)) {
      negative_log += math::to_fixed(pixel.negative_log);
    } else {
      impossible++;
    }
  }

  // The whole warp takes part.
  SEGUNC_DEVICE void add_to_state(int64_t* scores) const {
    const int64_t values[kScores] = {pixels, brier, negative_log, impossible, undefined};
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
  int best;
};

// All that is counted of a pixel; threads that share a pixel count it once, the others bring
// kOutside. The whole warp takes part.
template <class A>
SEGUNC_DEVICE void count_pixel(const CountsParams& p, const Counting<A>& to, uint32_t* words,
                               int64_t index, int label, const ClassSums<A>& classes, A target,
                               ScoreSums& scores) {
  count_prediction(to, words, index, label, classes.best);
  if (label < 0 || (!to.state.calibration && !to.state.scores)) return;
  math::PixelScores<A> pixel;
  if (p.probabilities) {
    pixel = math::scores_of_probabilities(classes.others, classes.squares, target, classes.maximum);
  } else {
    const A shifted = target - classes.maximum;
    const A sum = classes.others + math::exp_nonpositive(shifted);
    pixel = math::scores_of_logits(classes.others, classes.squares, shifted, sum, inverse(sum));
  }
  if (to.state.calibration) {
    count_confidence(to, words, label == classes.best, pixel.confidence);
  }
  if (to.state.scores) scores.add(pixel);
}

SEGUNC_DEVICE bool needs_sums(const CountsParams& p) {
  return p.tables.calibration || p.tables.scores;
}

// Owners that can also agree on the lowest class.
struct Pixel : Alone {
  using Alone::Alone;
  SEGUNC_DEVICE int lowest(int label) const { return label; }
};
struct PixelWarps : WarpTeam {
  using WarpTeam::WarpTeam;
  SEGUNC_DEVICE int lowest(int label) const {
    return reduce(label, [](int a, int b) { return smaller(a, b); });
  }
};
struct PixelTeam : Team {
  using Team::Team;
  SEGUNC_DEVICE int lowest(int label) const {
    // report: trips log2(team)
    for (int distance = size / 2; distance > 0; distance /= 2) {
      label = smaller(label, shuffle_xor(kFullMask, label, distance));
    }
    return label;
  }
};

// Classes beyond the owned ones hold -inf.
template <int K, int V, class A, class Owner>
SEGUNC_DEVICE void reduce_classes(const CountsParams& p, const Owner& owner, const int (&label)[V],
                                  const A (&value)[K][V], ClassSums<A> (&classes)[V]) {
  constexpr int kNone = 0x7fffffff;
  A maximum[V];
  int best[V];
#pragma unroll
  for (int j = 0; j < V; j++) {
    maximum[j] = -kInfinity<A>;
    best[j] = kNone;
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
      if (i < owner.owned && value[i][j] == maximum[j]) best[j] = owner.class_of(i);
    }
  }
#pragma unroll
  for (int j = 0; j < V; j++) {
    best[j] = owner.lowest(best[j]);
    // A pixel of nothing but NaN has class 0.
    classes[j] = {maximum[j], A(0), A(0), best[j] == kNone ? 0 : best[j]};
  }
  if (!needs_sums(p)) return;
#pragma unroll
  for (int i = 0; i < K; i++) {
#pragma unroll
    for (int j = 0; j < V; j++) {
      A v = p.probabilities ? value[i][j] : math::exp_nonpositive(value[i][j] - maximum[j]);
      if (i >= owner.owned || owner.class_of(i) == label[j]) v = A(0);
      classes[j].others += v;
      classes[j].squares += v * v;
    }
  }
#pragma unroll
  for (int j = 0; j < V; j++) {
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

template <class T, int K, int V>
__global__ void __launch_bounds__(Policy::kTileThreads, kPlanarBlocks<K * V>)
    counts_planar_registers_kernel(const CountsParams p, const Work work,
                                   const Counting<accumulate_t<T>> to) {
  using A = accumulate_t<T>;
  uint32_t* const words = dynamic_shared<uint32_t>();
  clear_words(words, to.shared.words);
  const Pixel owner{int(p.map.classes)};
  Vector<T, V> absent;
#pragma unroll
  for (int j = 0; j < V; j++) absent[j] = from_accumulate<T>(-kInfinity<A>);
  ScoreSums scores;
  // report: hot C * V
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t start;
    const int64_t image = work.tiles_per_image.divide(tile, start);
    start = start * work.tile + int64_t(thread()) * V;
    const bool inside = start < p.map.pixels;
    const T* logits = static_cast<const T*>(p.input) + image * p.map.image_stride + start;
    const int64_t class_stride = rematerialized(p.map.class_stride);
    Vector<T, V> raw[K];
#pragma unroll
    for (int c = 0; c < K; c++) {
      // report: vector min(16, sizeof(T) * V)
      raw[c] = inside && c < owner.owned ? load_vector<V>(logits + c * class_stride) : absent;
    }
    const int64_t first = image * p.map.pixels + start;
    int label[V];
#pragma unroll
    for (int j = 0; j < V; j++) label[j] = kOutside;
    if (inside) load_labels(p, first, label);
    // The line is on its way to the cache: cheaper than a comparison for every class.
    A target[V];
#pragma unroll
    for (int j = 0; j < V; j++) {
      target[j] = label[j] >= 0 ? to_accumulate(logits[label[j] * class_stride + j]) : A(0);
    }
    A value[K][V];
    ClassSums<A> classes[V];
#pragma unroll
    for (int c = 0; c < K; c++) {
#pragma unroll
      for (int j = 0; j < V; j++) value[c][j] = to_accumulate(raw[c][j]);
    }
    reduce_classes(p, owner, label, value, classes);
#pragma unroll
    for (int j = 0; j < V; j++) {
      count_pixel(p, to, words, first + j, label[j], classes[j], target[j], scores);
    }
  }
  // report: end
  finish_block(to, words, scores);
}

// ---- staged ----

template <class T, int K>
__global__ void __launch_bounds__(Policy::kTileThreads, 5)
    counts_staged_kernel(const CountsParams p, const Work work, const Counting<accumulate_t<T>> to,
                         const ClassTile shape, const int tile_words) {
  using A = accumulate_t<T>;
  uint32_t* const words = dynamic_shared<uint32_t>() + tile_words;
  T* const tile_data = dynamic_shared<T>();
  clear_words(words, to.shared.words);
  const int pixel = int(thread()) >> shape.team_shift;
  ScoreSums scores;
  // report: hot C / team
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t start;
    const int64_t image = work.tiles_per_image.divide(tile, start);
    start *= work.tile;
    const int count = tile_pixels(work, p.map.pixels - start);
    const int64_t index = image * p.map.pixels + start + pixel;
    const bool inside = pixel < count;

    barrier();  // the tile before may still be in use
    load_tile(shape, p.map, count,
              static_cast<const T*>(p.input) + image * p.map.image_stride + start * p.map.stride[2],
              tile_data);
    int label[1] = {kOutside};
    if (inside) load_labels(p, index, label);
    barrier();

    const PixelTeam owner(shape.classes, shape.team_shift,
                          rematerialized(int(thread()) & (shape.team - 1)));
    const T* const of_pixel = tile_data + pixel * shape.pixel_pitch;
    const T* const mine = of_pixel + owner.part * shape.class_pitch;
    const int step = rematerialized(shape.class_pitch << shape.team_shift);
    A value[K][1];
    ClassSums<A> classes[1];
#pragma unroll
    for (int i = 0; i < K; i++) {
      value[i][0] = inside && i < owner.owned ? to_accumulate(mine[i * step]) : -kInfinity<A>;
    }
    reduce_classes(p, owner, label, value, classes);
    const A target = label[0] >= 0 ? to_accumulate(of_pixel[label[0] * shape.class_pitch]) : A(0);
    count_pixel(p, to, words, index, owner.part == 0 ? label[0] : kOutside, classes[0], target,
                scores);
  }
  // report: end
  finish_block(to, words, scores);
}

// ---- interpolated ----

template <class T, int K>
__global__ void __launch_bounds__(Policy::kInterpolatedThreads, kInterpolatedBlocks<K>)
    counts_interpolated_kernel(const CountsParams p, const Work work,
                               const Counting<accumulate_t<T>> to,
                               const InterpolatedPixels<accumulate_t<T>> pixels,
                               const WarpTeams teams) {
  using A = accumulate_t<T>;
  SEGUNC_SHARED(told, WarpTeam::Words);
  uint32_t* const words = dynamic_shared<uint32_t>();
  clear_words(words, to.shared.words);
  const PixelWarps owner(teams, told);
  const T* const data = static_cast<const T*>(p.input);
  ScoreSums scores;
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t pixel;
    const int64_t image = work.tiles_per_image.divide(tile, pixel);
    pixel = pixel * work.tile + owner.pixel();
    const int64_t index = image * pixels.count + pixel;
    const bool inside = pixel < pixels.count;
    int label[1] = {kOutside};
    if (inside) load_labels(p, index, label);
    const int64_t class_stride = rematerialized(p.map.class_stride);
    const auto blended = pixels.at(image, pixel);
    A value[K][1];
    load_logits(blended, data + owner.first * class_stride, class_stride, inside ? owner.owned : 0,
                value);
    ClassSums<A> classes[1];
    reduce_classes(p, owner, label, value, classes);
    const bool counts = owner.leads() && label[0] >= 0;
    const A target = counts ? blended.logit(data + label[0] * class_stride) : A(0);
    count_pixel(p, to, words, index, owner.leads() ? label[0] : kOutside, classes[0], target,
                scores);
  }
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
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    int label[1] = {kOutside};
    if (index < work.pixels) load_labels(p, index, label);
    ClassSums<A> classes{-kInfinity<A>, A(0), A(0), 0};
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
    count_pixel(p, to, words, index, label[0], classes, target, scores);
  }
  finish_block(to, words, scores);
}

// ---- launch and dispatch ----

// Whether every V neighbouring pixels are one aligned vector of logits and of targets.
template <class T, int V>
bool pixels_fit_vectors(const CountsParams& p) {
  return fits_vectors<T, V>(p.input, p.map) && fits_vectors<V>(p.target, p.target_type);
}

template <class T, int K, int V>
void launch_counts_planar_registers(const CountsParams& p, const Counting<accumulate_t<T>>& to,
                                    Stream stream) {
  const Work work = make_work(p.map.images, p.map.pixels, int64_t(Policy::kTileThreads) * V,
                              TablePolicy::kMaxBlocks);
  launch(counts_planar_registers_kernel<T, K, V>, work.blocks, Policy::kTileThreads,
         to.shared.words * sizeof(uint32_t), stream, p, work, to);
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
                       map.pixels >= kMinTiledPixels && map.classes <= kMaxTileClasses;
    if (tiled && map.layout == Layout::planar && map.classes <= kMaxClassesOfThread) {
      done = with_bucket(map.classes, PlanarBuckets(), [&](auto bucket) {
        constexpr int kWidth = kPlanarWidth<bucket()>;
        if (pixels_fit_vectors<T, kWidth>(p)) {
          launch_counts_planar_registers<T, bucket(), kWidth>(p, to, stream);
        } else {
          with_bucket(map.classes, NarrowBuckets(), [&](auto narrow) {
            launch_counts_planar_registers<T, narrow(), 1>(p, to, stream);
          });
        }
      });
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
