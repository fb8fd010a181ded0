// Cross-entropy of bilinearly or trilinearly interpolated logits on a GPU: neither the interpolated
// logits nor their gradient ever exist in memory.
//
//   value     z_c = sum over a pixel's neighbours of share * v_c, then as in cross_entropy
//   gradient  dl/dv_c = sum over the pixels of share * dl/dz_c, in the order of the pixels
//
//   tiles   a thread owns a column of target pixels with up to 24 of their classes and walks down
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
// Separate kernels move eight. A logit costs about 35 instructions, so these are the limit: blocks
// that own source pixels need no scratch, but compute whatever these have a share in, a sixth more
// at 19 classes, two fifths more at 150 and more than twice as much in volumes.
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

// Derived from occupancy and instructions, not yet measured on a GPU. With 19 classes 167 registers
// let 3 blocks be resident; while one waits for a row of logits, the others' 8 warps have the four
// rows of the target before it to compute, about 2500 instructions each.
struct Policy {
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
// report: budget cross_entropy_interpolated_tiles_kernel<*, 20*> 66

// Registers for a thread's classes. A thread of a team has the four below its bucket's number at
// least, because teams are no larger than they have to be.
using TileBuckets = std::integer_sequence<int, 4, 8, 12, 16, 20, 24>;
constexpr int kMaxClassesOfTileThread = 24;
constexpr int64_t kMaxTileClasses = kMaxClassesOfTileThread * kWarpSize;

// From compute capability 10.0 on, the full registers of a bucket do not suffice for the same code.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kBlocksLess = 1;
#else
constexpr int kBlocksLess = 0;
#endif

// Resident blocks that the compiler has to leave registers for: a thread keeps five numbers a
// class, as many blocks as that allows without spilling.
template <int K>
constexpr int kTileBlocks = (K <= 4    ? 8
                             : K <= 8  ? 6
                             : K <= 16 ? 4
                                       : 3) -
                            (K % 8 == 0 ? kBlocksLess : 0);

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
template <class T>
struct Tile {
  using A = accumulate_t<T>;
  int row, column;    // the first
  int rows, columns;  // within the target
  Span source_rows, source_columns;
  math::Neighbours<A> slices;
  int64_t pixel;  // of the target: the first
  const T* data;  // the first logit that it blends
  A* sums;        // [source rows][source columns][C], spaced as in the largest tile, or null
};

// Tiles of `rows` x `columns` target pixels of a slice; blocks take those of all images in turn.
struct TileWork {
  int rows, columns;
  int source_rows, source_columns;  // the most that a tile blends
  int bucket, team_shift;
  int pitch;  // between the classes of neighbouring columns in shared memory: odd, so that neither
              // a warp of columns nor one of classes meets in a bank
  SmallDivisor classes, columns_of_source;
  Divisor row_tiles, column_tiles, slices;
  int64_t tiles, blocks;
  size_t shared_bytes;
  TargetShares shares;

  unsigned threads() const { return unsigned(columns) << team_shift; }
};

int largest_span(const math::InterpolatedAxis<float>& axis, int length) {
  int largest = 0;
  for (int first = 0; first < axis.size; first += length) {
    largest = std::max(largest, span_of(axis, first, smaller(length, axis.size - first)).count);
  }
  return largest;
}

// Nothing where tiles cannot be used: no registers for the classes, or a row of logits that does
// not fit into shared memory, because it is reduced rather than enlarged.
std::optional<TileWork> make_tile_work(const CrossEntropyParams& p, const Axes<float>& axes) {
  if (p.dtype == Dtype::f64 || p.map.classes > kMaxTileClasses) return std::nullopt;
  const int classes = int(p.map.classes);
  TileWork work{};
  work.team_shift = team_shift_of(classes, kMaxClassesOfTileThread);
  work.bucket = smallest_bucket(divide_up(classes, 1 << work.team_shift), TileBuckets());
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
  work.pitch = classes | 1;
  work.classes = SmallDivisor(classes);
  work.columns_of_source = SmallDivisor(work.source_columns);
  work.shared_bytes =
      sizeof(float) * (size_t(work.source_columns + work.columns) * work.pitch + work.columns) +
      sizeof(int) * (work.columns + work.source_columns + 2);
  work.shares = target_shares(p);
  // report: dynamic cross_entropy_interpolated_tiles_kernel<* 49152 - 336
  if (work.shared_bytes > kMaxDynamicSharedBytes<Tile<float>, BlockSums>) return std::nullopt;
  return work;
}

// ---- tiles ----

template <class T>
SEGUNC_DEVICE Tile<T> tile_at(const CrossEntropyParams& p, const TileWork& work,
                              const Axes<accumulate_t<T>>& axes, int64_t index) {
  int64_t row, column, slice;
  const int64_t image = work.slices.divide(
      work.row_tiles.divide(work.column_tiles.divide(index, column), row), slice);
  Tile<T> tile;
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
  tile.data = static_cast<const T*>(p.input) + image * p.map.image_stride +
              tile.slices.lower * p.map.stride[0] + tile.source_rows.first * p.map.stride[1] +
              tile.source_columns.first * p.map.stride[2];
  tile.sums = nullptr;
  if (p.grad_input) {
    tile.sums = static_cast<accumulate_t<T>*>(p.scratch) +
                index * work.source_rows * work.source_columns * int64_t(work.classes.value);
  }
  return tile;
}

// A block's shared memory. Source positions count from the first that the tile blends.
template <class A>
struct TileMemory {
  A* logits;    // [source columns][pitch] of one source row
  A* gradient;  // [columns][pitch] of one source row
  A* weight;    // [columns] of the upper neighbour
  int* lower;   // [columns]: the lower neighbour
  int* first;   // [source columns + 2]: the first column whose lower neighbour is i - 1 or beyond

  SEGUNC_DEVICE explicit TileMemory(const TileWork& work)
      : logits(dynamic_shared<A>()),
        gradient(logits + work.source_columns * work.pitch),
        weight(gradient + work.columns * work.pitch),
        lower(reinterpret_cast<int*>(weight + work.columns)),
        first(lower + work.columns) {}
};

template <class T, class A>
SEGUNC_DEVICE void fill_tables(const math::InterpolatedAxis<A>& axis, const Tile<T>& tile,
                               const TileMemory<A>& memory) {
  for (int i = int(thread()); i < tile.columns; i += int(block_size())) {
    const auto across = math::neighbours_of(axis, tile.column + i);
    memory.weight[i] = across.weight;
    memory.lower[i] = across.lower - tile.source_columns.first;
  }
  for (int i = int(thread()); i < tile.source_columns.count + 2; i += int(block_size())) {
    const int column = math::first_position(axis, tile.source_columns.first + i - 1) - tile.column;
    memory.first[i] = column < 0 ? 0 : smaller(column, tile.columns);
  }
}

// A source row of logits to shared memory, of volumes a blend of two slices'.
template <class T, class A>
SEGUNC_DEVICE void stage_row(const CrossEntropyParams& p, const TileWork& work, const Tile<T>& tile,
                             int row, A* staged) {
  constexpr int kBatch = 4;  // logits of a thread in flight
  const bool classes_first = p.map.layout == Layout::channels_last;
  const T* const data = tile.data + row * p.map.stride[1];
  const int columns = tile.source_columns.count;
  const A weight = tile.slices.weight;
  const unsigned count = work.classes.value * work.source_columns;
#pragma unroll 1
  // report: trips (threads / team / scale + 1) * C / threads / 4
  for (unsigned first = thread(); first < count; first += kBatch * block_size()) {
    T lower[kBatch] = {}, upper[kBatch] = {};
    int position[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      const unsigned i = first + b * block_size();
      unsigned column, c;
      if (classes_first) {
        column = work.classes.divide(i, c);
      } else {
        c = work.columns_of_source.divide(i, column);
      }
      position[b] = i < count && int(column) < columns ? int(column) * work.pitch + int(c) : -1;
      if (position[b] >= 0) {
        const T* const logit = data + c * p.map.class_stride + column * p.map.stride[2];
        lower[b] = *logit;                                     // report: generic
        if (weight > A(0)) upper[b] = logit[p.map.stride[0]];  // report: rare; generic
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      if (position[b] < 0) continue;
      const A value = to_accumulate(lower[b]);
      staged[position[b]] = blend(value, to_accumulate(upper[b]), weight);
    }
  }
}

// The adjoint of widening: each source column's share in the gradients of the columns that blend
// it. A share of 0 counts nothing, not even of a NaN.
template <class T, class A>
SEGUNC_DEVICE void sum_columns(const TileWork& work, const Tile<T>& tile, int row,
                               const TileMemory<A>& memory) {
  A* const sums = tile.sums + row * int64_t(work.source_columns) * work.classes.value;
  const unsigned count = work.classes.value * tile.source_columns.count;
  // report: trips (threads / team / scale + 1) * C / threads
  for (unsigned i = thread(); i < count; i += block_size()) {
    unsigned c;
    const unsigned column = work.classes.divide(i, c);
    const int begin = memory.first[column], middle = memory.first[column + 1],
              end = memory.first[column + 2];
    const A* gradient = memory.gradient + begin * work.pitch + c;
    A sum = 0;
    // report: trips scale * 8 / shared
    for (int at = begin; at < middle; at++, gradient += work.pitch) {
      const A share = memory.weight[at];
      if (share > A(0)) sum += share * *gradient;
    }
    // report: trips scale * 8 / shared
    for (int at = middle; at < end; at++, gradient += work.pitch) {
      sum += (A(1) - memory.weight[at]) * *gradient;
    }
    sums[i] = sum;  // report: generic
  }
}

template <class T, int K>
__global__ void __launch_bounds__(Policy::kTileThreads, kTileBlocks<K>)
    cross_entropy_interpolated_tiles_kernel(const CrossEntropyParams p, const TileWork work,
                                            const Axes<accumulate_t<T>> axes) {
  using A = accumulate_t<T>;
  constexpr int kAlwaysOwned = K - 4;
  const Constants<A> constants(p, work.shares);
  const TileMemory<A> memory(work);
  const int team = 1 << work.team_shift;
  const Team owner(int(work.classes.value), work.team_shift, int(thread()) & (team - 1));
  const int column = int(thread()) >> work.team_shift;
  SEGUNC_SHARED(tile, Tile<T>);
  double sum = 0;
  BadTarget bad;
  // report: hot C / team * rows
  for (int64_t index = block_index(); index < work.tiles; index += grid_size()) {
    barrier();  // the tile before may still be in use
    if (thread() == 0) tile = tile_at<T>(p, work, axes, index);
    barrier();
    fill_tables(axes.columns, tile, memory);

    const bool inside = column < tile.columns;
    int64_t pixel = tile.pixel + column;
    int row = tile.row;
    math::Neighbours<A> down = math::neighbours_of(axes.rows, row);
    // Two neighbouring source rows, as wide as the target, and their gradients.
    A upper[K], lower[K], upper_gradient[K], lower_gradient[K];
#pragma unroll
    for (int i = 0; i < K; i++) upper[i] = lower[i] = upper_gradient[i] = lower_gradient[i] = A(0);
    // In step s row s of the source arrives, and with it the target's rows between s - 1 and s; the
    // gradient of row s - 2 is complete.
    const int steps = tile.source_rows.count + (p.grad_input ? 2 : 1);
#pragma unroll 1
    // report: trips rows / scale + 2
    for (int step = 0; step < steps; step++) {
      const bool leaves = step >= 2 && p.grad_input;
      const int stride = rematerialized(1 << work.team_shift);
      barrier();  // the step before may still be in use
      if (leaves && inside) {
        A* const mine = memory.gradient + column * work.pitch + owner.part;
#pragma unroll
        for (int i = 0; i < K; i++) {
          if (i < kAlwaysOwned || i < owner.owned) mine[i * stride] = lower_gradient[i];
        }
      }
      const bool arrives = step < tile.source_rows.count;
      if (arrives) stage_row(p, work, tile, step, memory.logits);
      barrier();
      if (leaves) sum_columns(work, tile, step - 2, memory);
#pragma unroll
      for (int i = 0; i < K; i++) {
        lower[i] = upper[i];
        lower_gradient[i] = upper_gradient[i];
        upper_gradient[i] = A(0);
      }
      if (arrives && inside) {
        const A weight = memory.weight[column];
        const A* const left = memory.logits + memory.lower[column] * work.pitch + owner.part;
        const A* const right = weight > A(0) ? left + work.pitch : left;
#pragma unroll
        for (int i = 0; i < K; i++) {
          if (i < kAlwaysOwned || i < owner.owned) {
            upper[i] = blend(left[i * stride], right[i * stride], weight);
          }
        }
      }

      const int end = tile.row + tile.rows, source_row = tile.source_rows.first + step - 1;
#pragma unroll 1
      // report: trips rows / (rows / scale + 2)
      for (; row < end && down.lower == source_row;
           row++, pixel += p.interpolation.size[2], down = math::neighbours_of(axes.rows, row)) {
        int label[1] = {kIgnored};
        if (inside) load_labels(p, pixel, label, bad);
        const bool valid = label[0] >= 0;
        const A pixel_weight = valid ? load_factors<1, A>(p.pixel_weight, pixel)[0] : A(1);
        const A upstream = valid ? load_factors<1, A>(upstream_map(p), pixel)[0] : A(1);
        // The number of the labelled class among mine.
        const int target =
            valid && (label[0] & (team - 1)) == owner.part ? label[0] >> work.team_shift : -1;
        const bool blends = down.upper != down.lower;

        A value[K][1], maximum[1];
#pragma unroll
        for (int i = 0; i < K; i++) value[i][0] = lower[i];
        if (blends) {
#pragma unroll
          for (int i = 0; i < K; i++) {
            value[i][0] = math::interpolate(lower[i], upper[i], down.weight);
          }
        }
#pragma unroll
        for (int i = kAlwaysOwned; i < K; i++) {
          if (i >= owner.owned) value[i][0] = -kInfinity<A>;
        }
        largest_logit(owner, value, maximum);
        SoftmaxTerms<A> softmax[1];
        A target_shifted = 0;
#pragma unroll
        for (int i = 0; i < K; i++) {
          if (i == target) target_shifted = value[i][0] - maximum[0];
        }
        softmax[0].target_shifted = owner.sum(target_shifted);
        softmax_in_place(constants, owner, maximum, value, softmax);

        const PixelTerms<A> terms =
            pixel_terms(constants, label[0], softmax[0], pixel_weight, upstream);
        if (inside && owner.part == 0) {
          sum += double(terms.loss);
          if (p.loss) static_cast<A*>(p.loss)[pixel] = terms.loss;
          if (p.grad_pixel_weight) {
            static_cast<A*>(p.grad_pixel_weight)[pixel] = terms.weight_gradient;
          }
        }
        if (p.grad_input && label[0] != kIgnored) {
          // Compared again, and below read again: kept since the softmax, the comparisons would
          // take an instruction a class more, the weights a register.
          const int same_target = rematerialized(target), part = rematerialized(owner.part);
#pragma unroll
          for (int i = 0; i < K; i++) {
            value[i][0] = math::cross_entropy_derivative(value[i][0], terms.slope,
                                                         i == same_target ? terms.on_target : A(0));
          }
          if (constants.smooths()) {
#pragma unroll
            for (int i = 0; i < K; i++) {
              if (i < kAlwaysOwned || i < owner.owned) {
                value[i][0] -= terms.factor * constants.smoothing(part + i * owner.size);
              }
            }
          }
          if (blends) {
#pragma unroll
            for (int i = 0; i < K; i++) {
              lower_gradient[i] += (A(1) - down.weight) * value[i][0];
              upper_gradient[i] += down.weight * value[i][0];
            }
          } else {
#pragma unroll
            for (int i = 0; i < K; i++) lower_gradient[i] += value[i][0];
          }
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
    const int classes = smaller(kCollectedClasses, int(work.classes.value) - first_class);
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
                  int64_t(work.classes.value) +
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
__global__ void __launch_bounds__(Policy::kPixelThreads, 4)
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
    if (label[0] >= 0) {
      int64_t pixel;
      const int64_t image = pixels_of_image.divide(index, pixel);
      const auto blended = pixels.at(image, pixel);
      const auto logit_of = [&](int64_t c) {
        return blended.logit(static_cast<const T*>(p.input) + c * class_stride);
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
    const PixelTerms<A> terms = pixel_terms(constants, label[0], softmax, pixel_weight, upstream);
    sum += double(terms.loss);
    if (p.loss) static_cast<A*>(p.loss)[index] = terms.loss;
    if (p.grad_pixel_weight) static_cast<A*>(p.grad_pixel_weight)[index] = terms.weight_gradient;
    if (p.grad_input) saved[index] = {maximum, terms.slope, terms.on_target, terms.factor};
  }
  bad.report(p.bad_target);
  store_partial(p, sum);
}

template <class T>
__global__ void __launch_bounds__(Policy::kGatherThreads, 4)
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
          const A exponential = math::exp_nonpositive(blended.logit(logits) - terms.maximum);
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

template <class T>
void launch_tiles(const CrossEntropyParams& p, const TileWork& work, const Axes<float>& axes,
                  Stream stream) {
  const bool done = with_bucket(work.bucket, TileBuckets(), [&](auto bucket) {
    launch(cross_entropy_interpolated_tiles_kernel<T, bucket()>, work.blocks, work.threads(),
           work.shared_bytes, stream, p, work, axes);
  });
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
  const int64_t sums =
      work.tiles * work.source_rows * work.source_columns * int64_t(work.classes.value);
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
