// Mean entropies of blocks on a GPU: one read of the logits, and a second kernel that takes next to
// nothing.
//
// A thread has some columns of a tile and goes down a few rows with them, adding up their
// entropies. Rows are added up in bands, whose height divides every block's first row and height,
// so that a band is in a block as a whole or not at all. After a band the block of threads adds up
// the columns of each cell (math/blocks.h) in shared memory: so much of a cell as is in the tile is
// a sum of its own in memory, of bands * (cells + tiles) in all. A map of entropies would have as
// many only where blocks start at every pixel. Then a warp adds up the sums of each block.
//
// Floats are added up in pairs of sum and rest, which is as exact as doubles and costs less on most
// GPUs; all else is in doubles. So means do not depend on how blocks overlap, and the order of
// additions follows from sizes.
//
//   StoredRows<T, 4>   vectors of four neighbouring columns, rows being contiguous
//   StagedRows         channels_last
//   StoredRows<T, 1>   any other strides
//   InterpolatedRows   logits of another resolution
#include <algorithm>
#include <numeric>
#include <type_traits>

#include "../../common/device/integer.h"
#include "../../common/device/work.h"
#include "kernels.h"
#include "pixels.h"

namespace segunc::cuda {
namespace {

using namespace blocks;

// ---- Launch policy ----

// Derived from machine code and bytes in flight, not yet measured on a GPU.
//
// At the bandwidth of memory an H200 issues 27 instructions for an fp32 logit that it reads and 14
// for a bf16 one, all of its slots used. Of 19 classes sm_90 takes (fp32 / bf16)
//   12.3 / 13.7  of vectors of planar logits, 64 / 32 KB in flight on a multiprocessor
//   31.0 / 25.8  of channels_last, most of it on the way through shared memory
//   19.1 / 21.6  of any other layout
//   37.5 / 42.3  of interpolated ones, four loads and three blends each: these are the limit there
// Instructions a logit:
// report: budget blocks_sums_kernel<StoredRows<float, 4>* 14
// report: budget blocks_sums_kernel<StoredRows<bfloat16, 4>* 15
// report: budget blocks_sums_kernel<StagedRows<float>* 34
// report: budget blocks_sums_kernel<StagedRows<bfloat16>* 29
// report: budget blocks_sums_kernel<StoredRows<float, 1>* 21
// report: budget blocks_sums_kernel<StoredRows<bfloat16, 1>* 24
// report: budget blocks_sums_kernel<InterpolatedRows<float>* 41
// report: budget blocks_sums_kernel<InterpolatedRows<bfloat16>* 47

constexpr int kVector = 4;          // tuning
constexpr int kMeansThreads = 128;  // tuning
constexpr int kMeansWarps = kMeansThreads / int(kWarpSize);
constexpr int64_t kMaxBlocks = at_scale(1 << 30);

// ---- Sums of cells ----

// How tiles lie and where their sums do.
struct SumsGrid {
  math::Cells cells;  // of columns
  int rows, columns;  // of an image
  int band;           // rows that are added up together
  int bands;          // of an image
  int tile_columns;
  Divisor column_tiles, row_tiles;
  int64_t tiles;
  int64_t sums_of_band;

  SumsGrid(const BlocksParams& p, int tile_columns)
      : cells(p.columns),
        rows(int(p.rows.size)),
        columns(int(p.columns.size)),
        band(band_of(p.rows)),
        bands(rows / band),
        tile_columns(tile_columns),
        column_tiles(divide_up(columns, tile_columns)),
        row_tiles(divide_up(rows, kRows)),
        tiles(p.map.images * row_tiles.value * column_tiles.value),
        sums_of_band(int64_t(cells.count) + column_tiles.value - 1) {}

  // The largest power of two, up to a tile's rows, that divides whatever cuts rows.
  static int band_of(const BlockAxis& rows) {
    int64_t cuts = rows.block;
    if (rows.count > 1) cuts = std::gcd(std::gcd(cuts, rows.size - rows.block), rows.stride);
    return int(std::gcd(cuts, int64_t(kRows)));
  }

  // Of the cell at a column, as far as it is in the column's tile. Where a tile starts with a cell,
  // a number is left out.
  SEGUNC_DEVICE int sum_at(int column) const {
    return int(cells.at(uint32_t(column)) + uint32_t(column) / uint32_t(tile_columns));
  }
};

// A sum of doubles, or of floats that is as exact.
template <class A>
struct Sum {
  A sum = 0;

  SEGUNC_DEVICE void add(A value) { sum += value; }
  SEGUNC_DEVICE double total() const { return sum; }
};
template <>
struct Sum<float> {
  float sum = 0, rest = 0;

  SEGUNC_DEVICE void add(float value) {
    const float next = sum + value, taken = next - sum;
    rest += (sum - (next - taken)) + (value - taken);
    sum = next;
  }
  SEGUNC_DEVICE double total() const { return double(sum) + double(rest); }
};

// What a block of threads shares of a tile.
template <int Columns>
struct TileSums {
  struct Memory {
    double column[Columns];
    int16_t start[Columns + 1];  // first columns of the tile's cells, and the end
  };
  Memory& memory;
  int first;  // sum of the first cell
  int cells;
  int lanes;            // that share a cell, a power of two
  bool leaves_one_out;  // whether the sum before the first belongs to no cell

  // tile: of those along a row, which starts at a column.
  SEGUNC_DEVICE TileSums(Memory& memory, const math::Cells& all, int tile, int column, int columns)
      : memory(memory) {
    const auto cell_at = [&](int i) { return int(all.at(uint32_t(column + i))); };
    const int first_cell = cell_at(0);
    first = first_cell + tile;
    leaves_one_out = column > 0 && cell_at(-1) != first_cell;
    cells = cell_at(columns - 1) - first_cell + 1;
    lanes = int(kWarpSize);
    while (lanes > 1 && cells * lanes > kThreads) lanes /= 2;
#pragma unroll 1
    for (int i = int(thread()); i < columns; i += kThreads) {
      const int cell = cell_at(i);
      if (i == 0 || cell != cell_at(i - 1)) memory.start[cell - first_cell] = int16_t(i);
    }
    if (thread() == 0) memory.start[cells] = int16_t(columns);
  }

  // Columns are there for the whole block of threads.
  SEGUNC_DEVICE void store(double* sums) const {
    const int part = int(thread()) & (lanes - 1), step = kThreads / lanes;
#pragma unroll 1
    for (int base = 0; base < cells; base += step) {
      const int cell = base + int(thread()) / lanes;
      double sum = 0;
      if (cell < cells) {
        const int end = memory.start[cell + 1];
#pragma unroll 1
        for (int i = memory.start[cell] + part; i < end; i += lanes) sum += memory.column[i];
      }
#pragma unroll 1
      for (int distance = lanes / 2; distance > 0; distance /= 2) {
        sum += shuffle_xor(kFullMask, sum, distance);
      }
      if (part == 0 && cell < cells) sums[first + cell] = sum;
    }
  }
};

template <class Rows>
__global__ void __launch_bounds__(kThreads, Rows::kResidentBlocks)
    blocks_sums_kernel(const Rows source, const SumsGrid grid, double* partial) {
  using A = typename Rows::Number;
  constexpr int V = Rows::kPixels;
  using Sums = TileSums<Rows::kColumns>;
  SEGUNC_SHARED(memory, typename Sums::Memory);
  for (int64_t tile = block_index(); tile < grid.tiles; tile += grid_size()) {
    int64_t column_tile, row_tile;
    const int64_t rest = grid.column_tiles.divide(tile, column_tile);
    const int64_t image = grid.row_tiles.divide(rest, row_tile);
    const int column = int(column_tile) * source.columns();
    const int columns = smaller(source.columns(), grid.columns - column);
    const int first_row = int(row_tile) * kRows, end = smaller(first_row + kRows, grid.rows);
    const bool inside = source.column() < columns;
    barrier();  // the tile before may still be in use
    const Sums sums(memory, grid.cells, int(column_tile), column, columns);
    Sum<A> sum[V];
    // report: hot C * V
    for (int row = first_row; row < end; row++) {
      A entropy[V];
      source.entropies({image, row, column, columns}, inside, entropy);
      if (inside) {
#pragma unroll
        for (int j = 0; j < V; j++) sum[j].add(entropy[j]);
      }
      if (((row + 1) & (grid.band - 1)) != 0) continue;
      // report: begin rare
      barrier();  // the columns of the band before may still be in use
      if (inside && source.leads()) {
#pragma unroll
        for (int j = 0; j < V; j++) memory.column[source.column() + j] = sum[j].total();
      }
#pragma unroll
      for (int j = 0; j < V; j++) sum[j] = {};
      barrier();
      double* const of_band = partial + (image * grid.bands + row / grid.band) * grid.sums_of_band;
      sums.store(of_band);
      if (sums.leaves_one_out && thread() == 0) of_band[sums.first - 1] = 0;
      // report: end
    }
    // report: end
  }
}

// ---- Means ----

// A warp a block; its lanes take neighbouring sums of a band, where it has as many, or bands.
template <class A>
__global__ void __launch_bounds__(kMeansThreads)
    blocks_means_kernel(const SumsGrid grid, const BlockAxis rows, const BlockAxis columns,
                        const int64_t blocks, const Divisor columns_of_image,
                        const Divisor rows_of_image, const double* partial, const double factor,
                        A* means) {
  const int64_t step = int64_t(grid_size()) * kMeansWarps;
  for (int64_t block = int64_t(block_index()) * kMeansWarps + warp(); block < blocks;
       block += step) {
    int64_t column_block, row_block;
    const int64_t rest = columns_of_image.divide(block, column_block);
    const int64_t image = rows_of_image.divide(rest, row_block);
    const int row = int(math::block_start(rows, row_block));
    const int column = int(math::block_start(columns, column_block));
    const int first = grid.sum_at(column);
    const int sums = grid.sum_at(column + int(columns.block) - 1) - first + 1;
    int lanes = 1;  // of a band
    while (lanes < sums && lanes < int(kWarpSize)) lanes *= 2;
    const int part = int(lane()) & (lanes - 1), bands_step = int(kWarpSize) / lanes;
    const int end = (row + int(rows.block)) / grid.band;
    double sum = 0;
    for (int band = row / grid.band + int(lane()) / lanes; band < end; band += bands_step) {
      const double* const of_band = partial + (image * grid.bands + band) * grid.sums_of_band;
      for (int i = part; i < sums; i += lanes) sum += of_band[first + i];
    }
    sum = warp_sum(sum);
    if (lane() == 0) means[block] = A(sum * factor);
  }
}

// ---- Launch and dispatch ----

template <class A, class Rows>
BlocksPlan plan_rows(const BlocksParams& params, const Rows& rows, int tile_columns,
                     size_t shared_bytes) {
  const SumsGrid grid(params, tile_columns);
  BlocksPlan plan;
  plan.partials = params.map.images * grid.bands * grid.sums_of_band;
  plan.launch = [=](const BlocksParams& p, Stream stream) {
    launch(blocks_sums_kernel<Rows>, std::min(grid.tiles, kMaxBlocks), kThreads, shared_bytes,
           stream, rows, grid, p.partial);
    const int64_t blocks = p.map.images * p.rows.count * p.columns.count;
    launch(blocks_means_kernel<A>, std::min(divide_up(blocks, kMeansWarps), kMaxBlocks),
           kMeansThreads, 0, stream, grid, p.rows, p.columns, blocks, Divisor(p.columns.count),
           Divisor(p.rows.count), p.partial, p.factor, static_cast<A*>(p.means));
  };
  return plan;
}

// Whether every kVector neighbouring columns are one aligned vector.
template <class T>
bool rows_fit_vectors(const BlocksParams& p) {
  const auto fits = [](int64_t size, int64_t stride) { return size == 1 || stride % kVector == 0; };
  return p.map.stride[2] == 1 && p.columns.size % kVector == 0 &&
         is_vector_aligned(p.logits, kVector * sizeof(T)) && fits(p.rows.size, p.map.stride[1]) &&
         fits(p.map.classes, p.map.class_stride) && fits(p.map.images, p.map.image_stride);
}

template <class T>
BlocksPlan plan_staged(const BlocksParams& p) {
  const bool aligned = vectors_are_aligned(p.logits, p.map, sizeof(T)) &&
                       p.columns.size * p.map.classes * int64_t(sizeof(T)) % 16 == 0;
  const ClassTile tile =
      make_class_tile<typename TileSums<kThreads>::Memory>(p.map, sizeof(T), kThreads, aligned);
  return plan_rows<accumulate_t<T>>(p, StagedRows<T>(p, tile), tile.pixels, tile.shared_bytes);
}

template <class T>
BlocksPlan plan_dtype(const BlocksParams& p) {
  using A = accumulate_t<T>;
  if (p.interpolation.used) {
    return plan_rows<A>(p, InterpolatedRows<T>(p), InterpolatedRows<T>::kColumns, 0);
  }
  if constexpr (!std::is_same_v<T, double>) {
    if (rows_fit_vectors<T>(p)) {
      using Rows = StoredRows<T, kVector>;
      return plan_rows<A>(p, Rows(p), Rows::kColumns, 0);
    }
    if (p.map.layout == Layout::channels_last && p.map.classes <= kMaxTileClasses) {
      return plan_staged<T>(p);
    }
  }
  using Rows = StoredRows<T, 1>;
  return plan_rows<A>(p, Rows(p), Rows::kColumns, 0);
}

}  // namespace

BlocksPlan plan_block_means(const BlocksParams& params) {
  if (is_empty(params.map)) return {};
  return with_dtype("block_uncertainty", params.dtype,
                    [&](auto t) { return plan_dtype<decltype(t)>(params); });
}

}  // namespace segunc::cuda
