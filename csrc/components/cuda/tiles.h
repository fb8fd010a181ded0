// Connected components on a GPU, and the mean of values over each, fused with the labelling.
//
// Tiles of 64 x 32 pixels are labelled in shared memory. What is left is a forest of the tiles'
// components, called parts here: few in a label map, at most one a pixel. A part has a slot, and
// the parts of a tile follow each other. Pixels find theirs by their run, which is what neighbours
// of one label in a row of a tile are: a bit a pixel tells where runs start, a 16-bit number a
// run's part.
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
// both of its ends; within a tile a run is a single node. An edge is implied only by edges to its
// left (b-d), above it (c-d, where columns of tiles meet) or that are no diagonals: never two by
// each other. So every border of two runs costs one union, whatever its length.
//
// Bytes a pixel, uint8 labels and float32 values: tiles read 5, means write 4, and what is kept of
// runs, written by the one and read by the other, is 10 bytes for 64 pixels and 2 a run, about 1/4;
// seams read less than 1, so 10.5 of memory traffic where 9 must move (86 %). Roots move 16 bytes a
// part. With an unknown bound the values are read once more. Ids: tiles read 1 and ids write 4, the
// bitmap is less than 1/2. Scratch: 18.2 bytes a pixel for means and 10.4 for ids, in images of
// less than 64 columns up to 10 more, of at most 16 Mi pixels or one image: larger batches go
// through in chunks, whose runs the cache of a large GPU still holds when they are read.
#pragma once
#include "../../common/device/integer.h"
#include "../params.h"

namespace segunc::cuda::components {

using namespace device;

// ---- Launch policy ----

// Derived from occupancy and bytes in flight, not yet measured on a GPU. A thread of a tile has 32
// labels (16 of them from the cache) and 16 values in flight, 80 bytes from memory; with 80
// registers 6 blocks are resident, 60 KB, where an H200's multiprocessor needs 30 to reach 4.8
// TB/s. Their 37 KB of shared memory allow so many but on sm_80 (4), the targets of 100 KB (2) and
// sm_75 (1). Instructions bind where memory is as fast as that, and each thread has 16 pixels so
// that what is not a pixel's counts little.
struct Policy {
  static constexpr int kTileThreads = 128;
  static constexpr int kRootThreads = 256;  // tuning
  static constexpr int kScanThreads = 256;
  static constexpr int64_t kMaxChunkTiles = at_scale(1 << 13);  // tuning
};

// Instructions an element on sm_90.
// report: budget component_mean_tiles_kernel<unsigned char, float> 58
// report: budget component_mean_means_kernel<float> 16.5
// report: budget components_seams_kernel<int> 84

// Resident blocks of tiles that the compiler has to leave registers for: the wider labels and
// values are, the fewer.
template <class Label, class Value>
constexpr int kTileBlocks = sizeof(Label) == 1 && sizeof(Value) <= 4 ? 6  // tuning
                            : sizeof(Label) + sizeof(Value) <= 8     ? 5
                            : sizeof(Label) + sizeof(Value) < 16     ? 4
                                                                     : 3;

// ---- Tiles ----

constexpr int kTileWidth = 64, kTileHeight = 32, kTilePixels = kTileWidth * kTileHeight;
constexpr int kSpan = 16;                  // pixels of a thread, neighbours in a row
constexpr int kPiece = 8;                  // of them that move together
constexpr unsigned kNoPart = kTilePixels;  // of ignored pixels
constexpr int kWarps = Policy::kTileThreads / int(kWarpSize);
static_assert(Policy::kTileThreads * kSpan == kTilePixels);
static_assert(kTileWidth % kSpan == 0 && kSpan % kPiece == 0 &&
              kWarpSize * kSpan % kTileWidth == 0);

// All indices of pixels, of slots and of rows of tiles are within a chunk, and fit 31 bits. The
// slots of a tile start at the number of pixels in the tiles before it, its rows at that of their
// rows.
struct Tiles {
  int width, height;  // of a slice
  int slice_pixels, image_pixels;
  int slice_rows;  // rows of tiles' pixels in a slice
  IndexDivisor columns, rows,
      slices;  // tiles in a row; rows of tiles in a slice; slices in an image
  int64_t count;
};

struct Tile {
  int image, slice;
  int left, top;         // of its first pixel in the slice
  int width, height;     // inside the slice
  int pixel, slot, row;  // its first ones in the chunk
};

// slice: of the chunk.
SEGUNC_DEVICE Tile tile_in_slice(const Tiles& tiles, int slice, int column, int row) {
  Tile tile;
  tile.left = column * kTileWidth;
  tile.top = row * kTileHeight;
  tile.width = smaller(kTileWidth, tiles.width - tile.left);
  tile.height = smaller(kTileHeight, tiles.height - tile.top);
  const int before = slice * tiles.slice_pixels + tile.top * tiles.width;
  tile.pixel = before + tile.left;
  tile.slot = before + tile.left * tile.height;
  tile.row = slice * tiles.slice_rows + tile.top * int(tiles.columns.value) + column * tile.height;
  return tile;
}

SEGUNC_DEVICE Tile tile_at(const Tiles& tiles, int index) {
  int column, row, slice_of_image;
  const int slice = tiles.rows.divide(tiles.columns.divide(index, column), row);
  Tile tile = tile_in_slice(tiles, slice, column, row);
  tile.image = tiles.slices.divide(slice, slice_of_image);
  tile.slice = slice_of_image;
  return tile;
}

// The pixels of a thread, in the order of threads: row span_row(), columns span_column() + i.
SEGUNC_DEVICE int span_row() { return int(thread() * kSpan / kTileWidth); }
SEGUNC_DEVICE int span_column() { return int(thread() * kSpan % kTileWidth); }
// How many of them are inside the tile, if their row is.
SEGUNC_DEVICE int columns_inside(const Tile& tile) {
  const int left = tile.width - span_column();
  return left < 0 ? 0 : smaller(left, kSpan);
}

// The first `inside` elements at p, zeros for the rest. wide: pieces are there as a whole or not at
// all, and aligned.
template <class T>
SEGUNC_DEVICE Vector<T, kSpan> load_span(const T* p, int inside, bool wide) {
  Vector<T, kSpan> span = {};
  if (wide) {
#pragma unroll
    for (int first = 0; first < kSpan; first += kPiece) {
      if (first >= inside) continue;
      const Vector<T, kPiece> piece = load_vector<kPiece>(p + first);
#pragma unroll
      for (int i = 0; i < kPiece; i++) span[first + i] = piece[i];
    }
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
#pragma unroll
    for (int first = 0; first < kSpan; first += kPiece) {
      if (first >= inside) continue;
      Vector<T, kPiece> piece;
#pragma unroll
      for (int i = 0; i < kPiece; i++) piece[i] = span[first + i];
      store_vector(p + first, piece);
    }
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

// ---- Runs and parts ----

// A bit for each pixel of a tile's row.
using RowBits = Vector<uint32_t, 2>;
static_assert(kTileWidth == 8 * sizeof(RowBits));

// How many are set in the columns 0..x.
SEGUNC_DEVICE int count_up_to(const RowBits& bits, int x) {
  const uint32_t in_word = (2u << x % 32) - 1;
  return popcount(bits[0] & (x < 32 ? in_word : kFullMask)) +
         popcount(bits[1] & (x < 32 ? 0 : in_word));
}

// Those of the span whose first column is x.
SEGUNC_DEVICE unsigned bits_of_span(const RowBits& bits, int x) {
  return (x < 32 ? bits[0] : bits[1]) >> x % 32 & ((1u << kSpan) - 1);
}

// The runs of a span: of equal labels side by side in a row of a tile, those of the ignored one,
// too. They are numbered in the tile's raster order.
struct SpanRuns {
  unsigned starts;  // a bit for each pixel that starts one
  int before;       // the last run that starts before the span

  SpanRuns() = default;
  SEGUNC_DEVICE SpanRuns(const RowBits& row_starts, int runs_before)
      : starts(bits_of_span(row_starts, span_column())),
        before(runs_before + count_up_to(row_starts, span_column()) - 1 - int(starts & 1)) {}
  // Of the span's i-th pixel.
  SEGUNC_DEVICE int run_of(int i) const { return before + popcount(starts & ((2u << i) - 1)); }
};

// The parts of a chunk, and the runs that lead pixels to them.
template <class Parent>
struct Parts {
  Parent* forest;          // by slot
  RowBits* run_starts;     // [rows of tiles]
  uint16_t* runs_before;   // [rows of tiles]: the first run's number
  uint16_t* part_of_run;   // by slot
  int32_t* parts_of_tile;  // [tiles]

  SEGUNC_DEVICE RowBits starts_of(int row) const { return load_vector<2>(run_starts[row].element); }
  // The slot of a pixel of a tile; starts: of its row.
  SEGUNC_DEVICE int slot_in(const Tile& tile, int row, const RowBits& starts, int column) const {
    const int run = runs_before[tile.row + row] + count_up_to(starts, column) - 1;
    return tile.slot + part_of_run[tile.slot + run];
  }
  // Of the pixel at x, y of a slice of the chunk.
  SEGUNC_DEVICE int slot(const Tiles& tiles, int slice, int x, int y) const {
    const Tile tile = tile_in_slice(tiles, slice, x / kTileWidth, y / kTileHeight);
    const int row = y - tile.top;
    return slot_in(tile, row, starts_of(tile.row + row), x - tile.left);
  }
};

// The parts of a thread's pixels.
template <class Parent>
struct PartsOfSpan {
  const uint16_t* part_of_run;  // of the tile
  SpanRuns runs;
  unsigned first;  // the first pixel's

  SEGUNC_DEVICE PartsOfSpan(const Parts<Parent>& parts, const Tile& tile, const Span& span)
      : part_of_run(parts.part_of_run + tile.slot), runs{}, first(kNoPart) {
    if (span.inside == 0) return;
    const int row = tile.row + span_row();
    runs = SpanRuns(parts.starts_of(row), parts.runs_before[row]);
    first = part_of_run[runs.run_of(0)];
  }

  // The last step of means and ids. The report's assumption is that of label_tile.h: 1.7 runs start
  // behind the first pixel of one of a warp's spans.
  template <class Result>
  SEGUNC_DEVICE void store_results(const Span& span, const Result* result_of_part,
                                   Result* results) const {
    Vector<Result, kSpan> result;
    const Result of_first = result_of_part[first];
#pragma unroll
    for (int i = 0; i < kSpan; i++) result[i] = of_first;
    int run = runs.run_of(0);
    // report: trips 1.7
    for (unsigned rest = runs.starts & ~1u; rest != 0; rest &= rest - 1) {
      const Result next = result_of_part[part_of_run[++run]];
      const unsigned onward = rest | (0u - rest);  // from the run's start
#pragma unroll
      for (int i = 1; i < kSpan; i++) {
        if (onward >> i & 1) result[i] = next;
      }
    }
    span.store(results, result);  // report: vector 16
  }
};

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
