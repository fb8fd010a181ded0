// A tile in shared memory: neighbouring pixels of an image with all their classes, moved in and out
// by coalesced vectors from either dense layout, so that a thread can gather its pixel's classes.
//
// Elements stay in the order that they have in memory, in rows: planar, a row holds the tile's
// pixels of a class; channels_last, a row holds the classes of a pixel, and where the rows need no
// padding all of them form a single one.
#pragma once
#include <algorithm>
#include <stdexcept>

#include "../integer.h"
#include "softmax.h"

namespace segunc::device {

// n / d is (n * reciprocal) >> kReciprocalBits as long as n * d < 2^kReciprocalBits: a tile has at
// most 24 Ki elements and a row at most 512.
constexpr int kReciprocalBits = 24;

struct ClassTile {
  Layout layout;
  int classes;
  int pixels;                    // of a full tile
  int team;                      // threads that share a pixel
  int team_shift;                // log2 of it
  int pixel_pitch, class_pitch;  // distance of neighbours in shared memory, in elements
  int row_vectors;               // vectors in a row, if there are several rows
  uint32_t row_reciprocal;       // 2^kReciprocalBits / row_vectors, rounded up
  bool single_row;
  bool wide;            // 16-byte vectors rather than single elements
  bool wide_in_shared;  // also in shared memory
  size_t shared_bytes;
};

// The most threads that share a pixel. With more, a row of a planar tile is so short that memory
// moves more than it needs.
constexpr int kMaxTeam = 16;
// What a thread can hold of a pixel in registers.
constexpr int kMaxClassesOfThread = 32;
constexpr int64_t kMaxTileClasses = kMaxTeam * kMaxClassesOfThread;

// The most that a thread of a tile has of so many classes.
constexpr int64_t classes_of_tile_thread(int64_t classes) {
  return divide_up(classes, int64_t(1) << team_shift_of(classes, kMaxClassesOfThread));
}

// How often the busiest bank is read when a warp reads one class of each of its threads.
// tuning
SEGUNC_HD constexpr int bank_conflicts(int team, int pixel_pitch, int class_pitch,
                                       int element_bytes) {
  constexpr int kBanks = 32, kBankBytes = 4;
  int words[kBanks] = {}, reads[kBanks] = {}, most = 0;
  for (int lane = 0; lane < kBanks; lane++) {
    const int word =
        (lane / team * pixel_pitch + lane % team * class_pitch) * element_bytes / kBankBytes;
    words[lane] = word;
    bool is_read = false;  // threads that read the same word do not conflict
    for (int other = 0; other < lane; other++) is_read = is_read || words[other] == word;
    if (is_read) continue;
    reads[word % kBanks]++;
    if (reads[word % kBanks] > most) most = reads[word % kBanks];
  }
  return most;
}

// True if all of a map's rows of pixels (planar) or images (channels_last) start on multiples of 16
// bytes, and rows of pixels end there too.
inline bool vectors_are_aligned(const void* data, const ClassMap& map, int element_bytes) {
  const auto aligned = [](int64_t bytes) { return bytes % 16 == 0; };
  return aligned(int64_t(reinterpret_cast<uintptr_t>(data))) &&
         (map.images == 1 || aligned(map.image_stride * element_bytes)) &&
         (map.layout != Layout::planar ||
          (aligned(map.pixels * element_bytes) && aligned(map.class_stride * element_bytes)));
}

// A tile whose pixels keep `threads` threads busy. aligned: the maps that are moved allow vectors.
SEGUNC_HD constexpr ClassTile class_tile(Layout layout, int64_t classes, int element_bytes,
                                         int threads, bool aligned) {
  // Of a few reads a class; padding costs more.
  constexpr int kTolerableConflicts = 2;  // tuning
  const int vector = 16 / element_bytes;
  ClassTile tile{};
  tile.layout = layout;
  tile.classes = int(classes);
  tile.team_shift = team_shift_of(classes, kMaxClassesOfThread);
  tile.team = 1 << tile.team_shift;
  tile.pixels = threads / tile.team;
  const auto conflicts = [&] {
    return bank_conflicts(tile.team, tile.pixel_pitch, tile.class_pitch, element_bytes);
  };
  if (layout == Layout::planar) {
    tile.pixel_pitch = 1;
    tile.class_pitch = tile.pixels;
    while (conflicts() > kTolerableConflicts) tile.class_pitch += vector;
    tile.row_vectors = tile.pixels;
    tile.wide = aligned;
    tile.wide_in_shared = true;
    tile.shared_bytes = size_t(tile.class_pitch) * tile.classes * element_bytes;
  } else {
    tile.class_pitch = 1;
    tile.pixel_pitch = tile.classes;
    while (conflicts() > kTolerableConflicts) tile.pixel_pitch++;
    tile.single_row = tile.pixel_pitch == tile.classes;
    tile.row_vectors = tile.classes;
    tile.wide = aligned && (tile.single_row || tile.classes % vector == 0);
    tile.wide_in_shared = tile.single_row;
    tile.shared_bytes = size_t(tile.pixel_pitch) * tile.pixels * element_bytes;
  }
  if (tile.wide && !tile.single_row) tile.row_vectors /= vector;
  tile.row_reciprocal = uint32_t(divide_up(1 << kReciprocalBits, tile.row_vectors));
  return tile;
}
// Beside a kernel's static arrays of these types and block_sum's.
template <class... Static>
ClassTile make_class_tile(const ClassMap& map, int element_bytes, int threads, bool aligned) {
  const ClassTile tile = class_tile(map.layout, map.classes, element_bytes, threads, aligned);
  // report: dynamic counts_staged_kernel<* 49152 - 256
  // report: dynamic statistics_staged_kernel<* 49152 - 256
  // report: dynamic cross_entropy_staged_kernel<*Exact* 49152 - 256
  // report: dynamic cross_entropy_staged_kernel<*General*, 0> > 49152 - 256
  // report: dynamic cross_entropy_staged_kernel<*General*, 1> > 49152 - 256 - 2048
  if (tile.shared_bytes > kMaxDynamicSharedBytes<BlockSums, Static...> || tile.team > kMaxTeam) {
    throw std::runtime_error("a tile of " + std::to_string(map.classes) +
                             " classes does not fit into shared memory");
  }
  return tile;
}

// The vectors of N elements that make up the first `pixels` pixels of a tile. Rows are whole
// vectors, but for the end of a single row.
template <int N>
struct TileVectors {
  int row_vectors;  // that hold pixels
  unsigned count;
  int tail;  // elements after the last whole vector
  int64_t row_stride;
  int row_pitch;

  SEGUNC_DEVICE TileVectors(const ClassTile& tile, const ClassMap& map, int pixels) : tail(0) {
    if (tile.layout == Layout::planar) {
      row_vectors = pixels / N;
      count = unsigned(tile.classes * tile.row_vectors);
      row_stride = map.class_stride;
      row_pitch = tile.class_pitch;
    } else if (tile.single_row) {
      row_vectors = pixels * tile.classes / N;
      count = unsigned(row_vectors);
      tail = pixels * tile.classes % N;
      row_stride = 0;
      row_pitch = 0;
    } else {
      row_vectors = tile.row_vectors;
      count = unsigned(pixels * tile.row_vectors);
      row_stride = map.stride[2];
      row_pitch = tile.pixel_pitch;
    }
  }

  // Where vector i is in memory and in the tile; false if it holds no pixels.
  SEGUNC_DEVICE bool locate(const ClassTile& tile, unsigned i, int64_t& offset,
                            int& position) const {
    const unsigned row =
        tile.single_row ? 0 : unsigned((uint64_t(i) * tile.row_reciprocal) >> kReciprocalBits);
    const int vector = int(i - row * tile.row_vectors);
    offset = row * row_stride + vector * N;
    position = int(row) * row_pitch + vector * N;
    return i < count && vector < row_vectors;
  }
};

template <int N, class T>
SEGUNC_DEVICE void load_tile_vectors(const ClassTile& shape, const ClassMap& map, int pixels,
                                     const T* data, T* tile) {
  // Vectors of a thread in flight.
  constexpr int kBatch = 4;  // tuning
  const TileVectors<N> vectors(shape, map, pixels);
#pragma unroll 1
  // report: trips elements * sizeof(T) / accessed
  for (unsigned first = thread(); first < vectors.count; first += kBatch * block_size()) {
    Vector<T, N> batch[kBatch] = {};
    int position[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      int64_t offset;
      const bool present = vectors.locate(shape, first + b * block_size(), offset, position[b]);
      if (present) batch[b] = load_vector<N>(data + offset);
      if (!present) position[b] = -1;
    }
#pragma unroll
    for (int b = 0; b < kBatch; b++) {
      if (position[b] < 0) continue;
      if (shape.wide_in_shared) {
        store_vector(tile + position[b], batch[b]);
      } else {
#pragma unroll
        for (int k = 0; k < N; k++) tile[position[b] + k] = batch[b][k];  // report: rare
      }
    }
  }
  if (int(thread()) < vectors.tail) {
    const unsigned i = vectors.count * N + thread();
    tile[i] = data[i];  // report: vector sizeof(T)
  }
}

template <int N, class T>
SEGUNC_DEVICE void store_tile_vectors(const ClassTile& shape, const ClassMap& map, int pixels,
                                      const T* tile, T* data) {
  const TileVectors<N> vectors(shape, map, pixels);
#pragma unroll 2
  // report: trips elements * sizeof(T) / accessed
  for (unsigned i = thread(); i < vectors.count; i += block_size()) {
    int64_t offset;
    int position;
    if (!vectors.locate(shape, i, offset, position)) continue;
    Vector<T, N> vector;
    if (shape.wide_in_shared) {
      vector = load_vector<N>(tile + position);
    } else {
#pragma unroll
      for (int k = 0; k < N; k++) vector[k] = tile[position + k];  // report: rare
    }
    store_vector(data + offset, vector);
  }
  if (int(thread()) < vectors.tail) {
    const unsigned i = vectors.count * N + thread();
    data[i] = tile[i];  // report: vector sizeof(T)
  }
}

// data: the tile's first pixel in memory, of which `pixels` follow. The block takes part as a
// whole; the barriers before and after are the caller's.
template <class T>
SEGUNC_DEVICE void load_tile(const ClassTile& shape, const ClassMap& map, int pixels, const T* data,
                             T* tile) {
  if (shape.wide) {
    // report: vector 16
    load_tile_vectors<16 / sizeof(T)>(shape, map, pixels, data, tile);
  } else {
    load_tile_vectors<1>(shape, map, pixels, data, tile);  // report: rare
  }
}
template <class T>
SEGUNC_DEVICE void store_tile(const ClassTile& shape, const ClassMap& map, int pixels,
                              const T* tile, T* data) {
  if (shape.wide) {
    // report: vector 16
    store_tile_vectors<16 / sizeof(T)>(shape, map, pixels, tile, data);
  } else {
    store_tile_vectors<1>(shape, map, pixels, tile, data);  // report: rare
  }
}

}  // namespace segunc::device
