// How a batch becomes launches: chunks of whole images, whose parts have room in scratch memory.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>

#include "../../common/device/work.h"
#include "tiles.h"

namespace segunc::cuda::components {

// How a batch is cut into chunks of whole images.
struct Plan {
  int64_t image_pixels;
  int64_t chunk_images, chunk_tiles;  // of all chunks but the last
  Tiles tiles;                        // of one image
};

inline Plan make_plan(const LabelMap& map) {
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
  const int64_t columns = divide_up(map.width, kTileWidth);
  const int64_t rows = divide_up(map.height, kTileHeight);
  plan.tiles.slice_rows = int(columns * map.height);
  plan.tiles.columns = IndexDivisor(columns);
  plan.tiles.rows = IndexDivisor(rows);
  plan.tiles.slices = IndexDivisor(map.depth);
  plan.tiles.count = columns * rows * map.depth;
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
  const int64_t rows = pixels > 0 ? pixels / plan.tiles.slice_pixels * plan.tiles.slice_rows : 0;
  Parts<Parent> parts{};
  parts.forest = scratch.take<Parent>(pixels);
  parts.run_starts = scratch.take<RowBits>(rows);
  parts.runs_before = scratch.take<uint16_t>(rows);
  parts.part_of_run = scratch.take<uint16_t>(pixels);
  parts.parts_of_tile = scratch.take<int32_t>(plan.chunk_tiles);
  return parts;
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

// Whether every piece of a map is inside it as a whole, and an aligned vector.
inline bool has_whole_pieces(const Tiles& tiles, const void* map, int64_t element_bytes) {
  return tiles.width % kPiece == 0 && is_vector_aligned(map, kPiece * element_bytes);
}

// Of kernels in which a warp takes the parts of a tile.
inline int64_t root_blocks(const Tiles& tiles) {
  return divide_up(tiles.count, Policy::kRootThreads / kWarpSize);
}

// Unites the parts of all tiles (seams.cu).
template <class Parent>
void launch_seams(const LabelMap& map, const Tiles& tiles, const Parts<Parent>& parts,
                  Stream stream);

}  // namespace segunc::cuda::components
