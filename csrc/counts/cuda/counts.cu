// Counts behind metrics on a GPU, from one read of the logits.
//
// A pixel's classes come down to its prediction and the sums that the scores of math/counts.h need.
// Then it adds integers: to tables in shared memory, which a block adds to the state when it is
// done, or to the state where a table does not fit. Neighbouring pixels often meet in one counter;
// where that is in global memory, a warp's meet first. Scores are summed in registers.
//
//   planar_registers  a thread owns V neighbouring pixels and all of their at most 32 classes
//   staged            a tile goes through shared memory; up to 16 threads share a pixel's classes
//   interpolated      a thread a pixel of the target, blending its values from their neighbours
//                     in memory; warps share the classes where these are many
//   strided           a thread a pixel, the classes read twice: whatever the others do not take,
//                     interpolated or not
#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../../common/device/class_tile.h"
#include "../../common/device/integer.h"
#include "../../common/device/interpolation.h"
#include "../../common/device/labels.h"
#include "../../common/device/warp_team.h"
#include "../../common/device/work.h"
#include "kernels.h"

namespace segunc::cuda {
namespace {

using namespace device;

// ---- Launch policy ----

// Derived from occupancy, not yet measured on a GPU. Interpolated values come from the caches;
// blending them takes four loads and three interpolations, more instructions than counting them.
struct Policy {
  static constexpr int kTileThreads = 128;          // of planar_registers and staged
  static constexpr int kInterpolatedThreads = 256;  // at most
  static constexpr int kStridedThreads = 128;
  static constexpr int kMapThreads = 256;
  // Every block adds its tables to the state once: no more than an H200 holds at a time, eight of
  // 128 threads on each of 132 multiprocessors.
  static constexpr int64_t kMaxBlocks = at_scale(1056);
  // Tiles do not span images: on smaller ones most of their threads would idle.
  static constexpr int64_t kMinTiledPixels = 32;
  // Of tables in shared memory, beside a tile of at most 24 KB: room for eight blocks of 19 classes
  // (6 KB of tables, 10 KB of tile) in 228 KB.
  static constexpr int64_t kMaxTableWords = 6144;
};

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

// ---- Tables ----

// Where a block's own tables start in shared memory, in 32-bit words; kInState where it has none
// and adds to the state. Sums take two words each, the lower one first.
constexpr int kInState = -1;
constexpr int kCalibrationWords = 4;  // pixels, correct ones, sum
constexpr int kUncertaintyWords = 3;  // sum, undefined ones

struct SharedTables {
  int confusion, uncertainty, calibration;
  int words;
};

SharedTables share_tables(const CountTables& t, int64_t classes) {
  SharedTables shared{};
  int64_t words = 0;
  const auto share = [&](const void* table, int64_t size) {
    if (!table || words + size > Policy::kMaxTableWords) return kInState;
    const int start = int(words);
    words += size;
    return start;
  };
  shared.calibration = share(t.calibration, (t.bins + 1) * kCalibrationWords);
  shared.confusion = share(t.confusion, classes * classes);
  shared.uncertainty = share(t.uncertainty, classes * classes * kUncertaintyWords);
  shared.words = int(words);
  return shared;
}

// Everything that a pixel is counted in. A: the type of its values.
template <class A>
struct Counting {
  CountTables state;
  SharedTables shared;
  int64_t classes;
  const A* uncertainty;
  uint8_t* outcome;
};

template <class A, class Params>
Counting<A> make_counting(const Params& p, int64_t classes) {
  return {p.tables, share_tables(p.tables, classes), classes, static_cast<const A*>(p.uncertainty),
          p.outcome};
}

SEGUNC_DEVICE void clear_words(uint32_t* words, int count) {
  for (int i = int(thread()); i < count; i += int(block_size())) words[i] = 0;
  barrier();
}

// Shared memory has no fast 64-bit addition. The carry is rare.
SEGUNC_DEVICE void add_sum(uint32_t* sum, uint32_t value) {
  const uint32_t before = atomic_add(sum, value);
  if (before + value < before) atomic_add(sum + 1, 1);
}
SEGUNC_DEVICE int64_t read_sum(const uint32_t* sum) {
  return int64_t(uint64_t(sum[1]) << 32 | sum[0]);
}

SEGUNC_DEVICE void add_unless_zero(int64_t* counter, int64_t value) {
  if (value != 0) atomic_add(counter, value);
}

// One more in table[key] for each thread of the warp that has one; the whole warp takes part.
SEGUNC_DEVICE void count_together(int64_t* table, int64_t key) {
  const unsigned peers = match_any(kFullMask, key);
  if (key >= 0 && int(lane()) == find_first_set(peers) - 1) {
    atomic_add(table + key, popcount(peers));
  }
}

// The block's tables to the state.
template <class A>
SEGUNC_DEVICE void add_to_state(const Counting<A>& to, const uint32_t* words) {
  barrier();
  const int first = int(thread()), step = int(block_size());
  const int cells = int(to.classes * to.classes), rows = int(to.state.bins) + 1;
  if (to.shared.confusion >= 0) {
    const uint32_t* pixels = words + to.shared.confusion;
    for (int i = first; i < cells; i += step) add_unless_zero(to.state.confusion + i, pixels[i]);
  }
  if (to.shared.uncertainty >= 0) {
    const uint32_t* sums = words + to.shared.uncertainty;
    for (int i = first; i < cells; i += step) {
      add_unless_zero(to.state.uncertainty + i, read_sum(sums + i * kUncertaintyWords));
      add_unless_zero(to.state.uncertainty + cells + i, sums[i * kUncertaintyWords + 2]);
    }
  }
  if (to.shared.calibration >= 0) {
    for (int i = first; i < rows; i += step) {
      const uint32_t* row = words + to.shared.calibration + i * kCalibrationWords;
      int64_t* state = to.state.calibration + i * kCalibrationColumns;
      add_unless_zero(state + kBinPixels, row[0]);
      add_unless_zero(state + kBinCorrect, row[1]);
      add_unless_zero(state + kBinConfidence, read_sum(row + 2));
    }
  }
}

// ---- A pixel ----

// The whole warp takes part, with kOutside where it has no pixel.
template <class A>
SEGUNC_DEVICE void count_prediction(const Counting<A>& to, uint32_t* words, int64_t index,
                                    int label, int best) {
  const bool valid = label >= 0, right = label == best;
  const int64_t cell = valid ? label * to.classes + best : -1;
  if (to.outcome && label != kOutside) {
    to.outcome[index] = valid ? (right ? kRight : kWrong) : kIgnoredPixel;
  }
  if (to.shared.confusion >= 0) {
    if (valid) atomic_add(words + to.shared.confusion + cell, 1);
  } else if (to.state.confusion) {
    count_together(to.state.confusion, cell);
  }
  if (!to.uncertainty) return;
  const A u = valid ? to.uncertainty[index] : A(0);
  const bool defined = math::is_uncertainty(u);
  const int64_t fixed = defined ? math::to_fixed(u) : 0;
  if (valid && to.shared.uncertainty >= 0) {
    uint32_t* sum = words + to.shared.uncertainty + cell * kUncertaintyWords;
    if (fixed != 0) add_sum(sum, uint32_t(fixed));
    if (!defined) atomic_add(sum + 2, 1);
  } else if (valid && to.state.uncertainty) {
    add_unless_zero(to.state.uncertainty + cell, fixed);
    if (!defined) atomic_add(to.state.uncertainty + to.classes * to.classes + cell, 1);
  }
  if (to.state.histogram) {
    const int bin = defined ? math::uncertainty_bin(float(u)) : kUncertaintyBins;
    count_together(to.state.histogram, valid ? int(right) * (kUncertaintyBins + 1) + bin : -1);
  }
}

template <class A>
SEGUNC_DEVICE void count_confidence(const Counting<A>& to, uint32_t* words, bool right,
                                    A confidence) {
  const bool defined = math::is_confidence(confidence);
  const int64_t fixed = defined ? math::to_fixed(confidence) : 0;
  const int bin = defined ? math::calibration_bin(fixed, to.state.bins) : int(to.state.bins);
  if (to.shared.calibration >= 0) {
    uint32_t* row = words + to.shared.calibration + bin * kCalibrationWords;
    atomic_add(row, 1);
    if (right) atomic_add(row + 1, 1);
    if (fixed != 0) add_sum(row + 2, uint32_t(fixed));
  } else {
    int64_t* row = to.state.calibration + int64_t(bin) * kCalibrationColumns;
    atomic_add(row + kBinPixels, 1);
    add_unless_zero(row + kBinCorrect, right);
    add_unless_zero(row + kBinConfidence, fixed);
  }
}

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
    return reduce(label, [](int a, int b) { return b < a ? b : a; });
  }
};
struct PixelTeam : Team {
  using Team::Team;
  SEGUNC_DEVICE int lowest(int label) const {
    for (int distance = size / 2; distance > 0; distance /= 2) {
      const int other = shuffle_xor(kFullMask, label, distance);
      label = other < label ? other : label;
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

// ---- maps ----

template <class A>
__global__ void __launch_bounds__(Policy::kMapThreads, 4)
    map_counts_kernel(const MapCountsParams p, const Work work, const Counting<A> to) {
  uint32_t* const words = dynamic_shared<uint32_t>();
  clear_words(words, to.shared.words);
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    int label = kOutside, best = 0;
    if (index < p.pixels) {
      label = label_of(load_index(p.target, p.target_type, index), p.classes, p.ignore_index,
                       p.bad_target);
    }
    if (label >= 0) {
      const int64_t predicted = load_index(p.prediction, p.prediction_type, index);
      if (predicted >= 0 && predicted < p.classes) {
        best = int(predicted);
      } else {
        if (p.bad_target) store_host_flag(p.bad_target, predicted);
        label = kIgnored;
      }
    }
    count_prediction(to, words, index, label, best);
    if (to.state.calibration && label >= 0) {
      count_confidence(to, words, label == best, static_cast<const A*>(p.confidence)[index]);
    }
  }
  add_to_state(to, words);
}

// ---- patches ----

// A thread a patch.
template <class A>
__global__ void __launch_bounds__(Policy::kMapThreads)
    patch_counts_kernel(const PatchCountsParams p, const Work work, const Divisor patch_columns,
                        const Divisor patch_rows) {
  uint32_t* const words = dynamic_shared<uint32_t>();
  const int size = int(p.count) * kPatchCounts;
  clear_words(words, size);
  const int64_t patches = p.images * patch_rows.value * patch_columns.value;
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    if (index >= patches) continue;
    int64_t column, row;
    const int64_t image = patch_rows.divide(patch_columns.divide(index, column), row);
    const int64_t start =
        (image * p.rows + row * p.window) * p.columns + column * p.window;  // of its first pixel
    int64_t sum = 0;
    int valid = 0, right = 0;
    bool defined = true;
    for (int64_t y = 0; y < p.window; y++) {
#pragma unroll 4
      for (int64_t x = 0; x < p.window; x++) {
        const int64_t at = start + y * p.columns + x;
        const uint8_t outcome = p.outcome[at];
        if (outcome == kIgnoredPixel) continue;
        const A u = static_cast<const A*>(p.uncertainty)[at];
        valid++;
        right += outcome == kRight;
        if (math::is_uncertainty(u)) {
          sum += math::to_fixed(u);
        } else {
          defined = false;
        }
      }
    }
    if (valid == 0) continue;
    for (int k = 0; k < int(p.count); k++) {
      const PatchCount kind =
          defined ? patch_count(valid, right, sum, p.accuracy_threshold, p.thresholds[k])
                  : kUndefinedPatch;
      atomic_add(words + k * kPatchCounts + kind, 1);
    }
  }
  barrier();
  for (int i = int(thread()); i < size; i += int(block_size())) {
    add_unless_zero(p.counts + i, words[i]);
  }
}

// ---- launch and dispatch ----

// True if every V neighbouring pixels are one aligned vector of logits and of targets.
template <class T, int V>
bool fits_vectors(const CountsParams& p) {
  const auto aligned = [](const void* data, size_t bytes) {
    return reinterpret_cast<uintptr_t>(data) % std::min<size_t>(16, bytes) == 0;
  };
  const size_t target_bytes = p.target_type == IndexType::i64   ? 8
                              : p.target_type == IndexType::i32 ? 4
                                                                : 1;
  return p.map.pixels % V == 0 && p.map.class_stride % V == 0 && p.map.image_stride % V == 0 &&
         aligned(p.input, V * sizeof(T)) && aligned(p.target, V * target_bytes);
}

template <class T, int K, int V>
void launch_counts_planar_registers(const CountsParams& p, const Counting<accumulate_t<T>>& to,
                                    Stream stream) {
  const Work work =
      make_work(p.map.images, p.map.pixels, int64_t(Policy::kTileThreads) * V, Policy::kMaxBlocks);
  launch(counts_planar_registers_kernel<T, K, V>, work.blocks, Policy::kTileThreads,
         to.shared.words * sizeof(uint32_t), stream, p, work, to);
}

template <class T, int K>
void launch_counts_staged(const CountsParams& p, const Counting<accumulate_t<T>>& to,
                          Stream stream) {
  const bool aligned = vectors_are_aligned(p.input, p.map, sizeof(T));
  const ClassTile tile = make_class_tile(p.map, sizeof(T), Policy::kTileThreads, aligned);
  const Work work = make_work(p.map.images, p.map.pixels, tile.pixels, Policy::kMaxBlocks);
  const int tile_words = int((tile.shared_bytes + sizeof(uint32_t) - 1) / sizeof(uint32_t));
  launch(counts_staged_kernel<T, K>, work.blocks, Policy::kTileThreads,
         (tile_words + to.shared.words) * sizeof(uint32_t), stream, p, work, to, tile, tile_words);
}

// Whether the classes were few enough.
template <class T>
bool launch_counts_interpolated(const CountsParams& p, const Counting<float>& to, Stream stream) {
  const InterpolatedPixels<float> pixels(p.map, p.interpolation);
  const std::optional<WarpTeams> teams = make_warp_teams(p.map.classes);
  if (!teams || pixels.count < Policy::kMinTiledPixels) return false;
  const Work work = make_work(p.map.images, pixels.count, teams->pixels(), Policy::kMaxBlocks);
  return with_bucket(teams->classes_of_warp, InterpolatedBuckets(), [&](auto bucket) {
    launch(counts_interpolated_kernel<T, bucket()>, work.blocks, teams->threads(),
           to.shared.words * sizeof(uint32_t), stream, p, work, to, pixels, *teams);
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
                       map.pixels >= Policy::kMinTiledPixels && map.classes <= kMaxTileClasses;
    if (tiled && map.layout == Layout::planar && map.classes <= kMaxClassesOfThread) {
      done = with_bucket(map.classes, PlanarBuckets(), [&](auto bucket) {
        constexpr int kWidth = kPlanarWidth<bucket()>;
        if (fits_vectors<T, kWidth>(p)) {
          launch_counts_planar_registers<T, bucket(), kWidth>(p, to, stream);
        } else {
          with_bucket(map.classes, NarrowBuckets(), [&](auto narrow) {
            launch_counts_planar_registers<T, narrow(), 1>(p, to, stream);
          });
        }
      });
    } else if (tiled) {
      int64_t team = 1;
      while (map.classes > kMaxClassesOfThread * team) team *= 2;
      done = with_bucket((map.classes + team - 1) / team, StagedBuckets(),
                         [&](auto bucket) { launch_counts_staged<T, bucket()>(p, to, stream); });
    }
  }
  if (done) return;
  with_pixels<accumulate_t<T>>(p, [&](auto pixels) {
    const Work work =
        make_work(1, map.images * pixels.count, Policy::kStridedThreads, Policy::kMaxBlocks);
    launch(counts_strided_kernel<T, decltype(pixels)>, work.blocks, Policy::kStridedThreads,
           to.shared.words * sizeof(uint32_t), stream, p, work, to, Divisor(pixels.count), pixels);
  });
}

template <class A>
void launch_map_counts(const MapCountsParams& p, Stream stream) {
  const auto to = make_counting<A>(p, p.classes);
  const Work work = make_work(1, p.pixels, Policy::kMapThreads, Policy::kMaxBlocks);
  launch(map_counts_kernel<A>, work.blocks, Policy::kMapThreads, to.shared.words * sizeof(uint32_t),
         stream, p, work, to);
}

template <class A>
void launch_patch_counts(const PatchCountsParams& p, Stream stream) {
  const Divisor columns(p.columns / p.window), rows(p.rows / p.window);
  const Work work =
      make_work(1, p.images * rows.value * columns.value, Policy::kMapThreads, Policy::kMaxBlocks);
  launch(patch_counts_kernel<A>, work.blocks, Policy::kMapThreads,
         p.count * kPatchCounts * sizeof(uint32_t), stream, p, work, columns, rows);
}

}  // namespace

void counts(const CountsParams& params, Stream stream) {
  CountsParams p = params;
  if (!p.interpolation.used && is_one_image(p.map)) merge_images(p.map);
  if (p.map.images == 0 || p.map.classes == 0 || p.map.pixels == 0) return;
  with_dtype("counts", p.dtype, [&](auto t) { launch_counts<decltype(t)>(p, stream); });
}

void map_counts(const MapCountsParams& params, Stream stream) {
  if (params.pixels == 0) return;
  if (params.dtype == Dtype::f64) {
    launch_map_counts<double>(params, stream);
  } else {
    launch_map_counts<float>(params, stream);
  }
}

void patch_counts(const PatchCountsParams& params, Stream stream) {
  constexpr int64_t kMaxThresholds = kMaxSharedBytes / (kPatchCounts * sizeof(uint32_t));
  if (params.count > kMaxThresholds) {
    throw std::invalid_argument("thresholds: expected at most " + std::to_string(kMaxThresholds) +
                                ", got " + std::to_string(params.count));
  }
  if (params.count == 0 || params.images == 0 || params.rows < params.window ||
      params.columns < params.window) {
    return;
  }
  if (params.dtype == Dtype::f64) {
    launch_patch_counts<double>(params, stream);
  } else {
    launch_patch_counts<float>(params, stream);
  }
}

}  // namespace segunc::cuda
