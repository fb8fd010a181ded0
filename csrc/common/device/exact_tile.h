// Tiles (class_tile.h) of which the compiler knows layout and number of classes. A thread's vectors
// are a fixed distance apart, so that those of a whole tile take next to no instructions beside the
// accesses.
#pragma once
#include "class_tile.h"
#include "integer.h"

namespace segunc::device {

// A tile as class_tile makes it where memory allows vectors. Vectors lie in rows; those of a tile
// without padding count as rows of one.
template <class T, Layout Of, int Classes, int Threads>
struct ExactTile {
  static constexpr int kVector = 16 / sizeof(T);
  static constexpr ClassTile kTile = class_tile(Of, Classes, sizeof(T), Threads, true);
  static_assert(kTile.wide && kTile.wide_in_shared);
  static constexpr bool kPlanar = Of == Layout::planar;
  static constexpr unsigned kRowVectors = kPlanar ? kTile.row_vectors : 1;
  static constexpr int kRows = kPlanar ? Classes : Classes * kTile.pixels / kVector;
  static constexpr int kRowStep = Threads / int(kRowVectors);
  static_assert(Threads % kRowVectors == 0 && Classes * kTile.pixels % kVector == 0);
  static constexpr int kCount = (kRows + kRowStep - 1) / kRowStep;  // of a thread, at most
  static constexpr int kPitch = kPlanar ? kTile.class_pitch : kVector;
};

// A thread's vectors of the first `pixels` pixels of a tile, which are all if it is Whole.
template <class Tile, bool Whole>
struct ExactTileVectors {
  int row, rows, column;
  unsigned row_stride;

  SEGUNC_DEVICE ExactTileVectors(const ClassMap& map, int pixels)
      : row(int(thread() / Tile::kRowVectors)),
        rows(Tile::kRows),
        column(int(thread() % Tile::kRowVectors) * Tile::kVector),
        row_stride(Tile::kPlanar ? rematerialized(unsigned(map.class_stride)) : Tile::kVector) {
    if (Whole) return;
    if (!Tile::kPlanar) rows = pixels * Tile::kTile.classes / Tile::kVector;
    if (Tile::kPlanar && column >= pixels) rows = 0;
  }
  SEGUNC_DEVICE bool has(int b) const {
    return (Whole && (b + 1) * Tile::kRowStep <= Tile::kRows) || row + b * Tile::kRowStep < rows;
  }
  // Of the vector b, in memory and in the tile.
  template <class T>
  SEGUNC_DEVICE T* in_memory(T* data, int b) const {
    return data + product(row, row_stride) + column + product(b * Tile::kRowStep, row_stride);
  }
  SEGUNC_DEVICE int position(int b) const {
    return row * Tile::kPitch + column + b * (Tile::kRowStep * Tile::kPitch);
  }
};

// Elements after the last whole vector of a single row.
template <class Tile>
SEGUNC_DEVICE int exact_tile_tail(int pixels) {
  return Tile::kPlanar ? 0 : pixels * Tile::kTile.classes % Tile::kVector;
}

template <class Tile, bool Whole, class T>
SEGUNC_DEVICE void load_exact_tile_vectors(const ClassMap& map, int pixels, const T* data,
                                           T* tile) {
  const ExactTileVectors<Tile, Whole> vectors(map, pixels);
  Vector<T, Tile::kVector> batch[Tile::kCount];
#pragma unroll
  for (int b = 0; b < Tile::kCount; b++) {
    // report: vector 16
    if (vectors.has(b)) batch[b] = load_vector<Tile::kVector>(vectors.in_memory(data, b));
  }
#pragma unroll
  for (int b = 0; b < Tile::kCount; b++) {
    if (vectors.has(b)) store_vector(tile + vectors.position(b), batch[b]);
  }
}

template <class Tile, bool Whole, class T>
SEGUNC_DEVICE void store_exact_tile_vectors(const ClassMap& map, int pixels, const T* tile,
                                            T* data) {
  const ExactTileVectors<Tile, Whole> vectors(map, pixels);
#pragma unroll
  for (int b = 0; b < Tile::kCount; b++) {
    if (!vectors.has(b)) continue;
    // report: vector 16
    store_vector_streaming(vectors.in_memory(data, b),
                           load_vector<Tile::kVector>(tile + vectors.position(b)));
  }
}

// As load_tile and store_tile. In a planar map class_stride is less than 2^32.
template <class Tile, class T>
SEGUNC_DEVICE void load_exact_tile(const ClassMap& map, int pixels, const T* data, T* tile) {
  if (pixels == Tile::kTile.pixels) {
    load_exact_tile_vectors<Tile, true>(map, pixels, data, tile);
    return;
  }
  // report: begin rare
  load_exact_tile_vectors<Tile, false>(map, pixels, data, tile);
  const int tail = exact_tile_tail<Tile>(pixels);
  const int i = pixels * Tile::kTile.classes - tail + int(thread());
  if (int(thread()) < tail) tile[i] = data[i];
  // report: end
}
template <class Tile, class T>
SEGUNC_DEVICE void store_exact_tile(const ClassMap& map, int pixels, const T* tile, T* data) {
  if (pixels == Tile::kTile.pixels) {
    store_exact_tile_vectors<Tile, true>(map, pixels, tile, data);
    return;
  }
  // report: begin rare
  store_exact_tile_vectors<Tile, false>(map, pixels, tile, data);
  const int tail = exact_tile_tail<Tile>(pixels);
  const int i = pixels * Tile::kTile.classes - tail + int(thread());
  if (int(thread()) < tail) data[i] = tile[i];
  // report: end
}

}  // namespace segunc::device
