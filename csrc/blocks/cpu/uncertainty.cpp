// Mean entropies of blocks on a CPU. A tile's entropies, which are nowhere in memory, are added up
// in float64 by the row and the cell of columns that they lie in; these sums, which take little
// beside the logits, are then added up to blocks: first rows, then cells.
#include "../../common/cpu/exponentials.h"
#include "../../common/cpu/interpolation.h"
#include "rows.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace tiles;

// StoredTiles whose units are whole rows, as those of InterpolatedTiles are: no two share a sum.
template <class S, int T>
struct RowTiles : StoredTiles<S, T> {
  const BlocksParams& p;

  explicit RowTiles(const BlocksParams& p) : StoredTiles<S, T>(p.map, &p.logits, 1), p(p) {}

  template <class Rows>
  SEGUNC_HD void with_rows(int64_t unit, Rows&& rows) const {
    const int64_t each = rows_of_unit(p), per_image = divide_up(p.rows.size, each);
    const int64_t first = unit % per_image * each;
    rows(unit / per_image, first, std::min(first + each, p.rows.size));
  }
  template <class Body>
  SEGUNC_HD void for_tiles(int64_t unit, Body&& body) const {
    with_rows(unit, [&](int64_t image, int64_t first, int64_t end) __attribute__((always_inline)) {
      int64_t pixel = first * p.columns.size;
      const int64_t last = end * p.columns.size;
      for (; pixel + T <= last; pixel += T) body(image, pixel, std::integral_constant<int, T>{});
      if (pixel < last) body(image, pixel, int(last - pixel));
    });
  }
};

template <class A, int T>
struct RowBands : InterpolatedTiles<A, T> {
  const ResultBands bands;

  RowBands(const BlocksParams& p, Read<A> read)
      : InterpolatedTiles<A, T>(p.map, p.interpolation, &p.logits, 1, read),
        bands(p.map, p.interpolation) {}

  template <class Rows>
  SEGUNC_HD void with_rows(int64_t unit, Rows&& rows) const {
    const ResultBands::Unit at = bands.unit(unit);
    rows(at.image, at.first, at.end);
  }
};

// Of numbers one after another, each number that is kLanes later in a sum of its own.
template <class A>
SEGUNC_HD double sum_of(const A* values, int count) {
  constexpr int kLanes = 8;
  double lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int k = 0; k < kLanes; ++k) lanes[k] += double(values[i + k]);
  for (int k = 0; i < count; ++i, ++k) lanes[k] += double(values[i]);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
  return lanes[0];
}

// Sums of entropies, [N][rows][cells of columns].
class CellSums {
 public:
  explicit CellSums(const BlocksParams& p)
      : rows_(p.rows.size),
        columns_(p.columns.size),
        cells_(p.columns),
        ends_(cells_.count),
        sums_(p.partial) {
    for (int64_t column = 0; column < columns_; ++column)
      ends_.get()[cells_.at(uint32_t(column))] = column + 1;
  }

  SEGUNC_HD void clear(int64_t image, int64_t first, int64_t end) const {
    std::fill(row(image, first), row(image, end), 0.0);
  }
  // Of n pixels in raster order.
  template <class A>
  SEGUNC_HD void add(int64_t image, int64_t pixel, int n, const A* entropy) const {
    double* sums = row(image, pixel / columns_);
    const int64_t* ends = ends_.get();
    int64_t column = pixel % columns_, cell = cells_.at(uint32_t(column));
    for (int done = 0; done < n;) {
      const int count = int(std::min<int64_t>(ends[cell] - column, n - done));
      sums[cell] += sum_of(entropy + done, count);
      done += count, column += count;
      if (column == ends[cell]) ++cell;
      if (column == columns_) column = cell = 0, sums += cells_.count;
    }
  }

 private:
  double* row(int64_t image, int64_t row) const {
    return sums_ + (image * rows_ + row) * cells_.count;
  }

  const int64_t rows_, columns_;
  const math::Cells cells_;
  const Scratch<int64_t> ends_;  // of cells
  double* const sums_;
};

template <class Tiles>
void add_units(const BlocksParams& p, Tiles& source, int64_t begin, int64_t end) {
  using A = typename Tiles::Number;
  constexpr int T = Tiles::kWidth;
  const int C = int(p.map.classes);
  const CellSums sums(p);
  Scratch<A> tile_room(int64_t(C) * T);
  A* tile = tile_room.get();
  alignas(kAlignment) A maximum[T], sum[T], dot[T], entropy[T];

  const auto run_tile = [&](int64_t image, int64_t pixel, auto n) __attribute__((always_inline)) {
    source.read(0, image, pixel, n, tile, maximum);
    exponentials<T>(C, n, tile, maximum, source.ahead(0, image, pixel), SumAndDot<A>{sum, dot});
    for (int j = 0; j < n; ++j)
      entropy[j] = math::softmax_entropy(math::log_positive(sum[j]), dot[j], A(1) / sum[j]);
    sums.add(image, pixel, n, entropy);
  };
  for (int64_t unit = begin; unit < end; ++unit) {
    source.with_rows(
        unit, [&](int64_t image, int64_t first, int64_t last) { sums.clear(image, first, last); });
    source.for_tiles(unit, run_tile);
  }
}

template <class A>
void write_means(const BlocksParams& p, int64_t begin, int64_t end) {
  const math::Cells cells(p.columns);
  const Scratch<double> sums_room(cells.count);
  double* column_sums = sums_room.get();
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / p.rows.count;
    const int64_t first = image * p.rows.size + math::block_start(p.rows, unit % p.rows.count);
    std::fill_n(column_sums, cells.count, 0.0);
    for (int64_t row = first; row < first + p.rows.block; ++row)
      for (uint32_t cell = 0; cell < cells.count; ++cell)
        column_sums[cell] += p.partial[row * cells.count + cell];
    A* means = static_cast<A*>(p.means) + unit * p.columns.count;
    for (int64_t k = 0; k < p.columns.count; ++k) {
      const int64_t column = math::block_start(p.columns, k);
      const uint32_t last = cells.at(uint32_t(column + p.columns.block - 1));
      double sum = 0;
      for (uint32_t cell = cells.at(uint32_t(column)); cell <= last; ++cell)
        sum += column_sums[cell];
      means[k] = A(sum * p.factor);
    }
  }
}

}  // namespace

// Sums of cells, in units of whole rows.
void blocks_sums(const BlocksParams& p, int64_t begin, int64_t end) {
  with_tile(p.dtype, p.map.classes, [&](auto s, auto width) {
    using S = decltype(s);
    constexpr int T = width();
    if (p.interpolation.used) {
      RowBands<accumulate_t<S>, T> source(p, read_source<S, T>);
      add_units(p, source, begin, end);
    } else {
      RowTiles<S, T> source(p);
      add_units(p, source, begin, end);
    }
  });
}

// Means of blocks, in units of a row of blocks.
void blocks_means(const BlocksParams& p, int64_t begin, int64_t end) {
  if (p.dtype == Dtype::f64) return write_means<double>(p, begin, end);
  write_means<float>(p, begin, end);
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
