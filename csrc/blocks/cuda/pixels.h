// Where the logits of a row's pixels come from. A thread has kPixels neighbouring columns of a tile
// of columns and goes down the rows with them.
#pragma once
#include "../../common/device/class_tile.h"
#include "../../common/device/interpolation.h"
#include "../params.h"
#include "entropy.h"

namespace segunc::cuda::blocks {

constexpr int kThreads = 128;  // tuning
// Rows of a tile: enough blocks of threads for a GPU from an image of 1024 x 2048, and few sums.
constexpr int kRows = 4;  // tuning

// A tile's columns in a row of an image.
struct RowTile {
  int64_t image;
  int row, column, columns;
};

// Adds `classes` classes, whose logits load(c, present, logits) gives: K from c on, of which the
// first `present` are there.
template <int K, class A, int V, class Load>
SEGUNC_DEVICE void add_classes(int classes, Load load, OnlineEntropy<A> (&online)[V]) {
  A logit[K][V];
  int c = 0;
#pragma unroll 1
  // report: trips (C - 3) / K
  // Opaque to the compiler, which would have several under way where there are registers for one.
  for (; c + K <= classes; c = rematerialized(c + K)) {
    load(c, K, logit);
#pragma unroll
    for (int j = 0; j < V; j++) online[j].add(logit, j);
  }
  if (c < classes) {
    load(c, classes - c, logit);
#pragma unroll
    for (int j = 0; j < V; j++) online[j].add(logit, j);
  }
}
template <int K, class A, int V, class Load>
SEGUNC_DEVICE void entropies_of(int classes, Load load, A (&entropy)[V]) {
  OnlineEntropy<A> online[V];
  add_classes<K>(classes, load, online);
#pragma unroll
  for (int j = 0; j < V; j++) entropy[j] = online[j].value();
}

// Logits in memory, V of neighbouring columns being an aligned vector, or one by one with whatever
// strides.
template <class T, int V>
struct StoredRows {
  using Number = accumulate_t<T>;
  static constexpr int kPixels = V, kColumns = kThreads * V;
  // Classes that are on their way together, here as below.
  static constexpr int kBatch = V > 1 || sizeof(T) == 8 ? 4 : 8;  // tuning
  // Blocks of threads that the compiler has to leave registers for.
  static constexpr int kResidentBlocks = sizeof(T) == 8 ? 4 : 8;  // tuning

  const T* data;
  int64_t image_stride, class_stride, row_stride, column_stride;
  int classes;

  explicit StoredRows(const BlocksParams& p)
      : data(static_cast<const T*>(p.logits)),
        image_stride(p.map.image_stride),
        class_stride(p.map.class_stride),
        row_stride(p.map.stride[1]),
        column_stride(p.map.stride[2]),
        classes(int(p.map.classes)) {}

  SEGUNC_DEVICE int columns() const { return kColumns; }
  SEGUNC_DEVICE int column() const { return int(thread()) * V; }
  SEGUNC_DEVICE bool leads() const { return true; }
  SEGUNC_DEVICE void entropies(const RowTile& at, bool inside, Number (&entropy)[V]) const {
    if (!inside) return;
    const T* pixel = data + at.image * image_stride + at.row * row_stride;
    pixel += V > 1 ? at.column + column() : (at.column + column()) * column_stride;
    entropies_of<kBatch>(
        classes,
        [&](int c, int present, Number(&logit)[kBatch][V]) {
          Vector<T, V> raw[kBatch];
          const T* of_class = pixel + c * class_stride;
#pragma unroll
          for (int i = 0; i < kBatch; i++, of_class += class_stride) {
            if (i < present) {
              raw[i] = load_vector<V>(of_class);  // report: vector min(16, sizeof(T) * V)
            } else {
#pragma unroll
              for (int j = 0; j < V; j++) raw[i][j] = from_accumulate<T>(-kInfinity<Number>);
            }
          }
#pragma unroll
          for (int i = 0; i < kBatch; i++) {
            const Vector<Number, V> wide = to_accumulates(raw[i]);
#pragma unroll
            for (int j = 0; j < V; j++) logit[i][j] = wide[j];
          }
        },
        entropy);
  }
};

// Logits of a lower or higher resolution, blended from their neighbours in memory. Those in a row
// are the same for all rows.
template <class T>
struct InterpolatedRows {
  using Number = accumulate_t<T>;
  static constexpr int kPixels = 1, kColumns = kThreads;
  static constexpr int kBatch = 4;                                // tuning
  static constexpr int kResidentBlocks = sizeof(T) == 8 ? 4 : 8;  // tuning

  const T* data;
  ClassMap map;
  math::InterpolatedAxis<Number> row_axis, column_axis;

  explicit InterpolatedRows(const BlocksParams& p)
      : data(static_cast<const T*>(p.logits)), map(p.map) {
    const Axes<Number> axes = make_axes<Number>(p.map, p.interpolation);
    row_axis = axes.rows, column_axis = axes.columns;
  }

  SEGUNC_DEVICE int columns() const { return kColumns; }
  SEGUNC_DEVICE int column() const { return int(thread()); }
  SEGUNC_DEVICE bool leads() const { return true; }
  SEGUNC_DEVICE void entropies(const RowTile& at, bool inside, Number (&entropy)[1]) const {
    if (!inside) return;
    const InterpolatedPixel<Number> pixel(map, at.image, {0, 0, Number(0)},
                                          math::neighbours_of(row_axis, at.row),
                                          math::neighbours_of(column_axis, at.column + column()));
    entropies_of<kBatch>(
        int(map.classes),
        [&](int c, int present, Number(&logit)[kBatch][1]) {
          const T* of_class = data + pixel.offset + c * map.class_stride;
#pragma unroll
          for (int i = 0; i < kBatch; i++, of_class += map.class_stride) {
            logit[i][0] = i < present ? pixel.in_slice(of_class) : -kInfinity<Number>;
          }
        },
        entropy);
  }
};

// channels_last logits, which go through shared memory; threads share a pixel's classes where
// these are many.
template <class T>
struct StagedRows {
  using Number = accumulate_t<T>;
  static constexpr int kPixels = 1, kColumns = kThreads;
  static constexpr int kBatch = 4;           // tuning
  static constexpr int kResidentBlocks = 8;  // tuning

  const T* data;
  ClassMap map;
  ClassTile shape;

  StagedRows(const BlocksParams& p, const ClassTile& shape)
      : data(static_cast<const T*>(p.logits)), map(p.map), shape(shape) {}

  SEGUNC_DEVICE int columns() const { return shape.pixels; }
  SEGUNC_DEVICE int column() const { return int(thread()) >> shape.team_shift; }
  SEGUNC_DEVICE bool leads() const { return (int(thread()) & (shape.team - 1)) == 0; }
  SEGUNC_DEVICE void entropies(const RowTile& at, bool inside, Number (&entropy)[1]) const {
    T* const tile = dynamic_shared<T>();
    barrier();  // the row before may still be in use
    load_tile(shape, map, at.columns,
              data + at.image * map.image_stride + at.row * map.stride[1] +
                  at.column * int64_t(shape.classes),
              tile);
    barrier();
    const int part = int(thread()) & (shape.team - 1);
    const T* const pixel = tile + column() * shape.pixel_pitch + part;
    const int owned = inside ? (shape.classes - part + shape.team - 1) >> shape.team_shift : 0;
    OnlineEntropy<Number> online[1];
    add_classes<kBatch>(
        owned,
        [&](int c, int present, Number(&logit)[kBatch][1]) {
          const T* of_class = pixel + (c << shape.team_shift);
#pragma unroll
          for (int i = 0; i < kBatch; i++, of_class += shape.team) {
            logit[i][0] = i < present ? to_accumulate(*of_class) : -kInfinity<Number>;
          }
        },
        online);
    // report: trips log2(team)
    for (int distance = shape.team / 2; distance > 0; distance /= 2) {
      online[0].add(OnlineEntropy<Number>{shuffle_xor(kFullMask, online[0].maximum, distance),
                                          shuffle_xor(kFullMask, online[0].sum, distance),
                                          shuffle_xor(kFullMask, online[0].dot, distance)});
    }
    entropy[0] = online[0].value();
  }
};

}  // namespace segunc::cuda::blocks
