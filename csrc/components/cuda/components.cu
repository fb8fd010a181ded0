// Connected components on a GPU, and the mean of values over each, fused with the labelling.
//
// Tiles of 64 x 32 pixels are labelled in shared memory. What is left is a forest of the tiles'
// components, called parts here: few in a label map, at most one a pixel. A part has a slot, the
// parts of a tile follow each other, and pixels know theirs by a 16-bit number within the tile.
//
//   tiles   labels tiles; numbers the parts; for means adds up each part's values
//   seams   unites parts across the borders of tiles (slices: of neighbouring slices in volumes)
//   roots   each part finds its root; for means adds its sum and count there, once
//   and     means   maps pixels to the means of their parts' roots
//   or      words, ranks, ids   number the roots in the raster order of their first pixels, by a
//                               bitmap of these and a scan of its popcounts; map pixels to numbers
//
// A forest is an array in which parents only decrease. Uniting puts the larger root under the
// smaller by an atomic minimum and goes on with the value that this displaced; so whatever happens
// at the same time, no union is lost.
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
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../../common/device/integer.h"
#include "../../common/device/softmax.h"
#include "../../common/device/work.h"
#include "kernels.h"

namespace segunc::cuda {
namespace {

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
  static constexpr int kSeamThreads = 256;
  static constexpr int kRootThreads = 256;
  static constexpr int kScanThreads = 256;
  static constexpr int kMaximumThreads = 256;
  static constexpr int64_t kMaxChunkTiles = at_scale(1 << 13);
  // Blocks that look for the largest value of an image: a warp of every tile reads what they found.
  static constexpr int64_t kMaxMaxima = at_scale(256);
  static constexpr int kMaximumPixels = 16;  // a thread, as long as there are enough
};

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

SEGUNC_DEVICE int smaller(int a, int b) { return a < b ? a : b; }

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
      if (i < inside) span[i] = p[i];
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
      if (i < inside) p[i] = span[i];
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

// ---- Forests ----

// What a node's parent is: its index, or, to order nodes by their first pixels, that of the parent
// in the upper half and the parent's index in the lower.
SEGUNC_DEVICE int node_of(int32_t parent) { return parent; }
SEGUNC_DEVICE int node_of(int64_t parent) { return int(parent); }
SEGUNC_DEVICE void make_root(int32_t* forest, int node, int) { forest[node] = node; }
SEGUNC_DEVICE void make_root(int64_t* forest, int node, int first_pixel) {
  forest[node] = int64_t(first_pixel) << 32 | node;
}

template <class Parent>
SEGUNC_DEVICE Parent find_root(const Parent* forest, int node) {
  Parent root = load_relaxed(forest + node);
  for (Parent above; (above = load_relaxed(forest + node_of(root))) != root;) root = above;
  return root;
}

template <class Parent>
SEGUNC_DEVICE void unite(Parent* forest, int a, int b) {
  for (;;) {
    Parent low = find_root(forest, a), high = find_root(forest, b);
    if (low == high) return;
    if (low > high) {
      const Parent swapped = low;
      low = high;
      high = swapped;
    }
    const Parent displaced = atomic_min(forest + node_of(high), low);
    if (displaced == high) return;  // it was still a root
    a = node_of(displaced);
    b = node_of(low);
  }
}

// ---- Sums within warps and blocks ----

SEGUNC_DEVICE int inclusive_warp_sum(int value) {
#pragma unroll
  for (unsigned delta = 1; delta < kWarpSize; delta *= 2) {
    const int before = shuffle_up(kFullMask, value, delta);
    if (lane() >= delta) value += before;
  }
  return value;
}

// The sum of the threads before this one; total: of all. For blocks of kScanThreads; a barrier has
// to follow before the next call.
SEGUNC_DEVICE int exclusive_block_sum(int value, int& total) {
  constexpr int kScanWarps = Policy::kScanThreads / int(kWarpSize);
  SEGUNC_SHARED(warp_total, int[kScanWarps]);
  const int inclusive = inclusive_warp_sum(value);
  if (lane() == kWarpSize - 1) warp_total[warp()] = inclusive;
  barrier();
  int before = 0;
  total = 0;
#pragma unroll
  for (int i = 0; i < kScanWarps; i++) {
    if (i < int(warp())) before += warp_total[i];
    total += warp_total[i];
  }
  return before + inclusive - value;
}

template <class A>
SEGUNC_DEVICE A warp_maximum(A value) {
#pragma unroll
  for (unsigned distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value = larger(value, shuffle_xor(kFullMask, value, distance));
  }
  return value;
}

// ---- A tile's parts ----

using PartSpan = Vector<uint16_t, kSpan>;

// Bit i is whether a[i] == b[i].
template <class Label>
SEGUNC_DEVICE unsigned equal_bits(const Vector<Label, kSpan>& a, const Vector<Label, kSpan>& b) {
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kSpan; i++) bits |= a[i] == b[i] ? 1u << i : 0;
  return bits;
}
// Each pixel's neighbour to the left; arbitrary at the tile's first column. A warp calls it as a
// whole.
template <class Label>
SEGUNC_DEVICE Vector<Label, kSpan> shifted(const Vector<Label, kSpan>& label) {
  Vector<Label, kSpan> left;
  left[0] = shuffle_up(kFullMask, label[kSpan - 1], 1);
#pragma unroll
  for (int i = 1; i < kSpan; i++) left[i] = label[i - 1];
  return left;
}

// What is known of a span's runs, packed for others to read: which pixels differ from the left one,
// which of these start a run, and the number of runs that start in spans before. Ignored pixels are
// in no run.
struct Runs {
  uint32_t packed;

  Runs() = default;
  SEGUNC_DEVICE Runs(unsigned changes, unsigned starts, int before)
      : packed(changes | starts << 8 | unsigned(before) << 16) {
    static_assert(kSpan == 8);
  }
  SEGUNC_DEVICE unsigned changes() const { return packed & 0xff; }
  SEGUNC_DEVICE unsigned starts() const { return packed >> 8 & 0xff; }
  // Of the run that holds a pixel, and of the last one that starts before it.
  SEGUNC_DEVICE int run_of(int i) const {
    return int(packed >> 16) + popcount(starts() & ((2u << i) - 1)) - 1;
  }
  SEGUNC_DEVICE int run_before(int i) const {
    return int(packed >> 16) + popcount(starts() & ((1u << i) - 1)) - 1;
  }
};

// Labels a tile. part: of each of the thread's pixels, kNoPart where ignored or outside. Returns
// the number of parts. forest: [kTilePixels] in shared memory, 16-byte aligned; a barrier has to
// follow before it is used otherwise. on_run(run, row, column) and then, after a barrier,
// on_root(run, part) are called for each run and for the first run of each part.
//
// The nodes of the forest are the runs, numbered in raster order.
template <class Label, class OnRun, class OnRoot>
SEGUNC_DEVICE int label_tile(const LabelMap& map, const Tiles& tiles, const Span& span,
                             int32_t* forest, PartSpan& part, OnRun on_run, OnRoot on_root) {
  constexpr int kWords = kTilePixels / 32;  // of a bit a run
  constexpr int kWordsOfLane = kWords / int(kWarpSize);
  constexpr int kThreadsOfRow = kTileWidth / kSpan;
  SEGUNC_SHARED(runs_of_thread, Runs[Policy::kTileThreads]);
  SEGUNC_SHARED(root_bits, unsigned[kWords]);
  static_assert(Policy::kScanThreads == Policy::kTileThreads);

  const Label* labels = static_cast<const Label*>(map.labels);
  const bool has_above = span_row() > 0 && span.inside > 0;
  const Vector<Label, kSpan> label = span.load(labels);
  const Vector<Label, kSpan> above =
      load_span(labels + (span.pixel - tiles.width), has_above ? span.inside : 0, span.wide);
#pragma unroll
  for (int first = 0; first < kTilePixels; first += 4 * Policy::kTileThreads) {
    const int i = first + 4 * int(thread());
    store_vector(forest + i, Vector<int32_t, 4>{{i, i + 1, i + 2, i + 3}});
  }

  Vector<Label, kSpan> ignored;
#pragma unroll
  for (int i = 0; i < kSpan; i++) ignored[i] = Label(map.ignored);
  const unsigned inside = (1u << span.inside) - 1;
  const unsigned labelled = map.ignores ? inside & ~equal_bits(label, ignored) : inside;
  const Vector<Label, kSpan> left = shifted(label), left_above = shifted(above);
  const unsigned first_column = span_column() == 0 ? 1 : 0;
  const unsigned changes = inside & (~equal_bits(label, left) | first_column);
  int runs;
  const int before = exclusive_block_sum(popcount(changes & labelled), runs);
  const Runs here(changes, changes & labelled, before);
  runs_of_thread[thread()] = here;
  for (unsigned rest = here.starts(); rest != 0; rest &= rest - 1) {
    const int i = find_first_set(rest) - 1;
    on_run(here.run_of(i), span_row(), span_column() + i);
  }
  barrier();

  if (has_above) {
    const Runs over = runs_of_thread[int(thread()) - kThreadsOfRow];
    for (unsigned rest = equal_bits(label, above) & labelled & (changes | over.changes());
         rest != 0; rest &= rest - 1) {
      const int i = find_first_set(rest) - 1;
      unite(forest, here.run_of(i), over.run_of(i));
    }
    const unsigned corners = changes & over.changes() & ~first_column;
    if (map.diagonal && corners != 0) {
      for (unsigned rest = equal_bits(label, left_above) & labelled & corners; rest != 0;
           rest &= rest - 1) {
        const int i = find_first_set(rest) - 1;
        unite(forest, here.run_of(i), over.run_before(i));
      }
      const unsigned labelled_above = map.ignores ? ~equal_bits(above, ignored) : kFullMask;
      for (unsigned rest = equal_bits(left, above) & labelled_above & corners; rest != 0;
           rest &= rest - 1) {
        const int i = find_first_set(rest) - 1;
        unite(forest, here.run_before(i), over.run_of(i));
      }
    }
  }
  barrier();

  // Runs point at their roots, so that the others have one step to go.
  const int rounds = (runs + Policy::kTileThreads - 1) / Policy::kTileThreads;
#pragma unroll 1
  for (int round = 0; round < rounds; round++) {
    const int run = round * Policy::kTileThreads + int(thread());
    bool is_root = false;
    if (run < runs) {
      const int root = find_root(forest, run);
      store_relaxed(forest + run, root);
      is_root = root == run;
    }
    const unsigned bits = ballot(kFullMask, is_root);
    if (lane() == 0) root_bits[run / 32] = bits;
  }
  barrier();

  // Roots are numbered. Only its own thread reads a run here.
  int roots = 0;
#pragma unroll
  for (int i = 0; i < kWordsOfLane; i++) {
    const int word = int(lane()) * kWordsOfLane + i;
    if (word < rounds * kWarps) roots += popcount(root_bits[word]);
  }
  const int up_to_words = inclusive_warp_sum(roots);
  const int parts = shuffle(kFullMask, up_to_words, kWarpSize - 1);
#pragma unroll 1
  for (int round = 0; round < rounds; round++) {
    const int run = round * Policy::kTileThreads + int(thread());
    const int root = run < runs ? forest[run] : 0;
    const int word = root / 32;
    int number = shuffle(kFullMask, up_to_words - roots, unsigned(word / kWordsOfLane));
    for (int i = word - word % kWordsOfLane; i < word; i++) number += popcount(root_bits[i]);
    number += popcount(root_bits[word] & ((1u << root % 32) - 1));
    if (run < runs) {
      forest[run] = number;
      if (root == run) on_root(run, number);
    }
  }
  barrier();

#pragma unroll
  for (int i = 0; i < kSpan; i++) {
    part[i] = uint16_t((labelled >> i & 1) != 0 ? forest[here.run_of(i)] : kNoPart);
  }
  return parts;
}

// The last step of both: result_of(part) of each pixel, 0 where ignored.
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

// ---- Between tiles ----

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

// Places where tiles meet: first rows of tiles against the row above, pixel by pixel, then first
// columns against the column to their left.
struct Seams {
  Divisor per_image, width, height, row_seams, column_seams;
  int64_t row_pixels;  // of an image
  int64_t count;       // of the chunk
};

template <class Parent>
__global__ void __launch_bounds__(Policy::kSeamThreads)
    components_seams_kernel(const LabelMap map, const Tiles tiles, const Seams seams,
                            const Parts<Parent> parts) {
  const int64_t index = int64_t(block_index()) * Policy::kSeamThreads + thread();
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

// ---- component_mean ----

// A count whose values are not all finite numbers within the bound.
constexpr uint32_t kNotFinite = 0x80000000u;

// 2^exponent, which on its own need not be a number of the type.
template <class A>
struct PowerOfTwo {
  A factor[2];
  PowerOfTwo() = default;
  SEGUNC_HD explicit PowerOfTwo(int exponent)
      : factor{std::ldexp(A(1), exponent / 2), std::ldexp(A(1), exponent - exponent / 2)} {}
  SEGUNC_HD A times(A value) const { return value * factor[0] * factor[1]; }
};

// Values are added as integers: value * 2^exponent, such that the sum of an image stays below 2^62
// even where rounding has put values above the bound, by one bit.
template <class A>
struct FixedPoint {
  const A* maxima;  // [images, maxima_per_image], or null: then the bound and what follows is known
  int maxima_per_image;
  int log2_pixels;  // of an image, rounded up
  A limit;          // of value * 2^exponent
  PowerOfTwo<A> units_of_one;
  PowerOfTwo<double> unit;

  SEGUNC_HD int exponent(A bound) const {
    int log2_bound = 0;
    std::frexp(bound, &log2_bound);
    return 61 - log2_pixels - log2_bound;
  }
  // Of an image whose bound the device has found. A warp calls it as a whole.
  SEGUNC_DEVICE int found_exponent(int image) const {
    A largest = A(0);
#pragma unroll 1
    for (int i = int(lane()); i < maxima_per_image; i += int(kWarpSize)) {
      largest = larger(largest, maxima[int64_t(image) * maxima_per_image + i]);
    }
    return exponent(warp_maximum(largest));
  }
  SEGUNC_DEVICE PowerOfTwo<A> units_of_one_in(int image) const {
    return maxima ? PowerOfTwo<A>(found_exponent(image)) : units_of_one;
  }
  SEGUNC_DEVICE PowerOfTwo<double> unit_in(int image) const {
    return maxima ? PowerOfTwo<double>(-found_exponent(image)) : unit;
  }
};

// The largest finite magnitude of a share of an image.
template <class T>
__global__ void __launch_bounds__(Policy::kMaximumThreads)
    component_mean_maximum_kernel(const LabelMap map, const Tiles tiles, const T* values,
                                  const Divisor maxima_per_image, accumulate_t<T>* maxima) {
  using A = accumulate_t<T>;
  constexpr int kMaximumWarps = Policy::kMaximumThreads / int(kWarpSize);
  SEGUNC_SHARED(warp_largest, A[kMaximumWarps]);
  int64_t share;
  const int64_t image = maxima_per_image.divide(block_index(), share);
  const int first = int(image) * tiles.image_pixels;
  const int64_t stride = maxima_per_image.value * Policy::kMaximumThreads;
  A largest = A(0);
#pragma unroll 4
  for (int64_t i = share * Policy::kMaximumThreads + thread(); i < tiles.image_pixels;
       i += stride) {
    const A magnitude = std::fabs(to_accumulate(values[first + int(i)]));
    const bool counts = magnitude < kInfinity<A> &&
                        !(map.ignores && is_ignored(map, label_at(map, first + int(i))));
    largest = larger(largest, counts ? magnitude : A(0));
  }
  largest = warp_maximum(largest);
  if (lane() == 0) warp_largest[warp()] = largest;
  barrier();
  if (thread() == 0) {
#pragma unroll
    for (int i = 1; i < kMaximumWarps; i++) largest = larger(largest, warp_largest[i]);
    maxima[block_index()] = largest;
  }
}

struct PartSums {
  int64_t* sum;     // by slot
  uint32_t* count;  // by slot
};

// What a lane has added up of one part: count in the lower half, values that are no finite numbers
// in the upper.
struct LaneSum {
  unsigned part;
  int64_t sum;
  unsigned count;
};

SEGUNC_DEVICE void add_to_part(const LaneSum& mine, int64_t* sum, unsigned* count) {
  if (mine.part == kNoPart) return;
  atomic_add(sum + mine.part, mine.sum);
  atomic_add(count + mine.part, mine.count);
}

// Adds what the lanes of a warp hold, once for neighbouring lanes of one part.
SEGUNC_DEVICE void add_to_parts(LaneSum mine, int64_t* sum, unsigned* count) {
  const unsigned part_before = shuffle_up(kFullMask, mine.part, 1);
  const bool leads = lane() == 0 || mine.part != part_before;
  const unsigned leaders_after = ballot(kFullMask, leads) & (kFullMask << 1 << lane());
  const unsigned end = leaders_after ? unsigned(find_first_set(leaders_after)) - 1 : kWarpSize;
#pragma unroll
  for (unsigned delta = 1; delta < kWarpSize; delta *= 2) {
    const int64_t next_sum = shuffle_down(kFullMask, mine.sum, delta);
    const unsigned next_count = shuffle_down(kFullMask, mine.count, delta);
    if (lane() + delta < end) {
      mine.sum += next_sum;
      mine.count += next_count;
    }
  }
  if (leads) add_to_part(mine, sum, count);
}

template <class Label, class T>
__global__ void __launch_bounds__(Policy::kTileThreads, kTileBlocks<Label, T>)
    component_mean_tiles_kernel(const LabelMap map, const Tiles tiles, const T* values,
                                const FixedPoint<accumulate_t<T>> fixed_point,
                                const Parts<int32_t> parts, const PartSums sums, const bool wide) {
  using A = accumulate_t<T>;
  union Memory {
    alignas(16) int32_t forest[kTilePixels];
    int64_t sum[kTilePixels];  // by part, once every pixel knows its own
  };
  SEGUNC_SHARED(memory, Memory);
  SEGUNC_SHARED(count, unsigned[kTilePixels]);
  const Tile tile = tile_at(tiles, block_index());
  const Span span(tiles, tile, wide);
  const Vector<T, kSpan> value = span.load(values);
  PartSpan part;
  const int tile_parts = label_tile<Label>(
      map, tiles, span, memory.forest, part, [](int, int, int) {},
      [&](int, int number) {
        make_root(parts.forest, tile.slot + number, 0);
        count[number] = 0;
      });
  span.store(parts.part_of_pixel, part);
  barrier();  // nobody reads the forest any more
  for (int i = int(thread()); i < tile_parts; i += Policy::kTileThreads) memory.sum[i] = 0;
  barrier();

  const PowerOfTwo<A> units_of_one = fixed_point.units_of_one_in(tile.image);
  LaneSum mine{part[0], 0, 0};
#pragma unroll
  for (int i = 0; i < kSpan; i++) {
    if (part[i] != mine.part) {
      add_to_part(mine, memory.sum, count);
      mine = {part[i], 0, 0};
    }
    const A units = units_of_one.times(to_accumulate(value[i]));
    if (std::fabs(units) <= fixed_point.limit) {
      mine.sum += std::llrint(units);
      mine.count++;
    } else {
      mine.count += 1u << 16;
    }
  }
  add_to_parts(mine, memory.sum, count);
  barrier();
  for (int i = int(thread()); i < tile_parts; i += Policy::kTileThreads) {
    sums.sum[tile.slot + i] = memory.sum[i];
    sums.count[tile.slot + i] = count[i] >> 16 ? kNotFinite : count[i];
  }
  if (thread() == 0) parts.parts_of_tile[block_index()] = tile_parts;
}

// A warp a tile, a lane a part: a part's sum moves once, whatever its size.
__global__ void __launch_bounds__(Policy::kRootThreads)
    component_mean_roots_kernel(const Tiles tiles, const Parts<int32_t> parts,
                                const PartSums sums) {
  const int64_t index =
      (int64_t(block_index()) * Policy::kRootThreads + thread()) / int64_t(kWarpSize);
  if (index >= tiles.count) return;
  const int first = tile_at(tiles, index).slot;
  for (int i = int(lane()); i < parts.parts_of_tile[index]; i += int(kWarpSize)) {
    const int slot = first + i;
    const int root = find_root(parts.forest, slot);
    if (root == slot) continue;
    store_relaxed(parts.forest + slot, root);
    if (sums.count[slot] & kNotFinite) {
      // Counts added to this stay below 2^32.
      atomic_max(sums.count + root, kNotFinite);
    } else {
      atomic_add(sums.sum + root, sums.sum[slot]);
      atomic_add(sums.count + root, sums.count[slot]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(Policy::kTileThreads, 4)
    component_mean_means_kernel(const Tiles tiles, const Parts<int32_t> parts, const PartSums sums,
                                const FixedPoint<accumulate_t<T>> fixed_point, T* means,
                                const bool wide) {
  using A = accumulate_t<T>;
  SEGUNC_SHARED(mean, T[kTilePixels]);
  const Tile tile = tile_at(tiles, block_index());
  const Span span(tiles, tile, wide);
  const PartSpan part = span.load(parts.part_of_pixel);
  const PowerOfTwo<double> unit = fixed_point.unit_in(tile.image);
  const int tile_parts = parts.parts_of_tile[block_index()];
  for (int i = int(thread()); i < tile_parts; i += Policy::kTileThreads) {
    const int root = parts.forest[tile.slot + i];
    const uint32_t count = sums.count[root];
    const A result =
        count & kNotFinite ? kNaN<A> : A(unit.times(double(sums.sum[root]) / double(count)));
    mean[i] = from_accumulate<T>(result);
  }
  barrier();
  store_results(span, part, means, [&](unsigned i) { return mean[i]; });
}

// ---- connected_components ----

// A segment is scanned by a block; its popcounts fit 16 bits.
constexpr int kWordsOfThread = 4;
constexpr int kSegmentWords = int(at_scale(kWordsOfThread * Policy::kScanThreads));

// A bit a pixel, set at the first pixel of each component; how many are set before.
struct Bitmap {
  uint32_t* bits;           // [images, words]
  uint16_t* before_word;    // [images, words]: in its segment
  int32_t* of_segment;      // [images, segments]
  int32_t* before_segment;  // [images, segments]: in its image
  int words, segments;      // of an image
};

template <class Label>
__global__ void __launch_bounds__(Policy::kTileThreads, kTileBlocks<Label, char>)
    components_tiles_kernel(const LabelMap map, const Tiles tiles, const Parts<int64_t> parts,
                            const Bitmap bitmap, const bool wide) {
  struct alignas(16) Forest {
    int32_t parent[kTilePixels];
  };
  SEGUNC_SHARED(forest, Forest);
  SEGUNC_SHARED(pixel_of_run, uint16_t[kTilePixels]);
  const Tile tile = tile_at(tiles, block_index());
  const int first_pixel = tile.pixel - tile.image * tiles.image_pixels;
  const Span span(tiles, tile, wide);
  PartSpan part;
  const int tile_parts = label_tile<Label>(
      map, tiles, span, forest.parent, part,
      [&](int run, int row, int x) { pixel_of_run[run] = uint16_t(row * kTileWidth + x); },
      [&](int run, int number) {
        const int row = pixel_of_run[run] / kTileWidth, x = pixel_of_run[run] % kTileWidth;
        make_root(parts.forest, tile.slot + number, first_pixel + row * tiles.width + x);
      });
  span.store(parts.part_of_pixel, part);
  if (thread() == 0) parts.parts_of_tile[block_index()] = tile_parts;

  const int64_t words = int64_t(bitmap.words) * map.images;
  const int64_t threads = int64_t(grid_size()) * Policy::kTileThreads;
  for (int64_t i = int64_t(block_index()) * Policy::kTileThreads + thread(); i < words;
       i += threads) {
    bitmap.bits[i] = 0;
  }
}

__global__ void __launch_bounds__(Policy::kRootThreads)
    components_roots_kernel(const Tiles tiles, const Parts<int64_t> parts, const Bitmap bitmap) {
  const int64_t index =
      (int64_t(block_index()) * Policy::kRootThreads + thread()) / int64_t(kWarpSize);
  if (index >= tiles.count) return;
  const Tile tile = tile_at(tiles, index);
  for (int i = int(lane()); i < parts.parts_of_tile[index]; i += int(kWarpSize)) {
    const int slot = tile.slot + i;
    const int64_t root = find_root(parts.forest, slot);
    if (node_of(root) != slot) {
      store_relaxed(parts.forest + slot, root);
    } else {
      const int pixel = int(root >> 32);
      // Nobody else sets this bit: adding it is setting it.
      atomic_add(bitmap.bits + int64_t(tile.image) * bitmap.words + pixel / 32, 1u << pixel % 32);
    }
  }
}

// A block a segment.
__global__ void __launch_bounds__(Policy::kScanThreads)
    components_words_kernel(const Bitmap bitmap, const Divisor segments) {
  int64_t segment;
  const int64_t image = segments.divide(block_index(), segment);
  const int in_segment = int(thread()) * kWordsOfThread;
  const int first = int(segment) * kSegmentWords + in_segment;
  const int64_t at = image * bitmap.words + first;
  const int words = smaller(kSegmentWords - in_segment, bitmap.words - first);
  int roots[kWordsOfThread], mine = 0;
#pragma unroll
  for (int i = 0; i < kWordsOfThread; i++) {
    roots[i] = i < words ? popcount(bitmap.bits[at + i]) : 0;
    mine += roots[i];
  }
  int total;
  int before = exclusive_block_sum(mine, total);
#pragma unroll
  for (int i = 0; i < kWordsOfThread; i++) {
    if (i < words) bitmap.before_word[at + i] = uint16_t(before);
    before += roots[i];
  }
  if (thread() == 0) bitmap.of_segment[block_index()] = total;
}

// A block an image.
__global__ void __launch_bounds__(Policy::kScanThreads)
    components_ranks_kernel(const Bitmap bitmap, int64_t* counts) {
  const int64_t first_segment = int64_t(block_index()) * bitmap.segments;
  int before = 0;
  for (int first = 0; first < bitmap.segments; first += Policy::kScanThreads) {
    const int segment = first + int(thread());
    const bool exists = segment < bitmap.segments;
    int total;
    const int in_step =
        exclusive_block_sum(exists ? bitmap.of_segment[first_segment + segment] : 0, total);
    if (exists) bitmap.before_segment[first_segment + segment] = before + in_step;
    before += total;
    barrier();  // the sum may still be in use
  }
  if (thread() == 0) counts[block_index()] = before;
}

__global__ void __launch_bounds__(Policy::kTileThreads, 4)
    components_ids_kernel(const Tiles tiles, const Parts<int64_t> parts, const Bitmap bitmap,
                          int32_t* components, const bool wide) {
  SEGUNC_SHARED(id, int32_t[kTilePixels]);
  const Tile tile = tile_at(tiles, block_index());
  const Span span(tiles, tile, wide);
  const PartSpan part = span.load(parts.part_of_pixel);
  const int tile_parts = parts.parts_of_tile[block_index()];
  for (int i = int(thread()); i < tile_parts; i += Policy::kTileThreads) {
    const int pixel = int(parts.forest[tile.slot + i] >> 32);
    const int word = pixel / 32;
    const int64_t at = int64_t(tile.image) * bitmap.words + word;
    const unsigned below = bitmap.bits[at] & ((1u << pixel % 32) - 1);
    id[i] = 1 + popcount(below) + bitmap.before_word[at] +
            bitmap.before_segment[int64_t(tile.image) * bitmap.segments + word / kSegmentWords];
  }
  barrier();
  store_results(span, part, components, [&](unsigned i) { return id[i]; });
}

// ---- launch and dispatch ----

int64_t divide_up(int64_t n, int64_t divisor) { return (n + divisor - 1) / divisor; }

// How a batch is cut into chunks of whole images.
struct Plan {
  int64_t image_pixels;
  int64_t chunk_images, chunk_tiles;  // of all chunks but the last
  Tiles tiles;                        // of one image
};

Plan make_plan(const LabelMap& map) {
  constexpr int64_t kMaxPixels = 0x7fffffff;
  Plan plan{};
  // Without overflow, whatever the sizes are.
  const int64_t slice = map.width > 0 && map.height > kMaxPixels / map.width
                            ? kMaxPixels + 1
                            : map.width * map.height;
  plan.image_pixels =
      slice > 0 && map.depth > kMaxPixels / slice ? kMaxPixels + 1 : slice * map.depth;
  if (plan.image_pixels > kMaxPixels) {
    throw std::runtime_error("labels: expected images of fewer than 2^31 pixels, got " +
                             std::to_string(map.depth) + " x " + std::to_string(map.height) +
                             " x " + std::to_string(map.width));
  }
  if (plan.image_pixels == 0) return plan;
  plan.tiles.width = int(map.width);
  plan.tiles.height = int(map.height);
  plan.tiles.slice_pixels = int(slice);
  plan.tiles.image_pixels = int(plan.image_pixels);
  plan.tiles.columns = Divisor(divide_up(map.width, kTileWidth));
  plan.tiles.rows = Divisor(divide_up(map.height, kTileHeight));
  plan.tiles.slices = Divisor(map.depth);
  plan.tiles.count = plan.tiles.columns.value * plan.tiles.rows.value * map.depth;
  plan.chunk_images =
      std::min(map.images, std::max<int64_t>(1, Policy::kMaxChunkTiles / plan.tiles.count));
  plan.chunk_tiles = plan.chunk_images * plan.tiles.count;
  return plan;
}

// Calls launch_chunk(labels, tiles, first_image) for each chunk, one after another.
template <class LaunchChunk>
void for_each_chunk(const LabelMap& map, const Plan& plan, LaunchChunk launch_chunk) {
  LabelMap chunk = map;
  if (map.label_bytes < 8) chunk.ignored &= (int64_t(1) << 8 * map.label_bytes) - 1;
  for (int64_t first = 0; first < map.images; first += plan.chunk_images) {
    chunk.images = std::min(plan.chunk_images, map.images - first);
    chunk.labels =
        static_cast<const char*>(map.labels) + first * plan.image_pixels * map.label_bytes;
    Tiles tiles = plan.tiles;
    tiles.count *= chunk.images;
    launch_chunk(chunk, tiles, first);
  }
}

// Deals out memory; without any it only counts.
class Scratch {
 public:
  explicit Scratch(void* memory) : memory_(reinterpret_cast<uintptr_t>(memory)) {}
  template <class T>
  T* take(int64_t count) {
    const uintptr_t address = memory_ + uintptr_t(bytes_);
    bytes_ += divide_up(count * int64_t(sizeof(T)), 16) * 16;
    return reinterpret_cast<T*>(address);
  }
  int64_t bytes() const { return bytes_; }

 private:
  uintptr_t memory_;
  int64_t bytes_ = 0;
};

template <class Parent>
Parts<Parent> take_parts(Scratch& scratch, const Plan& plan) {
  const int64_t pixels = plan.chunk_images * plan.image_pixels;
  Parts<Parent> parts{};
  parts.forest = scratch.take<Parent>(pixels);
  parts.part_of_pixel = scratch.take<uint16_t>(pixels);
  parts.parts_of_tile = scratch.take<int32_t>(plan.chunk_tiles);
  return parts;
}

PartSums take_sums(Scratch& scratch, const Plan& plan) {
  const int64_t pixels = plan.chunk_images * plan.image_pixels;
  PartSums sums{};
  sums.sum = scratch.take<int64_t>(pixels);
  sums.count = scratch.take<uint32_t>(pixels);
  return sums;
}

Bitmap take_bitmap(Scratch& scratch, const Plan& plan) {
  Bitmap bitmap{};
  bitmap.words = int(divide_up(plan.image_pixels, 32));
  bitmap.segments = int(divide_up(bitmap.words, kSegmentWords));
  const int64_t words = plan.chunk_images * bitmap.words;
  const int64_t segments = plan.chunk_images * bitmap.segments;
  bitmap.bits = scratch.take<uint32_t>(words);
  bitmap.before_word = scratch.take<uint16_t>(words);
  bitmap.of_segment = scratch.take<int32_t>(segments);
  bitmap.before_segment = scratch.take<int32_t>(segments);
  return bitmap;
}

template <class Launch>
void with_label(int label_bytes, Launch launch_label) {
  switch (label_bytes) {
    case 1:
      return launch_label(uint8_t());
    case 2:
      return launch_label(uint16_t());
    case 4:
      return launch_label(uint32_t());
    case 8:
      return launch_label(uint64_t());
  }
  throw std::runtime_error("no kernel for labels of " + std::to_string(label_bytes) + " bytes");
}

// Whether every span of a map is inside it as a whole, and an aligned vector.
bool has_whole_spans(const Tiles& tiles, const void* map, int64_t element_bytes) {
  return tiles.width % kSpan == 0 &&
         reinterpret_cast<uintptr_t>(map) % std::min<int64_t>(kSpan * element_bytes, 16) == 0;
}

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
    launch(components_seams_kernel<Parent>, divide_up(seams.count, Policy::kSeamThreads),
           Policy::kSeamThreads, 0, stream, map, tiles, seams, parts);
  }
  if (map.depth > 1) {
    launch(components_slices_kernel<Parent>, tiles.count, Policy::kTileThreads, 0, stream, map,
           tiles, parts);
  }
}

int64_t root_blocks(const Tiles& tiles) {
  return divide_up(tiles.count, Policy::kRootThreads / kWarpSize);
}

struct ComponentsScratch {
  Parts<int64_t> parts;
  Bitmap bitmap;
  int64_t bytes;

  ComponentsScratch(const Plan& plan, void* memory) {
    Scratch scratch(memory);
    parts = take_parts<int64_t>(scratch, plan);
    bitmap = take_bitmap(scratch, plan);
    bytes = scratch.bytes();
  }
};

bool knows_bound(const ComponentMeanParams& p) { return p.bound > 0 && std::isfinite(p.bound); }

template <class T>
struct MeanScratch {
  using A = accumulate_t<T>;
  Parts<int32_t> parts;
  PartSums sums;
  A* maxima;
  FixedPoint<A> fixed_point;
  int64_t bytes;

  MeanScratch(const ComponentMeanParams& p, const Plan& plan) {
    Scratch scratch(p.scratch);
    parts = take_parts<int32_t>(scratch, plan);
    sums = take_sums(scratch, plan);
    fixed_point = {};
    while (int64_t(1) << fixed_point.log2_pixels < plan.image_pixels) fixed_point.log2_pixels++;
    fixed_point.limit = std::ldexp(A(1), 62 - fixed_point.log2_pixels);
    if (!knows_bound(p)) {
      constexpr int64_t kShare = int64_t(Policy::kMaximumThreads) * Policy::kMaximumPixels;
      const int64_t shares = std::min(divide_up(plan.image_pixels, kShare), Policy::kMaxMaxima);
      maxima = scratch.take<A>(plan.chunk_images * shares);
      fixed_point.maxima = maxima;
      fixed_point.maxima_per_image = int(shares);
    } else {
      const double largest = double(std::numeric_limits<A>::max());
      const int exponent = fixed_point.exponent(A(std::min(p.bound, largest)));
      fixed_point.units_of_one = PowerOfTwo<A>(exponent);
      fixed_point.unit = PowerOfTwo<double>(-exponent);
    }
    bytes = scratch.bytes();
  }
};

template <class T>
void launch_component_mean(const ComponentMeanParams& p, const Plan& plan, Stream stream) {
  const MeanScratch<T> scratch(p, plan);
  for_each_chunk(p.map, plan, [&](const LabelMap& map, const Tiles& tiles, int64_t first_image) {
    const T* values = static_cast<const T*>(p.values) + first_image * plan.image_pixels;
    T* means = static_cast<T*>(p.means) + first_image * plan.image_pixels;
    const bool wide = has_whole_spans(tiles, map.labels, map.label_bytes) &&
                      has_whole_spans(tiles, values, sizeof(T)) &&
                      has_whole_spans(tiles, means, sizeof(T));
    if (scratch.fixed_point.maxima) {
      const int64_t shares = scratch.fixed_point.maxima_per_image;
      launch(component_mean_maximum_kernel<T>, map.images * shares, Policy::kMaximumThreads, 0,
             stream, map, tiles, values, Divisor(shares), scratch.maxima);
    }
    with_label(map.label_bytes, [&](auto label) {
      launch(component_mean_tiles_kernel<decltype(label), T>, tiles.count, Policy::kTileThreads, 0,
             stream, map, tiles, values, scratch.fixed_point, scratch.parts, scratch.sums, wide);
    });
    launch_seams(map, tiles, scratch.parts, stream);
    launch(component_mean_roots_kernel, root_blocks(tiles), Policy::kRootThreads, 0, stream, tiles,
           scratch.parts, scratch.sums);
    launch(component_mean_means_kernel<T>, tiles.count, Policy::kTileThreads, 0, stream, tiles,
           scratch.parts, scratch.sums, scratch.fixed_point, means, wide);
  });
}

}  // namespace

int64_t components_scratch_bytes(const ComponentsParams& params) {
  return ComponentsScratch(make_plan(params.map), nullptr).bytes;
}

void connected_components(const ComponentsParams& params, Stream stream) {
  const Plan plan = make_plan(params.map);
  if (params.map.images == 0) return;
  const ComponentsScratch scratch(plan, params.scratch);
  if (plan.image_pixels == 0) {
    launch(components_ranks_kernel, params.map.images, Policy::kScanThreads, 0, stream,
           scratch.bitmap, params.counts);
    return;
  }
  for_each_chunk(
      params.map, plan, [&](const LabelMap& map, const Tiles& tiles, int64_t first_image) {
        int32_t* components = params.components + first_image * plan.image_pixels;
        const bool wide = has_whole_spans(tiles, map.labels, map.label_bytes) &&
                          has_whole_spans(tiles, components, sizeof(int32_t));
        with_label(map.label_bytes, [&](auto label) {
          launch(components_tiles_kernel<decltype(label)>, tiles.count, Policy::kTileThreads, 0,
                 stream, map, tiles, scratch.parts, scratch.bitmap, wide);
        });
        launch_seams(map, tiles, scratch.parts, stream);
        launch(components_roots_kernel, root_blocks(tiles), Policy::kRootThreads, 0, stream, tiles,
               scratch.parts, scratch.bitmap);
        launch(components_words_kernel, map.images * scratch.bitmap.segments, Policy::kScanThreads,
               0, stream, scratch.bitmap, Divisor(scratch.bitmap.segments));
        launch(components_ranks_kernel, map.images, Policy::kScanThreads, 0, stream, scratch.bitmap,
               params.counts + first_image);
        launch(components_ids_kernel, tiles.count, Policy::kTileThreads, 0, stream, tiles,
               scratch.parts, scratch.bitmap, components, wide);
      });
}

int64_t component_mean_scratch_bytes(const ComponentMeanParams& params) {
  const Plan plan = make_plan(params.map);
  ComponentMeanParams sized = params;
  sized.scratch = nullptr;
  return with_dtype("component_mean", params.dtype,
                    [&](auto t) { return MeanScratch<decltype(t)>(sized, plan).bytes; });
}

void component_mean(const ComponentMeanParams& params, Stream stream) {
  const Plan plan = make_plan(params.map);
  if (params.map.images == 0 || plan.image_pixels == 0) return;
  with_dtype("component_mean", params.dtype,
             [&](auto t) { launch_component_mean<decltype(t)>(params, plan, stream); });
}

}  // namespace segunc::cuda
