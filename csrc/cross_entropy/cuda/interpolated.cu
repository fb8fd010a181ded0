// Cross-entropy of bilinearly or trilinearly interpolated logits on a GPU: neither the interpolated
// logits nor their gradient ever exist in memory.
//
//   value     z_c = sum over a pixel's neighbours of share * v_c, then as in cross_entropy
//   gradient  dl/dv_c = sum over the pixels of share * dl/dz_c, in the order of the pixels
//
//   tiles   a thread owns a column of target pixels with up to 23 of their classes and walks down
//           the rows; up to 32 threads share a column. Between two source rows each of them blends
//           the same two rows of logits, already as wide as the target: these stay in registers,
//           and so do their gradients. Where a source row is left behind, the block sums its
//           gradient over the columns, from shared memory into scratch. Tiles meet in source rows
//           and columns, whose shares a second kernel adds up.
//   pixels  a thread a target pixel, the logits read twice; then a thread a source logit, which
//           computes the exponentials of all pixels that it has a share in once more: whatever
//           tiles do not take.
//
// In units of the target's logits, of 4 times the source's height and width: tiles read 1.3 / 16,
// write as much fp32 scratch, read it again and write a gradient of 1 / 16, a third in all.
// Separate kernels move eight. A logit costs 27 to 30 instructions, so these are the limit: blocks
// that own source pixels need no scratch, but compute whatever these have a share in, a sixth more
// at 19 classes, two fifths more at 150 and more than twice as much in volumes.
//
// What a logit of 19 classes takes on sm_90, at four times the source's height and width: 9 for
// blend, softmax and gradient, 2 to find the labelled class, 8 as its share of the pixel's own, 4
// for reading source rows, widening and leaving them, 2 1/2 for sums over columns and 1 1/2 for
// what a step and a tile have once. A thread's classes lie side by side, so that their places in
// shared memory are constants. What is the same for a launch but does not count in an inner loop is
// tested at run time: a kernel knows the registers of a thread, and whether labels are smoothed.
#include <algorithm>
#include <optional>
#include <type_traits>

#include "../../common/device/integer.h"
#include "../../common/device/interpolation.h"
#include "../../common/device/work.h"
#include "kernels.h"
#include "pixel.h"

namespace segunc::cuda {
namespace {

// ---- Launch policy ----

// Derived from occupancy and instructions, not yet measured on a GPU. With 19 classes 128 registers
// let 4 blocks be resident; while one waits for a row of logits, the others' 12 warps have the four
// rows of the target before it to compute, about 2000 instructions each.
struct Policy {  // tuning
  static constexpr int kTileThreads = 128;
  static constexpr int kCollectThreads = 128;
  static constexpr int kPixelThreads = 128;
  static constexpr int kGatherThreads = 128;
  // One partial sum each.
  static constexpr int64_t kMaxBlocks = at_scale(8192);
  // Target rows of a tile: every tile moves up to two source rows more than its share, but there
  // have to be enough to keep all multiprocessors busy.
  static constexpr int kMaxRows = 64, kMinRows = 8;
  static constexpr int64_t kEnoughTiles = at_scale(1024);
};

// Instructions an element on sm_90.
// report: budget cross_entropy_interpolated_tiles_kernel<TileVariant<19*> 30

// Registers for a thread's classes, of which it has an odd number.
using TileBuckets = std::integer_sequence<int, 3, 7, 11, 15, 19, 23>;  // tuning
using VariedTileBuckets = std::integer_sequence<int, 7, 15, 23>;       // tuning
constexpr int kMaxClassesOfTileThread = 23;
constexpr int64_t kMaxTileClasses = kMaxClassesOfTileThread * kWarpSize;

// Resident blocks that the compiler has to leave registers for: a thread keeps five numbers a
// class, as many blocks as that allows without spilling.
template <int K>
constexpr int kTileBlocks = K <= 3    ? 8  // tuning
                            : K <= 7  ? 6
                            : K <= 11 ? 5
                            : K <= 19 ? 4
                                      : 3;

// The source positions that `count` target positions from `first` on blend.
struct Span {
  int first, count;
};
template <class A>
SEGUNC_HD Span span_of(const math::InterpolatedAxis<A>& axis, int first, int count) {
  const int lowest = math::neighbours_of(axis, first).lower;
  return {lowest, math::neighbours_of(axis, first + count - 1).upper - lowest + 1};
}

// What the threads of a block have in common, in shared memory: registers are for the classes.
struct Tile {
  int row, column;    // the first
  int rows, columns;  // within the target
  Span source_rows, source_columns;
  math::Neighbours<float> slices;
  int64_t image;
  int64_t pixel;  // of the target: the first
  int64_t logit;  // the first that it blends
  int64_t sum;    // the first of [source rows][source columns][C], spaced as in the largest tile
};

// How a block walks over a source row of logits: inner and outer stand for columns and classes, or
// the other way round, as they lie in memory. A thread goes from one outer to its next.
struct StagedRow {
  bool classes_are_inner;
  SmallDivisor threads;  // side by side
  SmallDivisor outer_step;
  unsigned inner_stride, outer_stride;  // in memory
  unsigned inner_pitch, outer_pitch;    // in shared memory
};

// Tiles of `rows` x `columns` target pixels of a slice; blocks take those of all images in turn.
struct TileWork {
  int rows, columns;
  int source_rows, source_columns;  // the most that a tile blends
  int bucket, team_shift, team;
  int classes;
  int run;    // classes of a thread: odd, so that no two threads of a warp meet in a bank
  int pitch;  // between the classes of neighbouring columns in shared memory: those of a team
  StagedRow staged;
  SmallDivisor strands;  // threads that sum a source column
  Divisor row_tiles, column_tiles, slices;
  int64_t tiles, blocks;
  size_t shared_bytes;
  TargetShares shares;

  unsigned threads() const { return unsigned(columns) << team_shift; }
  // What of shared memory holds a source row.
  SEGUNC_HD int row_words() const { return source_columns * pitch; }
};

int largest_span(const math::InterpolatedAxis<float>& axis, int length) {
  int largest = 0;
  for (int first = 0; first < axis.size; first += length) {
    largest = std::max(largest, span_of(axis, first, smaller(length, axis.size - first)).count);
  }
  return largest;
}

StagedRow make_staged_row(const ClassMap& map, const TileWork& work) {
  StagedRow row{};
  row.classes_are_inner = map.layout == Layout::channels_last;
  const int inner = row.classes_are_inner ? work.classes : work.source_columns;
  row.threads = SmallDivisor(uint32_t(smaller(inner, int(work.threads()))));
  row.outer_step = SmallDivisor(work.threads() / row.threads.value);
  row.inner_stride = unsigned(row.classes_are_inner ? map.class_stride : map.stride[2]);
  row.outer_stride = unsigned(row.classes_are_inner ? map.stride[2] : map.class_stride);
  row.inner_pitch = row.classes_are_inner ? 1 : unsigned(work.pitch);
  row.outer_pitch = row.classes_are_inner ? unsigned(work.pitch) : 1;
  return row;
}

// Whether places in a source row fit into 32 bits, in bytes.
bool has_short_rows(const ClassMap& map) {
  const int64_t last = (map.classes - 1) * map.class_stride + (map.size[2] - 1) * map.stride[2];
  return last * int64_t(sizeof(float)) <= 0xffffffff;
}

// A strand is every other of up to 2 * classes_of_strand classes: a thread's where it sums a source
// column. The last strands read beyond the last class, and keep nothing of it.
constexpr int kStrands = 2;
SEGUNC_HD constexpr int classes_of_strand(int bucket) { return (bucket + kStrands - 1) / kStrands; }
constexpr int kBeyondClasses = kStrands * classes_of_strand(kMaxClassesOfTileThread);

// Nothing where tiles cannot be used: no registers for the classes, or rows of logits that do not
// fit into shared memory, because they are reduced rather than enlarged.
std::optional<TileWork> make_tile_work(const CrossEntropyParams& p, const Axes<float>& axes) {
  if (p.dtype == Dtype::f64 || is_noisy(p) || p.map.classes > kMaxTileClasses ||
      !has_short_rows(p.map)) {
    return std::nullopt;
  }
  TileWork work{};
  work.classes = int(p.map.classes);
  work.team_shift = team_shift_of(work.classes, kMaxClassesOfTileThread);
  work.team = 1 << work.team_shift;
  work.run = int(divide_up(work.classes, work.team)) | 1;
  work.pitch = work.run << work.team_shift;
  work.bucket = varies(p) ? smallest_bucket(work.run, VariedTileBuckets())
                          : smallest_bucket(work.run, TileBuckets());
  // As wide as possible, but evenly, and in whole warps.
  const int most = Policy::kTileThreads >> work.team_shift;
  const int granule = int(kWarpSize) >> work.team_shift;
  const int64_t width = p.interpolation.size[2];
  const int64_t even = divide_up(width, divide_up(width, most));
  work.columns = int(divide_up(even, granule)) * granule;
  work.column_tiles = Divisor(divide_up(width, work.columns));
  work.slices = Divisor(p.interpolation.size[0]);
  const auto tiles_of = [&](int rows) {
    return p.map.images * p.interpolation.size[0] * divide_up(p.interpolation.size[1], rows) *
           work.column_tiles.value;
  };
  work.rows = Policy::kMaxRows;
  while (work.rows > Policy::kMinRows && tiles_of(work.rows) < Policy::kEnoughTiles) work.rows /= 2;
  work.row_tiles = Divisor(divide_up(p.interpolation.size[1], work.rows));
  work.tiles = tiles_of(work.rows);
  work.blocks = std::min(work.tiles, Policy::kMaxBlocks);
  work.source_rows = largest_span(axes.rows, work.rows);
  work.source_columns = largest_span(axes.columns, work.columns);
  work.staged = make_staged_row(p.map, work);
  const int strand = classes_of_strand(work.bucket);
  work.strands = SmallDivisor(uint32_t(kStrands * divide_up(work.classes, kStrands * strand)));
  work.shared_bytes = sizeof(float) * (size_t(2 * work.source_columns + work.columns) * work.pitch +
                                       kBeyondClasses) +
                      (sizeof(float) + sizeof(int)) * work.columns + sizeof(float) * work.rows +
                      sizeof(int) * (work.source_columns + 3 + work.source_rows + 3);
  work.shares = target_shares(p);
  // report: dynamic cross_entropy_interpolated_tiles_kernel<* 49152 - 352
  if (work.shared_bytes > kMaxDynamicSharedBytes<Tile, BlockSums, int64_t>) return std::nullopt;
  return work;
}

// ---- tiles ----

SEGUNC_DEVICE Tile tile_at(const CrossEntropyParams& p, const TileWork& work,
                           const Axes<float>& axes, int64_t index) {
  int64_t row, column, slice;
  const int64_t image = work.slices.divide(
      work.row_tiles.divide(work.column_tiles.divide(index, column), row), slice);
  Tile tile;
  tile.image = image;
  tile.row = int(row) * work.rows;
  tile.column = int(column) * work.columns;
  tile.rows = smaller(work.rows, int(p.interpolation.size[1]) - tile.row);
  tile.columns = smaller(work.columns, int(p.interpolation.size[2]) - tile.column);
  tile.source_rows = span_of(axes.rows, tile.row, tile.rows);
  tile.source_columns = span_of(axes.columns, tile.column, tile.columns);
  tile.slices = math::neighbours_of(axes.slices, int(slice));
  tile.pixel = ((image * p.interpolation.size[0] + slice) * p.interpolation.size[1] + tile.row) *
                   p.interpolation.size[2] +
               tile.column;
  tile.logit = image * p.map.image_stride + tile.slices.lower * p.map.stride[0] +
               tile.source_rows.first * p.map.stride[1] +
               tile.source_columns.first * p.map.stride[2];
  tile.sum = index * work.source_rows * work.source_columns * int64_t(work.classes);
  return tile;
}

// A block's shared memory. Source positions count from the first that the tile blends.
struct TileMemory {
  float* logits;         // [2][source columns][pitch] of two source rows, by turns
  float* gradient;       // [columns][pitch] of one source row, and kBeyondClasses
  float* column_weight;  // [columns] of the upper neighbour
  float* row_weight;     // [rows]
  int* lower;            // [columns]: the lower neighbour
  // The first column or row whose lower neighbour is i - 1 or beyond.
  int* first_column;  // [source columns + 3]
  int* first_row;     // [source rows + 3]

  SEGUNC_DEVICE explicit TileMemory(const TileWork& work)
      : logits(rematerialized_shared(dynamic_shared<float>())),
        gradient(logits + 2 * work.row_words()),
        column_weight(gradient + work.columns * work.pitch + kBeyondClasses),
        row_weight(column_weight + work.columns),
        lower(reinterpret_cast<int*>(row_weight + work.rows)),
        first_column(lower + work.columns),
        first_row(first_column + work.source_columns + 3) {}
};

// Of the table of an axis. first, count: of the tile.
SEGUNC_DEVICE void fill_first(const math::InterpolatedAxis<float>& axis, int first, int count,
                              const Span& source, int* table) {
  for (int i = int(thread()); i < source.count + 3; i += int(block_size())) {
    const int position = math::first_position(axis, source.first + i - 1) - first;
    table[i] = position < 0 ? 0 : smaller(position, count);
  }
}
SEGUNC_DEVICE void fill_tables(const Axes<float>& axes, const Tile& tile,
                               const TileMemory& memory) {
  for (int i = int(thread()); i < tile.columns; i += int(block_size())) {
    const auto across = math::neighbours_of(axes.columns, tile.column + i);
    memory.column_weight[i] = across.weight;
    memory.lower[i] = across.lower - tile.source_columns.first;
  }
  for (int i = int(thread()); i < tile.rows; i += int(block_size())) {
    memory.row_weight[i] = math::neighbours_of(axes.rows, tile.row + i).weight;
  }
  fill_first(axes.columns, tile.column, tile.columns, tile.source_columns, memory.first_column);
  fill_first(axes.rows, tile.row, tile.rows, tile.source_rows, memory.first_row);
}

// What a team's threads would have beyond the last class has no mass.
SEGUNC_DEVICE void fill_absent(const TileWork& work, const TileMemory& memory) {
  for (int i = int(thread()); i < 2 * work.source_columns; i += int(block_size())) {
    for (int c = work.classes; c < work.pitch; c++) {
      memory.logits[i * work.pitch + c] = -kInfinity<float>;
    }
  }
}

// What a thread stages of a source row: outer ones of `passes`, each with its inner ones.
struct StagedPart {
  int inner, inner_count, outer, passes;

  SEGUNC_DEVICE StagedPart(const TileWork& work, const Tile& tile) {
    const StagedRow& walk = work.staged;
    const int columns = tile.source_columns.count;
    unsigned remainder;
    outer = int(walk.threads.divide(thread(), remainder));
    inner = int(remainder);
    inner_count = walk.classes_are_inner ? work.classes : columns;
    const int left = (walk.classes_are_inner ? columns : work.classes) - outer;
    const int step = int(walk.outer_step.value);
    passes = 0;
    if (outer < step && left > 0) passes = int(walk.outer_step.divide(left + step - 1, remainder));
  }
};

// Some of a thread's passes, of volumes a blend of two slices'.
constexpr int kStagedBatch = 8;  // logits of a thread in flight
template <bool Blends, class T>
SEGUNC_DEVICE void stage_batch(const CrossEntropyParams& p, const StagedRow& walk, int pass,
                               int passes, const T* logits, float weight, float* staged) {
  const unsigned step = rematerialized(walk.outer_step.value);
  const unsigned stride = step * walk.outer_stride * unsigned(sizeof(T));  // in bytes
  const unsigned pitch = step * walk.outer_pitch;
  // After the last pass it is the last once more, which takes less than a branch.
  const auto pass_of = [&](int b) { return smaller(pass + b, passes - 1); };
  T lower[kStagedBatch], upper[kStagedBatch];
#pragma unroll
  for (int b = 0; b < kStagedBatch; b++) {
    const T* const logit = reinterpret_cast<const T*>(reinterpret_cast<const char*>(logits) +
                                                      product(pass_of(b), stride));
    lower[b] = logit[0];
    if (Blends) upper[b] = logit[p.map.stride[0]];
  }
#pragma unroll
  for (int b = 0; b < kStagedBatch; b++) {
    float value = to_accumulate(lower[b]);
    if (Blends) value = math::interpolate(value, to_accumulate(upper[b]), weight);
    staged[pass_of(b) * pitch] = value;
  }
}

template <class T>
SEGUNC_DEVICE void stage_row_of(const CrossEntropyParams& p, const TileWork& work, const Tile& tile,
                                const StagedPart& part, int row, float* staged) {
  const StagedRow& walk = work.staged;
  const T* const first = static_cast<const T*>(p.input) + tile.logit + row * p.map.stride[1] +
                         product(part.outer, walk.outer_stride);
  const float weight = tile.slices.weight;
#pragma unroll 1
  for (int inner = part.inner; inner < part.inner_count; inner += int(walk.threads.value)) {
    const T* const logits = first + product(inner, walk.inner_stride);
    float* const to = staged + inner * walk.inner_pitch + part.outer * walk.outer_pitch;
#pragma unroll 1
    // report: trips max(1, (threads / team / scale + 2) * C / threads / 8)
    for (int pass = 0; pass < part.passes; pass += kStagedBatch) {
      if (weight > 0) {
        stage_batch<true>(p, walk, pass, part.passes, logits, weight, to);  // report: rare
      } else {
        stage_batch<false>(p, walk, pass, part.passes, logits, weight, to);
      }
    }
  }
}

// A source row of logits to shared memory.
SEGUNC_DEVICE void stage_row(const CrossEntropyParams& p, const TileWork& work, const Tile& tile,
                             int row, float* staged) {
  const StagedPart part(work, tile);
  switch (p.dtype) {
    case Dtype::bf16:
      return stage_row_of<bfloat16>(p, work, tile, part, row, staged);
    case Dtype::f16:
      return stage_row_of<float16>(p, work, tile, part, row, staged);
    default:
      return stage_row_of<float>(p, work, tile, part, row, staged);
  }
}

// The adjoint of widening: each source column's share in the gradients of the columns that blend
// it.
template <int K>
SEGUNC_DEVICE void sum_columns(const CrossEntropyParams& p, const TileWork& work, const Tile& tile,
                               int row, const TileMemory& memory) {
  constexpr int kClasses = classes_of_strand(K);
  float* const sums = static_cast<float*>(p.scratch) + tile.sum;
  const unsigned count = work.strands.value * tile.source_columns.count;
#pragma unroll 1
  // report: trips (threads / team / scale + 1) * strands / threads
  for (unsigned i = thread(); i < count; i += block_size()) {
    unsigned strand;
    const int column = int(work.strands.divide(i, strand));
    const int first = int(strand / kStrands * (kStrands * kClasses) + strand % kStrands);
    const int middle = memory.first_column[column + 1], end = memory.first_column[column + 2];
    int at = memory.first_column[column];
    // A share of 0 counts nothing, not even of a NaN.
    while (at < middle && !(memory.column_weight[at] > 0)) at++;  // report: rare
    const float* gradient = memory.gradient + at * work.pitch + first;
    float sum[kClasses] = {};
    const auto add = [&](float share) {
#pragma unroll
      for (int j = 0; j < kClasses; j++) sum[j] += share * gradient[j * kStrands];
      gradient += work.pitch;
    };
#pragma unroll 1
    // report: trips scale
    for (; at < middle; at++) add(memory.column_weight[at]);
#pragma unroll 1
    // report: trips scale
    for (; at < end; at++) add(1 - memory.column_weight[at]);
    float* const sums_of_column =
        sums + (row * work.source_columns + column) * work.classes + first;
    const int left = work.classes - first;
#pragma unroll
    for (int j = 0; j < kClasses; j++) {
      if (j * kStrands < left) sums_of_column[j * kStrands] = sum[j];
    }
  }
}

// A thread of a team: register i is class first + i.
struct ClassRun : Team {
  int first;

  SEGUNC_DEVICE explicit ClassRun(const TileWork& work)
      : Team(work.classes, work.team_shift, int(thread()) & (work.team - 1)),
        first(rematerialized(part * work.run)) {
    size = work.team;
    owned = smaller(work.run, work.classes - first);
  }
  SEGUNC_DEVICE int class_of(int i) const { return first + i; }
};

// Where a target column's neighbours are in a staged row, and the upper one's weight.
struct Widening {
  int left, right;  // the right one from the left
  float weight;

  SEGUNC_DEVICE Widening(const TileWork& work, const TileMemory& memory, int column)
      : left(memory.lower[column] * work.pitch),
        right(work.pitch),
        weight(memory.column_weight[column]) {}
  // Of the class whose logit in the left neighbour this is.
  SEGUNC_DEVICE float logit(const float* logit) const {
    float value = (1 - weight) * logit[0];
    if (weight > 0) value += weight * logit[right];
    return value;
  }
};

// A source row's logits of a thread's classes, as wide as the target, and their gradient.
template <int K>
struct WideRow {
  float logit[K], gradient[K];
};

// What the compiler knows of a launch: registers for a thread's classes, how many are always in
// use, and whether the loss may vary.
template <int Classes, int Least, int LossVariation>
struct TileVariant {
  static constexpr int kClasses = Classes, kLeast = Least;
  static constexpr int kVariation = LossVariation;
  static constexpr bool kVaries = kVariation != kPlain;
};

template <class Variant>
__global__ void __launch_bounds__(Policy::kTileThreads, kTileBlocks<Variant::kClasses>)
    cross_entropy_interpolated_tiles_kernel(const CrossEntropyParams p, const TileWork work,
                                            const Axes<float> axes) {
  constexpr int K = Variant::kClasses;
  const Constants<float> constants(p, Variant::kVaries ? work.shares : TargetShares{1, 0});
  const TileMemory memory(work);
  const ClassRun owner(work);
  const auto present = [&](int i) { return i < Variant::kLeast || i < work.run; };
  const int column = int(thread()) >> work.team_shift;
  SEGUNC_SHARED(tile, Tile);
  fill_absent(work, memory);
  double sum = 0;
  SEGUNC_SHARED(bad_target, int64_t);
  BadTargetOfBlock bad(&bad_target);
  // report: hot C / team * rows
  for (int64_t index = block_index(); index < work.tiles; index += grid_size()) {
    barrier();  // the tile before may still be in use
    if (thread() == 0) tile = tile_at(p, work, axes, index);
    barrier();
    fill_tables(axes, tile, memory);
    barrier();

    const bool inside = column < tile.columns;
    // Threads beyond the tile's last column do what the first one's do, and keep it to themselves.
    const int nearest = inside ? column : 0;
    const Widening widening(work, memory, nearest);
    int64_t pixel = tile.pixel + nearest;
    int row = 0;
    // Two neighbouring source rows, whose places never change.
    WideRow<K> even, odd;
#pragma unroll
    for (int i = 0; i < K; i++) {
      even.logit[i] = odd.logit[i] = -kInfinity<float>;
      even.gradient[i] = odd.gradient[i] = 0;
    }
    const auto leave = [&](WideRow<K>& wide) {
      float* const gradient = memory.gradient + int(thread()) * work.run;
#pragma unroll
      for (int i = 0; i < K; i++) {
        if (present(i)) gradient[i] = wide.gradient[i];
        wide.gradient[i] = 0;
      }
    };
    const auto arrive = [&](WideRow<K>& wide, const float* logits) {
      logits += widening.left + owner.first;
#pragma unroll
      for (int i = 0; i < K; i++) {
        if (present(i)) wide.logit[i] = widening.logit(logits + i);
      }
    };
    // In step s row s of the source arrives, and with it the target's rows between s - 1 and s; the
    // gradient of row s - 2 is complete.
    const int steps = tile.source_rows.count + (p.grad_input ? 2 : 1);
#pragma unroll 1
    // report: trips rows / scale + 2
    for (int step = 0; step < steps; step++) {
      const bool is_odd = step & 1;
      const bool leaves = step >= 2 && p.grad_input, arrives = step < tile.source_rows.count;
      float* const arriving = memory.logits + (is_odd ? work.row_words() : 0);
      const float* const before = memory.logits + (is_odd ? 0 : work.row_words());
      barrier();  // the step before may still be in use
      if (leaves) {
        if (is_odd) {
          leave(odd);
        } else {
          leave(even);
        }
      }
      if (arrives) stage_row(p, work, tile, step, arriving);
      barrier();
      if (leaves) sum_columns<K>(p, work, tile, step - 2, memory);
      if (arrives) {
        if (is_odd) {
          arrive(odd, arriving);
        } else {
          arrive(even, arriving);
        }
      }

      const int end = memory.first_row[step + 1];
#pragma unroll 1
      // report: trips rows / (rows / scale + 2)
      for (; row < end; row++, pixel += p.interpolation.size[2]) {
        const float weight = memory.row_weight[row];
        const bool blends = weight > 0, uses_even = blends || is_odd, uses_odd = blends || !is_odd;
        const float even_weight = is_odd ? 1 - weight : weight;
        const float odd_weight = is_odd ? weight : 1 - weight;
        const AdjacentPixels<1> one;
        int64_t target[1];
        load_targets(p, one, pixel, target);
        const auto pixel_weight = load_factors<float>(one, p.pixel_weight, pixel);
        const auto upstream = load_factors<float>(one, upstream_map(p), pixel);
        int label[1];
        labels_of(p, target, label, bad);

        float value[K][1], maximum[1];
        if (uses_even) {
#pragma unroll
          for (int i = 0; i < K; i++) value[i][0] = even_weight * even.logit[i];
          if (uses_odd) {
#pragma unroll
            for (int i = 0; i < K; i++) value[i][0] += odd_weight * odd.logit[i];
          }
        } else {
#pragma unroll
          for (int i = 0; i < K; i++) value[i][0] = odd_weight * odd.logit[i];
        }
        adjust_logits<Variant::kVariation>(p.adjustment, constants, owner, label, value);
        largest_logit(owner, value, maximum);
        SoftmaxTerms<float> softmax[1];
        const float* const labelled_logit = before + widening.left + (label[0] < 0 ? 0 : label[0]);
        float logit = widening.logit(labelled_logit);
        if (blends) {
          const float next = widening.logit(labelled_logit + (arriving - before));
          logit = math::interpolate(logit, next, weight);
        }
        if (label[0] >= 0)
          logit = adjusted<Variant::kVariation>(p.adjustment, constants, logit, label[0], label[0]);
        softmax[0].target_shifted = logit - maximum[0];
        softmax_in_place(constants, owner, maximum, value, softmax);

        const PixelTerms<float> terms = pixel_terms<Variant::kVariation>(
            p, constants, tile.image, label[0], softmax[0], pixel_weight[0], upstream[0]);
        if (inside && owner.part == 0) {
          sum += double(terms.loss);
          if (p.loss) static_cast<float*>(p.loss)[pixel] = terms.loss;
          if (p.grad_pixel_weight) {
            static_cast<float*>(p.grad_pixel_weight)[pixel] = terms.weight_gradient;
          }
        }
        if (!p.grad_input || label[0] == kIgnored) continue;
        // Of all classes slope * value. What the labelled one has beside is taken off its value.
        float slope = terms.slope, taken = softmax[0].sum;
        if (Variant::kVaries) {
#pragma unroll
          for (int i = 0; i < K; i++) {
            if (i < owner.owned) {
              value[i][0] = logit_gradient(constants, terms, value[i][0], owner.class_of(i));
            }
          }
          slope = 1;
          taken = terms.on_target;
        }
        // The comparisons are no chain to the compiler, which would leave it by a branch at each.
        int labelled = label[0] - owner.first;
#pragma unroll
        for (int i = 0; i < K; i++) {
          labelled = rematerialized(labelled);
          if (i == labelled) value[i][0] -= taken;
        }
        if (uses_even) {
#pragma unroll
          for (int i = 0; i < K; i++) even.gradient[i] += slope * even_weight * value[i][0];
        }
        if (uses_odd) {
#pragma unroll
          for (int i = 0; i < K; i++) odd.gradient[i] += slope * odd_weight * value[i][0];
        }
      }
    }
  }
  // report: end
  bad.report(p.bad_target);
  store_partial(p, sum);
}

// ---- the tiles' sums, added up ----

// Items: runs of classes of a source pixel, in the order that the gradient lies in memory.
struct SourceItems {
  Layout layout;
  Divisor runs, pixels;   // of a source pixel; of an image
  Divisor rows, columns;  // of the source
  int64_t count;
};

SourceItems make_source_items(const CrossEntropyParams& p, int classes_of_run) {
  SourceItems items;
  items.layout = p.grad_map.layout;
  items.runs = Divisor(divide_up(p.map.classes, classes_of_run));
  items.pixels = Divisor(p.map.pixels);
  items.rows = Divisor(p.map.size[1]);
  items.columns = Divisor(p.map.size[2]);
  items.count = p.map.images * p.map.pixels * items.runs.value;
  return items;
}

struct SourceItem {
  int64_t image, run;
  int slice, row, column;

  SEGUNC_DEVICE SourceItem(const SourceItems& items, int64_t index) {
    int64_t pixel, in_slice, in_row;
    if (items.layout == Layout::channels_last) {
      image = items.pixels.divide(items.runs.divide(index, run), pixel);
    } else {
      image = items.runs.divide(items.pixels.divide(index, pixel), run);
    }
    slice = int(items.rows.divide(items.columns.divide(pixel, in_row), in_slice));
    row = int(in_slice);
    column = int(in_row);
  }
  SEGUNC_DEVICE int64_t offset(const ClassMap& map) const {
    return image * map.image_stride + slice * map.stride[0] + row * map.stride[1] +
           column * map.stride[2];
  }
};

constexpr int kCollectedClasses = 8;  // of an item: what it reads of a tile is a sector

template <class T>
__global__ void __launch_bounds__(Policy::kCollectThreads, 8)
    cross_entropy_interpolated_collect_kernel(const CrossEntropyParams p, const TileWork work,
                                              const SourceItems items,
                                              const Axes<accumulate_t<T>> axes) {
  using A = accumulate_t<T>;
  const int64_t step = int64_t(grid_size()) * block_size();
  for (int64_t index = int64_t(block_index()) * block_size() + thread(); index < items.count;
       index += step) {
    const SourceItem item(items, index);
    const int first_class = int(item.run) * kCollectedClasses;
    const int classes = smaller(kCollectedClasses, work.classes - first_class);
    const math::Support slices = math::support_of(axes.slices, item.slice);
    const math::Support rows = math::support_of(axes.rows, item.row);
    const math::Support columns = math::support_of(axes.columns, item.column);
    A sum[kCollectedClasses] = {};
    for (int slice = slices.first; slice < slices.last; slice++) {
      const A share =
          math::interpolation_share(math::neighbours_of(axes.slices, slice), item.slice);
      if (!(share > A(0))) continue;
      const int64_t first_tile =
          (item.image * work.slices.value + slice) * work.row_tiles.value * work.column_tiles.value;
      for (int row = rows.first / work.rows; row * work.rows < rows.last; row++) {
        const int first_row = row * work.rows;
        const Span source_rows =
            span_of(axes.rows, first_row, smaller(work.rows, axes.rows.size - first_row));
        // A support also holds pixels with a share of 0, which may lie in another tile.
        const int in_rows = item.row - source_rows.first;
        if (in_rows < 0 || in_rows >= source_rows.count) continue;
        for (int column = columns.first / work.columns; column * work.columns < columns.last;
             column++) {
          const int first_column = column * work.columns;
          const Span source_columns = span_of(
              axes.columns, first_column, smaller(work.columns, axes.columns.size - first_column));
          const int in_columns = item.column - source_columns.first;
          if (in_columns < 0 || in_columns >= source_columns.count) continue;
          const int64_t tile = first_tile + row * work.column_tiles.value + column;
          const A* const sums =
              static_cast<const A*>(p.scratch) +
              ((tile * work.source_rows + in_rows) * work.source_columns + in_columns) *
                  int64_t(work.classes) +
              first_class;
#pragma unroll
          for (int i = 0; i < kCollectedClasses; i++) {
            if (i < classes) sum[i] += share * sums[i];
          }
        }
      }
    }
    T* const gradient = static_cast<T*>(p.grad_input) + item.offset(p.grad_map) +
                        first_class * p.grad_map.class_stride;
#pragma unroll
    for (int i = 0; i < kCollectedClasses; i++) {
      if (i < classes) gradient[i * p.grad_map.class_stride] = from_accumulate<T>(sum[i]);
    }
  }
}

// ---- pixels ----

// What the gradient of a target pixel's logits needs to be computed again.
template <class A>
struct SavedTerms {
  A maximum, slope, on_target, factor;
};

template <class T>
__global__ void __launch_bounds__(Policy::kPixelThreads, sizeof(T) > 4 ? 2 : 4)
    cross_entropy_interpolated_pixels_kernel(const CrossEntropyParams p, const LossWork work,
                                             const InterpolatedPixels<accumulate_t<T>> pixels,
                                             const Divisor pixels_of_image) {
  using A = accumulate_t<T>;
  const Constants<A> constants(p, work.shares);
  const int64_t classes = p.map.classes, class_stride = p.map.class_stride;
  auto* const saved = static_cast<SavedTerms<A>*>(p.scratch);
  double sum = 0;
  BadTarget bad;
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    if (index >= work.pixels) continue;
    int label[1];
    load_labels(p, index, label, bad);
    SoftmaxTerms<A> softmax{};
    A maximum = 0, pixel_weight = 1, upstream = 1;
    int64_t pixel;
    const int64_t image = pixels_of_image.divide(index, pixel);
    if (label[0] >= 0) {
      const auto blended = pixels.at(image, pixel);
      const auto logit_of = [&](int64_t c) {
        return adjusted<kNoisy>(p.adjustment, constants,
                                blended.logit(static_cast<const T*>(p.input) + c * class_stride),
                                int(c), label[0], index);
      };
      OnlineSoftmax<A> online;
#pragma unroll 1
      for (int64_t c = 0; c < classes; c++) online.add(logit_of(c));
      maximum = online.maximum;
      // An infinite maximum makes the sum NaN, as the subtraction would in one pass.
      softmax.sum = online.sum + (maximum - maximum);
      softmax.target_shifted = logit_of(label[0]) - maximum;
      if (constants.smooths()) {
#pragma unroll 1
        for (int64_t c = 0; c < classes; c++) {
          const A b = constants.smoothing(int(c));
          softmax.smooth_total += b;
          softmax.smooth_dot += b * (logit_of(c) - maximum);
        }
      }
      pixel_weight = load_factors<1, A>(p.pixel_weight, index)[0];
      upstream = load_factors<1, A>(upstream_map(p), index)[0];
    }
    const PixelTerms<A> terms =
        pixel_terms<kNoisy>(p, constants, image, label[0], softmax, pixel_weight, upstream);
    sum += double(terms.loss);
    if (p.loss) static_cast<A*>(p.loss)[index] = terms.loss;
    if (p.grad_pixel_weight) static_cast<A*>(p.grad_pixel_weight)[index] = terms.weight_gradient;
    if (p.grad_input) saved[index] = {maximum, terms.slope, terms.on_target, terms.factor};
  }
  bad.report(p.bad_target);
  store_partial(p, sum);
}

template <class T>
__global__ void __launch_bounds__(Policy::kGatherThreads, sizeof(T) > 4 ? 2 : 4)
    cross_entropy_interpolated_gather_kernel(const CrossEntropyParams p, const TargetShares shares,
                                             const SourceItems items,
                                             const Axes<accumulate_t<T>> axes) {
  using A = accumulate_t<T>;
  const Constants<A> constants(p, shares);
  const auto* const saved = static_cast<const SavedTerms<A>*>(p.scratch);
  const int64_t step = int64_t(grid_size()) * block_size();
  for (int64_t index = int64_t(block_index()) * block_size() + thread(); index < items.count;
       index += step) {
    const SourceItem item(items, index);
    const int64_t c = item.run;
    const T* const logits = static_cast<const T*>(p.input) + c * p.map.class_stride;
    const A b = constants.smooths() ? constants.smoothing(int(c)) : A(0);
    const math::Support slices = math::support_of(axes.slices, item.slice);
    const math::Support rows = math::support_of(axes.rows, item.row);
    const math::Support columns = math::support_of(axes.columns, item.column);
    A sum = 0;
    for (int slice = slices.first; slice < slices.last; slice++) {
      const auto near_slice = math::neighbours_of(axes.slices, slice);
      for (int row = rows.first; row < rows.last; row++) {
        const auto near_row = math::neighbours_of(axes.rows, row);
        const A share_of_row = math::interpolation_share(near_slice, item.slice) *
                               math::interpolation_share(near_row, item.row);
        const int64_t first =
            ((item.image * p.interpolation.size[0] + slice) * p.interpolation.size[1] + row) *
            p.interpolation.size[2];
        for (int column = columns.first; column < columns.last; column++) {
          const auto near_column = math::neighbours_of(axes.columns, column);
          const A share = share_of_row * math::interpolation_share(near_column, item.column);
          const int64_t target = load_index(p.target, p.target_type, first + column);
          if (!(share > A(0)) || target == p.ignore_index) continue;
          const SavedTerms<A> terms = saved[first + column];
          const InterpolatedPixel<A> blended(p.map, item.image, near_slice, near_row, near_column);
          const A logit = adjusted<kNoisy>(
              p.adjustment, constants, blended.logit(logits), int(c),
              uint64_t(target) < uint64_t(p.map.classes) ? int(target) : -1, first + column);
          const A exponential = math::exp_nonpositive(logit - terms.maximum);
          const A t_c = (c == target ? terms.on_target : A(0)) + terms.factor * b;
          sum += share * math::cross_entropy_derivative(exponential, terms.slope, t_c);
        }
      }
    }
    static_cast<T*>(p.grad_input)[item.offset(p.grad_map) + c * p.grad_map.class_stride] =
        from_accumulate<T>(sum);
  }
}

// ---- launch and dispatch ----

int64_t blocks_of(const SourceItems& items, int threads) {
  return std::min(divide_up(items.count, threads), Policy::kMaxBlocks);
}

template <int variation, class Buckets>
bool launch_tile_bucket(const CrossEntropyParams& p, const TileWork& work, const Axes<float>& axes,
                        Stream stream, Buckets buckets) {
  return with_bucket(work.bucket, buckets, [&](auto bucket) {
    constexpr int K = bucket(), kBelow = largest_bucket_below(K, Buckets());
    constexpr int kLeast = kBelow + 1 + kBelow % 2;  // an odd one
    launch(cross_entropy_interpolated_tiles_kernel<TileVariant<K, kLeast, variation>>, work.blocks,
           work.threads(), work.shared_bytes, stream, p, work, axes);
  });
}

template <class T>
void launch_tiles(const CrossEntropyParams& p, const TileWork& work, const Axes<float>& axes,
                  Stream stream) {
  const bool done = varies(p)
                        ? launch_tile_bucket<kVaried>(p, work, axes, stream, VariedTileBuckets())
                        : launch_tile_bucket<kPlain>(p, work, axes, stream, TileBuckets());
  if (!done) no_kernel("cross_entropy_interpolated_tiles", p.dtype, p.map.classes);
  if (p.grad_input) {
    const SourceItems items = make_source_items(p, kCollectedClasses);
    launch(cross_entropy_interpolated_collect_kernel<T>, blocks_of(items, Policy::kCollectThreads),
           Policy::kCollectThreads, 0, stream, p, work, items, axes);
  }
}

template <class T>
void launch_pixels(const CrossEntropyParams& p, const LossWork& work, Stream stream) {
  const InterpolatedPixels<accumulate_t<T>> pixels(p.map, p.interpolation);
  launch(cross_entropy_interpolated_pixels_kernel<T>, work.blocks, Policy::kPixelThreads, 0, stream,
         p, work, pixels, Divisor(pixels.count));
  if (p.grad_input) {
    const SourceItems items = make_source_items(p, 1);
    launch(cross_entropy_interpolated_gather_kernel<T>, blocks_of(items, Policy::kGatherThreads),
           Policy::kGatherThreads, 0, stream, p, work.shares, items, pixels.axes);
  }
}

CrossEntropyPlan plan_tiles(const CrossEntropyParams& params, const TileWork& work,
                            const Axes<float>& axes) {
  const int64_t sums = work.tiles * work.source_rows * work.source_columns * int64_t(work.classes);
  return {work.blocks, params.grad_input ? sums * int64_t(sizeof(float)) : 0,
          [work, axes](const CrossEntropyParams& p, Stream stream) {
            with_dtype("cross_entropy_interpolated_tiles", p.dtype, [&](auto t) {
              if constexpr (!std::is_same_v<decltype(t), double>) {
                launch_tiles<decltype(t)>(p, work, axes, stream);
              }
            });
          }};
}

CrossEntropyPlan plan_pixels(const CrossEntropyParams& params) {
  const int64_t pixels = params.map.images * result_pixels(params.map, params.interpolation);
  const LossWork work =
      make_loss_work(params, 1, pixels, Policy::kPixelThreads, Policy::kMaxBlocks);
  const bool is_double = params.dtype == Dtype::f64;
  const size_t saved = is_double ? sizeof(SavedTerms<double>) : sizeof(SavedTerms<float>);
  return {work.blocks, params.grad_input ? work.pixels * int64_t(saved) : 0,
          [work](const CrossEntropyParams& p, Stream stream) {
            with_dtype("cross_entropy_interpolated_pixels", p.dtype,
                       [&](auto t) { launch_pixels<decltype(t)>(p, work, stream); });
          }};
}

}  // namespace

CrossEntropyPlan plan_interpolated_cross_entropy(const CrossEntropyParams& params) {
  if (is_empty(params.map) || result_pixels(params.map, params.interpolation) == 0) return {};
  const Axes<float> axes = make_axes<float>(params.map, params.interpolation);
  const auto work = make_tile_work(params, axes);
  return work ? plan_tiles(params, *work, axes) : plan_pixels(params);
}

}  // namespace segunc::cuda
