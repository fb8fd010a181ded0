// Numbers of components, in the raster order of their first pixels.
#include "chunks.h"
#include "forest.h"
#include "kernels.h"
#include "label_tile.h"

namespace segunc::cuda {
namespace {

using namespace components;

// ---- Bitmaps of first pixels ----

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

// ---- Sums of blocks ----

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

// ---- connected_components ----

template <class Label>
__global__ void __launch_bounds__(Policy::kTileThreads, kTileBlocks<Label, char>)
    components_tiles_kernel(const LabelMap map, const Tiles tiles, const Parts<int64_t> parts,
                            const Bitmap bitmap, const bool wide) {
  SEGUNC_SHARED(forest, TileForest);
  const Tile tile = tile_at(tiles, int(block_index()));
  const int first_pixel = tile.pixel - tile.image * tiles.image_pixels;
  const TileRuns<Label> runs(map, tiles, tile, Span(tiles, tile, wide), parts, forest);
  runs.plant(forest, [](int, int) {});
  barrier();
  runs.unite(forest, map.diagonal);
  barrier();
  runs.number_parts(map, tiles, tile, forest, [&](int run, int number) {
    const int row = forest.first_pixel[run] / kTileWidth;
    const int column = forest.first_pixel[run] % kTileWidth;
    make_root(parts.forest, tile.slot + number, first_pixel + row * tiles.width + column);
  });
  barrier();
  runs.for_each_run([&](int run) {
    parts.part_of_run[tile.slot + run] = uint16_t(forest.number_of(forest.root_of(run)));
  });
  if (thread() == 0) parts.parts_of_tile[block_index()] = forest.parts;

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
  const Tile tile = tile_at(tiles, int(index));
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
  SEGUNC_SHARED(id, int32_t[kTilePixels + 1]);
  const Tile tile = tile_at(tiles, int(block_index()));
  const Span span(tiles, tile, wide);
  const PartsOfSpan<int64_t> part(parts, tile, span);
  const int tile_parts = parts.parts_of_tile[block_index()];
  for (int i = int(thread()); i < tile_parts; i += Policy::kTileThreads) {
    const int pixel = int(parts.forest[tile.slot + i] >> 32);
    const int word = pixel / 32;
    const int64_t at = int64_t(tile.image) * bitmap.words + word;
    const unsigned below = bitmap.bits[at] & ((1u << pixel % 32) - 1);
    id[i] = 1 + popcount(below) + bitmap.before_word[at] +
            bitmap.before_segment[int64_t(tile.image) * bitmap.segments + word / kSegmentWords];
  }
  if (thread() == 0) id[kNoPart] = 0;
  barrier();
  part.store_results(span, id, components);
}

// ---- launch and dispatch ----

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
        const bool wide = has_whole_pieces(tiles, map.labels, map.label_bytes) &&
                          has_whole_pieces(tiles, components, sizeof(int32_t));
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

}  // namespace segunc::cuda
