// Connected components on a GPU, and the mean of values over each, fused with the labelling.
//
// Tiles of 64 x 32 pixels are labelled in shared memory. What is left is a forest of the tiles'
// components, called parts here: few in a label map, at most one a pixel. A part has a slot, the
// parts of a tile follow each other, and pixels know theirs by a 16-bit number within the tile.
//
//   tiles   labels tiles (label_tile.h); numbers the parts; for means adds up each part's values
//   seams   unites parts across the borders of tiles (slices: of neighbouring slices in volumes)
//   roots   each part finds its root (forest.h); for means adds its sum and count there, once
//   and     means   maps pixels to the means of their parts' roots
//   or      words, ranks, ids   number the roots in the raster order of their first pixels, by a
//                               bitmap of these and a scan of its popcounts; map pixels to numbers
// Kernels and their launches are in seams.cu, means.cu and ids.cu; chunks.h cuts batches for them.
//
// Two neighbours of one label need an edge unless other edges imply it. Of the pixels
//   a b
//   c d
// the edge b-d is implied by a-c where all four are equal, and a diagonal where b or c is equal to
// both of its ends; equal neighbours in a row are a run, which within a tile is a single node. An
// edge is implied only by edges to its left (b-d), above it (c-d, where columns of tiles meet) or
// that are no diagonals: never two by each other. So every border of two runs costs one union,
// whatever its length.
//
// Bytes a pixel, uint8 labels and float32 values: tiles read 5 and write 2, means read 2 and write
// 4, seams read less than 1, so 14 of memory traffic where 9 must move (64 %); roots move 16 bytes
// a part. With an unknown bound the values are read once more. Ids: tiles 1 + 2, ids 2 + 4, the
// bitmap less than 1/2. Scratch: 18 bytes a pixel for means and 10.2 for ids, of at most 16 Mi
// pixels or one image: larger batches go through in chunks, whose part numbers the cache of a large
// GPU still holds when they are read.
#pragma once
#include "../../common/device/integer.h"
#include "../params.h"

namespace segunc::cuda::components {

using namespace device;

// ---- Launch policy ----

// Derived from occupancy and bytes in flight, not yet measured on a GPU. A thread of a tile has 16
// labels (8 of them from the cache) and 8 values in flight, 40 bytes from memory; with 64 registers
// 4 blocks are resident, 40 KB, where an H200's multiprocessor needs 30 to reach 4.8 TB/s. Their 25
// KB of shared memory allow so many but on sm_75 (2) and the targets of 100 KB (3). A pixel costs
// about 90 instructions in tiles and 40 in means: they bind before such a memory does, and each
// thread has 8 pixels so that what is not a pixel's counts little.
struct Policy {
  static constexpr int kTileThreads = 256;
  static constexpr int kRootThreads = 256;
  static constexpr int kScanThreads = 256;
  static constexpr int64_t kMaxChunkTiles = at_scale(1 << 13);
};

// Instructions an element on sm_90.
// report: budget component_mean_tiles_kernel<unsigned char, float> 134
// report: budget component_mean_means_kernel<float> 42

// Resident blocks of tiles that the compiler has to leave registers for: values and labels of more
// than 8 bytes together need more of them.
template <class Label, class Value>
constexpr int kTileBlocks = sizeof(Label) + sizeof(Value) > 8 ? 3 : 4;

// ---- Tiles ----

constexpr int kTileWidth = 64, kTileHeight = 32, kTilePixels = kTileWidth * kTileHeight;
constexpr int kSpan = 8;              // pixels of a thread, neighbours in a row
constexpr unsigned kNoPart = 0xffff;  // an ignored pixel's part
constexpr int kWarps = Policy::kTileThreads / int(kWarpSize);
static_assert(Policy::kTileThreads * kSpan == kTilePixels && kTilePixels <= int(kNoPart));
static_assert(kTileWidth % kSpan == 0 && kWarpSize * kSpan % kTileWidth == 0);

// All indices of pixels and of slots are within a chunk, and fit 31 bits. The slots of a tile start
// at the number of pixels in the tiles before it.
struct Tiles {
  int width, height;  // of a slice
  int slice_pixels, image_pixels;
  Divisor columns, rows, slices;  // tiles in a row; rows of tiles in a slice; slices in an image
  int64_t count;
};

struct Tile {
  int image, slice;
  int left, top;      // of its first pixel in the slice
  int width, height;  // inside the slice
  int pixel, slot;    // its first ones in the chunk
};

SEGUNC_DEVICE int first_slot(const Tiles& tiles, int slice_pixel, int left, int top) {
  return slice_pixel + top * tiles.width + left * smaller(kTileHeight, tiles.height - top);
}

SEGUNC_DEVICE Tile tile_at(const Tiles& tiles, int64_t index) {
  int64_t column, row, slice;
  const int64_t image =
      tiles.slices.divide(tiles.rows.divide(tiles.columns.divide(index, column), row), slice);
  Tile tile;
  tile.image = int(image);
  tile.slice = int(slice);
  tile.left = int(column) * kTileWidth;
  tile.top = int(row) * kTileHeight;
  tile.width = smaller(kTileWidth, tiles.width - tile.left);
  tile.height = smaller(kTileHeight, tiles.height - tile.top);
  const int slice_pixel = tile.image * tiles.image_pixels + tile.slice * tiles.slice_pixels;
  tile.pixel = slice_pixel + tile.top * tiles.width + tile.left;
  tile.slot = first_slot(tiles, slice_pixel, tile.left, tile.top);
  return tile;
}

// The pixels of a thread, in the order of threads: row span_row(), columns span_column() + i.
SEGUNC_DEVICE int span_row() { return int(thread()) * kSpan / kTileWidth; }
SEGUNC_DEVICE int span_column() { return int(thread()) * kSpan % kTileWidth; }
// How many of them are inside the tile, if their row is.
SEGUNC_DEVICE int columns_inside(const Tile& tile) {
  const int left = tile.width - span_column();
  return left < 0 ? 0 : smaller(left, kSpan);
}

// The first `inside` elements at p, zeros for the rest. wide: all are there or none, and aligned.
template <class T>
SEGUNC_DEVICE Vector<T, kSpan> load_span(const T* p, int inside, bool wide) {
  Vector<T, kSpan> span = {};
  if (wide) {
    if (inside > 0) span = load_vector<kSpan>(p);
  } else {
#pragma unroll
    for (int i = 0; i < kSpan; i++) {
      if (i < inside) span[i] = p[i];  // report: rare; vector 1
    }
  }
  return span;
}
template <class T>
SEGUNC_DEVICE void store_span(T* p, const Vector<T, kSpan>& span, int inside, bool wide) {
  if (wide) {
    if (inside > 0) store_vector(p, span);
  } else {
#pragma unroll
    for (int i = 0; i < kSpan; i++) {
      if (i < inside) p[i] = span[i];  // report: rare; vector 1
    }
  }
}

// The thread's place in maps [pixels] of the chunk.
struct Span {
  int pixel;   // the first one
  int inside;  // how many
  bool wide;

  SEGUNC_DEVICE Span(const Tiles& tiles, const Tile& tile, bool wide)
      : pixel(tile.pixel + span_row() * tiles.width + span_column()),
        inside(span_row() < tile.height ? columns_inside(tile) : 0),
        wide(wide) {}
  template <class T>
  SEGUNC_DEVICE Vector<T, kSpan> load(const T* map) const {
    return load_span(map + pixel, inside, wide);
  }
  template <class T>
  SEGUNC_DEVICE void store(T* map, const Vector<T, kSpan>& span) const {
    store_span(map + pixel, span, inside, wide);
  }
};

// ---- Parts ----

using PartSpan = Vector<uint16_t, kSpan>;

// The parts of a chunk.
template <class Parent>
struct Parts {
  Parent* forest;           // by slot
  uint16_t* part_of_pixel;  // [pixels]
  int32_t* parts_of_tile;   // [tiles]

  SEGUNC_DEVICE int slot(const Tiles& tiles, int slice_pixel, int x, int y) const {
    return first_slot(tiles, slice_pixel, x - x % kTileWidth, y - y % kTileHeight) +
           part_of_pixel[slice_pixel + y * tiles.width + x];
  }
};

// The last step of means and ids: result_of(part) of each pixel, 0 where ignored.
template <class Result, class ResultOf>
SEGUNC_DEVICE void store_results(const Span& span, const PartSpan& part, Result* results,
                                 ResultOf result_of) {
  Vector<Result, kSpan> result = {};
#pragma unroll
  for (int i = 0; i < kSpan; i++) {
    if (i < span.inside && part[i] != kNoPart) result[i] = result_of(part[i]);
  }
  span.store(results, result);
}

// Labels by pixel, where that is read so rarely that its width need not be known to the compiler.
SEGUNC_DEVICE uint64_t label_at(const LabelMap& map, int pixel) {
  switch (map.label_bytes) {
    case 1:
      return static_cast<const uint8_t*>(map.labels)[pixel];
    case 2:
      return static_cast<const uint16_t*>(map.labels)[pixel];
    case 4:
      return static_cast<const uint32_t*>(map.labels)[pixel];
    default:
      return static_cast<const uint64_t*>(map.labels)[pixel];
  }
}
SEGUNC_DEVICE bool is_ignored(const LabelMap& map, uint64_t label) {
  return map.ignores && label == uint64_t(map.ignored);
}

}  // namespace segunc::cuda::components
