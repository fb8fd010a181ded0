// Where tiles meet, and the slices of volumes: neighbours of one label put their parts together.
#include <algorithm>

#include "chunks.h"
#include "forest.h"

namespace segunc::cuda::components {
namespace {

constexpr int kSeamThreads = 256;  // tuning

// Where tiles of a slice meet: first rows of tiles against the row above, then first columns
// against the column to their left. A thread takes a span of either. In the label maps that
// label_tile.h has counted, one of a warp's spans has 5 starts in its two rows, or 2.8 edges
// between its columns.
struct Seams {
  IndexDivisor row_seams, column_seams;
  int row_spans, spans;  // of the chunk
};
constexpr int kSpansOfRow = kTileWidth / kSpan, kSpansOfColumn = kTileHeight / kSpan;

template <class Parent>
struct Slice {
  const LabelMap& map;
  const Tiles& tiles;
  const Parts<Parent>& parts;
  int slice;

  SEGUNC_DEVICE uint64_t label(int x, int y) const {
    return label_at(map, slice * tiles.slice_pixels + y * tiles.width + x);
  }
  SEGUNC_DEVICE void join(int x0, int y0, int x1, int y1) const {
    unite(parts.forest, parts.slot(tiles, slice, x0, y0), parts.slot(tiles, slice, x1, y1));
  }
  // Where neither row has a start, the edge between them is implied by that to its left. At the
  // tile's first column, where both have one, it stays: the one to its left may be implied by it.
  SEGUNC_DEVICE void join_rows(int column, int seam, int span) const {
    const Tile above = tile_in_slice(tiles, slice, column, seam);
    const Tile below = tile_in_slice(tiles, slice, column, seam + 1);
    const RowBits starts_above = parts.starts_of(above.row + kTileHeight - 1);
    const RowBits starts_below = parts.starts_of(below.row);
    const unsigned span_above = bits_of_span(starts_above, span * kSpan);
    const unsigned span_below = bits_of_span(starts_below, span * kSpan);
    const int y = below.top;
    // report: trips 5
    for (unsigned rest = span_above | span_below; rest != 0; rest &= rest - 1) {
      const int i = find_first_set(rest) - 1;
      const int in_tile = span * kSpan + i, x = below.left + in_tile;
      const uint64_t b = label(x, y - 1), d = label(x, y);
      if (b == d) {
        if (is_ignored(map, d)) continue;
        unite(parts.forest, parts.slot_in(below, 0, starts_below, in_tile),
              parts.slot_in(above, kTileHeight - 1, starts_above, in_tile));
      } else if (map.diagonal && x > 0 && (span_above & span_below & rest & (0u - rest)) != 0) {
        const uint64_t a = label(x - 1, y - 1), c = label(x - 1, y);
        if (a == b || c == d) continue;
        if (a == d && !is_ignored(map, d)) join(x, y, x - 1, y - 1);  // report: rare
        if (b == c && !is_ignored(map, c)) join(x - 1, y, x, y - 1);  // report: rare
      }
    }
  }
  SEGUNC_DEVICE void join_columns(int seam, int span) const {
    const int x = (seam + 1) * kTileWidth, top = span * kSpan;
    const int rows = smaller(kSpan, tiles.height - top);
    unsigned edges = 0, down = 0, up = 0;
    uint64_t a = 0, b = 0;
    if (top > 0 && rows > 0) {
      a = label(x - 1, top - 1);
      b = label(x, top - 1);
    }
    // report: trips 16
#pragma unroll 1
    for (int i = 0; i < rows; i++) {
      const uint64_t c = label(x - 1, top + i), d = label(x, top + i);
      const bool has_above = top + i > 0;
      const bool implied = has_above && a == c && b == d;
      if (c == d && !implied && !is_ignored(map, d)) edges |= 1u << i;
      // Corners of tiles belong to the rows.
      if (has_above && (top + i) % kTileHeight != 0 && a != b && c != d) {
        if (a == d && !is_ignored(map, d)) down |= 1u << i;
        if (b == c && !is_ignored(map, c)) up |= 1u << i;
      }
      a = c;
      b = d;
    }
    // report: trips 2.8
    for (; edges != 0; edges &= edges - 1) {
      const int y = top + find_first_set(edges) - 1;
      join(x, y, x - 1, y);
    }
    if (!map.diagonal) return;
    // report: begin rare
    for (; down != 0; down &= down - 1) {
      const int y = top + find_first_set(down) - 1;
      join(x, y, x - 1, y - 1);
    }
    for (; up != 0; up &= up - 1) {
      const int y = top + find_first_set(up) - 1;
      join(x - 1, y, x, y - 1);
    }
    // report: end
  }
};

template <class Parent>
__global__ void __launch_bounds__(kSeamThreads, 4)
    components_seams_kernel(const LabelMap map, const Tiles tiles, const Seams seams,
                            const Parts<Parent> parts) {
  // report: hot 16
  int index = int(block_index()) * kSeamThreads + int(thread());
  if (index >= seams.spans) return;
  if (index < seams.row_spans) {
    int column, seam;
    const int slice =
        seams.row_seams.divide(tiles.columns.divide(index / kSpansOfRow, column), seam);
    Slice<Parent>{map, tiles, parts, slice}.join_rows(column, seam, index % kSpansOfRow);
  } else {
    index -= seams.row_spans;
    int row, seam;
    const int slice =
        seams.column_seams.divide(tiles.rows.divide(index / kSpansOfColumn, row), seam);
    Slice<Parent>{map, tiles, parts, slice}.join_columns(
        seam, row * kSpansOfColumn + index % kSpansOfColumn);
  }
  // report: end
}

// Each pixel of a slice against the slice before. The edge to the pixel behind is implied by that
// of the pixel to the left or above where all four are equal; one to any of the eight around it
// where the pixel behind, or the pixel in front of the other end, has the label, too.
template <class Parent>
__global__ void __launch_bounds__(Policy::kTileThreads, 4)
    components_slices_kernel(const LabelMap map, const Tiles tiles, const Parts<Parent> parts) {
  constexpr int kHalves = kTileWidth / int(kWarpSize), kRows = kTileHeight / kWarps;
  const Tile tile = tile_at(tiles, int(block_index()));
  if (tile.slice == 0) return;
  const int slice = tile.image * int(tiles.slices.value) + tile.slice;
  const int slice_pixel = slice * tiles.slice_pixels;
  const int behind_pixel = slice_pixel - tiles.slice_pixels;
  uint64_t above[kHalves] = {}, above_behind[kHalves] = {};
#pragma unroll 1
  for (int r = 0; r < kRows; r++) {
    const int row = int(warp()) * kRows + r;
    if (row >= tile.height) break;
#pragma unroll
    for (int h = 0; h < kHalves; h++) {
      const int column = h * int(kWarpSize) + int(lane());
      const bool inside = column < tile.width;
      const int x = tile.left + column, y = tile.top + row;
      const int in_slice = y * tiles.width + x;
      const uint64_t label = inside ? label_at(map, slice_pixel + in_slice) : 0;
      const uint64_t behind = inside ? label_at(map, behind_pixel + in_slice) : 0;
      const uint64_t left = shuffle_up(kFullMask, label, 1);
      const uint64_t left_behind = shuffle_up(kFullMask, behind, 1);
      const bool implied = (lane() > 0 && left == label && left_behind == behind) ||
                           (r > 0 && above[h] == label && above_behind[h] == behind);
      above[h] = label;
      above_behind[h] = behind;
      if (!inside || is_ignored(map, label)) continue;
      const auto join = [&](int other_x, int other_y) {
        unite(parts.forest, parts.slot(tiles, slice, x, y),
              parts.slot(tiles, slice - 1, other_x, other_y));
      };
      if (label == behind) {
        if (!implied) join(x, y);
        continue;
      }
      if (!map.diagonal) continue;
#pragma unroll 1
      for (int i = 0; i < 9; i++) {
        const int other_x = x + i % 3 - 1, other_y = y + i / 3 - 1;
        if (i == 4 || other_x < 0 || other_x >= tiles.width || other_y < 0 ||
            other_y >= tiles.height) {
          continue;
        }
        const int other = other_y * tiles.width + other_x;
        if (label_at(map, behind_pixel + other) == label &&
            label_at(map, slice_pixel + other) != label) {
          join(other_x, other_y);
        }
      }
    }
  }
}

}  // namespace

template <class Parent>
void launch_seams(const LabelMap& map, const Tiles& tiles, const Parts<Parent>& parts,
                  Stream stream) {
  const auto divisor = [](int64_t value) { return IndexDivisor(std::max<int64_t>(value, 1)); };
  const int64_t row_seams = tiles.rows.value - 1, column_seams = tiles.columns.value - 1;
  const int64_t slices = map.images * map.depth;
  Seams seams{};
  seams.row_seams = divisor(row_seams);
  seams.column_seams = divisor(column_seams);
  seams.row_spans = int(slices * row_seams * tiles.columns.value * kSpansOfRow);
  seams.spans = seams.row_spans + int(slices * column_seams * tiles.rows.value * kSpansOfColumn);
  if (seams.spans > 0) {
    launch(components_seams_kernel<Parent>, divide_up(seams.spans, kSeamThreads), kSeamThreads, 0,
           stream, map, tiles, seams, parts);
  }
  if (map.depth > 1) {
    launch(components_slices_kernel<Parent>, tiles.count, Policy::kTileThreads, 0, stream, map,
           tiles, parts);
  }
}

template void launch_seams(const LabelMap&, const Tiles&, const Parts<int32_t>&, Stream);
template void launch_seams(const LabelMap&, const Tiles&, const Parts<int64_t>&, Stream);

}  // namespace segunc::cuda::components
