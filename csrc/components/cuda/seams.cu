// Where tiles meet, and the slices of volumes: neighbours of one label put their parts together.
#include <algorithm>

#include "chunks.h"
#include "forest.h"

namespace segunc::cuda::components {
namespace {

constexpr int kSeamThreads = 256;

// Places where tiles meet: first rows of tiles against the row above, pixel by pixel, then first
// columns against the column to their left.
struct Seams {
  Divisor per_image, width, height, row_seams, column_seams;
  int64_t row_pixels;  // of an image
  int64_t count;       // of the chunk
};

template <class Parent>
__global__ void __launch_bounds__(kSeamThreads)
    components_seams_kernel(const LabelMap map, const Tiles tiles, const Seams seams,
                            const Parts<Parent> parts) {
  const int64_t index = int64_t(block_index()) * kSeamThreads + thread();
  if (index >= seams.count) return;
  int64_t in_image, along, seam, slice;
  const int64_t image = seams.per_image.divide(index, in_image);
  const bool is_row = in_image < seams.row_pixels;
  if (is_row) {
    slice = seams.row_seams.divide(seams.width.divide(in_image, along), seam);
  } else {
    in_image -= seams.row_pixels;
    slice = seams.column_seams.divide(seams.height.divide(in_image, along), seam);
  }
  const int x = is_row ? int(along) : (int(seam) + 1) * kTileWidth;
  const int y = is_row ? (int(seam) + 1) * kTileHeight : int(along);
  const int slice_pixel = int(image) * tiles.image_pixels + int(slice) * tiles.slice_pixels;

  const int at_d = slice_pixel + y * tiles.width + x;
  const bool has_left = x > 0, has_above = y > 0;
  const uint64_t d = label_at(map, at_d);
  const uint64_t c = has_left ? label_at(map, at_d - 1) : d;
  const uint64_t b = has_above ? label_at(map, at_d - tiles.width) : d;
  const uint64_t a = has_left && has_above ? label_at(map, at_d - tiles.width - 1) : d;
  const auto join = [&](int x0, int y0, int x1, int y1) {
    unite(parts.forest, parts.slot(tiles, slice_pixel, x0, y0),
          parts.slot(tiles, slice_pixel, x1, y1));
  };
  if (is_row) {
    // At a corner of tiles this edge stays: the one to the left of it may be implied by this.
    const bool implied = x % kTileWidth != 0 && a == b && c == d;
    if (b == d && !is_ignored(map, d) && !implied) join(x, y, x, y - 1);
  } else {
    const bool implied = has_above && a == c && b == d;
    if (c == d && !is_ignored(map, d) && !implied) join(x, y, x - 1, y);
  }
  // Corners of tiles belong to the rows.
  if (map.diagonal && has_left && has_above && (is_row || y % kTileHeight != 0) && a != b &&
      c != d) {
    if (a == d && !is_ignored(map, d)) join(x, y, x - 1, y - 1);
    if (b == c && !is_ignored(map, c)) join(x - 1, y, x, y - 1);
  }
}

// Each pixel of a slice against the slice before. The edge to the pixel behind is implied by that
// of the pixel to the left or above where all four are equal; one to any of the eight around it
// where the pixel behind, or the pixel in front of the other end, has the label, too.
template <class Parent>
__global__ void __launch_bounds__(Policy::kTileThreads, 4)
    components_slices_kernel(const LabelMap map, const Tiles tiles, const Parts<Parent> parts) {
  constexpr int kHalves = kTileWidth / int(kWarpSize), kRows = kTileHeight / kWarps;
  const Tile tile = tile_at(tiles, block_index());
  if (tile.slice == 0) return;
  const int slice_pixel = tile.pixel - tile.top * tiles.width - tile.left;
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
        unite(parts.forest, parts.slot(tiles, slice_pixel, x, y),
              parts.slot(tiles, behind_pixel, other_x, other_y));
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
  const auto divisor = [](int64_t value) { return Divisor(std::max<int64_t>(value, 1)); };
  const int64_t row_seams = tiles.rows.value - 1, column_seams = tiles.columns.value - 1;
  Seams seams{};
  seams.row_pixels = map.depth * row_seams * map.width;
  const int64_t per_image = seams.row_pixels + map.depth * column_seams * map.height;
  seams.count = per_image * map.images;
  if (seams.count > 0) {
    seams.per_image = divisor(per_image);
    seams.width = divisor(map.width);
    seams.height = divisor(map.height);
    seams.row_seams = divisor(row_seams);
    seams.column_seams = divisor(column_seams);
    launch(components_seams_kernel<Parent>, divide_up(seams.count, kSeamThreads), kSeamThreads, 0,
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
