// Tiles of pixels on a CPU: C rows of T pixels in the accumulate type, whatever the layout in
// memory, so that every formula is a plain loop over pixels that the compiler vectorises.
#pragma once
#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../class_map.h"
#include "../element.h"
#include "units.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace tiles {

// Results larger than this bypass the cache on their way to memory.
constexpr int64_t kStreamBytes = 16 << 20;

constexpr int kAlignment = 64;

// Whether a gradient does. What it is written over has just been read and is in the cache.
template <class S, class Params>
bool streams_gradient(const Params& p) {
  const int64_t bytes = p.map.images * p.map.pixels * p.map.classes * int64_t(sizeof(S));
  return bytes > kStreamBytes && p.grad_input != p.input;
}

// Cache-line aligned scratch of one thread.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(std::aligned_alloc(kAlignment, bytes_for(count)))) {}
  T* get() const { return data_.get(); }

 private:
  static size_t bytes_for(int64_t count) {
    return (size_t(count) * sizeof(T) + kAlignment) / kAlignment * kAlignment;
  }
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

// Copies past the cache where the processor can; ragged ends go the ordinary way.
inline void stream_copy(void* to, const void* from, int64_t bytes) {
#if defined(__SSE2__)
  auto* d = static_cast<char*>(to);
  auto* s = static_cast<const char*>(from);
  const int64_t head = std::min<int64_t>(-reinterpret_cast<intptr_t>(d) & (kAlignment - 1), bytes);
  std::memcpy(d, s, head);
  d += head, s += head, bytes -= head;
  for (; bytes >= kAlignment; d += kAlignment, s += kAlignment, bytes -= kAlignment) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(d), _mm512_loadu_si512(s));
#elif defined(__AVX__)
    for (int i = 0; i < kAlignment; i += 32)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(d + i),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(s + i)));
#else
    for (int i = 0; i < kAlignment; i += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(d + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(s + i)));
#endif
  }
  std::memcpy(d, s, bytes);
#else
  std::memcpy(to, from, bytes);
#endif
}

// Streamed stores are weakly ordered: to be called before another thread may read them.
inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// NaN never replaces the maximum; it comes back through exp(v - maximum).
template <class A>
SEGUNC_HD A maximum_of(A maximum, A v) {
  return v > maximum ? v : maximum;
}

#if defined(__GNUC__)
typedef float Float8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t Int8 __attribute__((vector_size(32)));
typedef uint16_t Half8 __attribute__((vector_size(16), aligned(2)));

// Columns of eight rows of eight become rows.
SEGUNC_HD void transpose(Float8 (&r)[8]) {
  Float8 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = __builtin_shuffle(r[i], r[i + 1], Int8{0, 8, 2, 10, 4, 12, 6, 14});
    a[i + 1] = __builtin_shuffle(r[i], r[i + 1], Int8{1, 9, 3, 11, 5, 13, 7, 15});
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; ++k) {
      b[i + k] = __builtin_shuffle(a[i + k], a[i + k + 2], Int8{0, 1, 8, 9, 4, 5, 12, 13});
      b[i + k + 2] = __builtin_shuffle(a[i + k], a[i + k + 2], Int8{2, 3, 10, 11, 6, 7, 14, 15});
    }
  for (int i = 0; i < 4; ++i) {
    r[i] = __builtin_shuffle(b[i], b[i + 4], Int8{0, 1, 2, 3, 8, 9, 10, 11});
    r[i + 4] = __builtin_shuffle(b[i], b[i + 4], Int8{4, 5, 6, 7, 12, 13, 14, 15});
  }
}
SEGUNC_HD void transpose(Half8 (&r)[8]) {
  for (int round = 0; round < 3; ++round) {
    Half8 a[8];
    for (int i = 0; i < 4; ++i) {
      a[2 * i] = __builtin_shuffle(r[i], r[i + 4], Half8{0, 8, 1, 9, 2, 10, 3, 11});
      a[2 * i + 1] = __builtin_shuffle(r[i], r[i + 4], Half8{4, 12, 5, 13, 6, 14, 7, 15});
    }
    for (int i = 0; i < 8; ++i) r[i] = a[i];
  }
}

template <class S>
struct RunOf {
  typedef Half8 type;
};
template <>
struct RunOf<float> {
  typedef Float8 type;
};

// Transposes eight runs of eight elements, `from` apart, to such `to` apart.
template <class S>
SEGUNC_HD void transpose(const S* in, int64_t from, S* out, int64_t to) {
  typename RunOf<S>::type block[8];
  for (int i = 0; i < 8; ++i) std::memcpy(&block[i], in + i * from, sizeof block[i]);
  transpose(block);
  for (int i = 0; i < 8; ++i) std::memcpy(out + i * to, &block[i], sizeof block[i]);
}
#endif

constexpr int kCacheLine = 64;

// Asks for `bytes` that are needed soon. Harmless past the end of memory.
SEGUNC_HD void prefetch(const void* p, int bytes) {
  for (int b = 0; b < bytes; b += kCacheLine)
    __builtin_prefetch(static_cast<const char*>(p) + b, 0, 2);
}

// Where the rows that are read next lie, for fetching them while others are computed. Rows of T
// pixels are too short for the processor to notice by itself.
template <class S>
struct Ahead {
  const S* start;
  int64_t row;  // distance of rows; 0 in layouts whose tiles are one run of memory, which need none

  template <int Pixels>
  SEGUNC_HD void fetch(int c, int pixel) const {
    prefetch(start + c * row + pixel, Pixels * int(sizeof(S)));
  }
};
template <class S>
SEGUNC_HD Ahead<S> ahead_of(const ClassMap& map, const S* data, int64_t image, int64_t pixel) {
  const int64_t row = map.layout == Layout::planar ? map.class_stride : 0;
  return {data + image * map.image_stride + (row ? pixel : 0), row};
}

// One run of channels-last pixels to rows: in[j * C + c] -> tile[c * T + j]. Meanwhile the next T
// pixels are fetched.
template <int T, class S, class A>
SEGUNC_HD void rows_from_channels(const S* __restrict in, int C, int n, A* __restrict tile) {
  int done = 0;  // pixels
  if constexpr (std::is_same_v<A, float>) {
    if (C >= 8) {
      done = n / 8 * 8;
      for (int c = 0; c < C; c += 8) {
        const int first = std::min(c, C - 8);  // the last block overlaps the one before
        A* const rows = tile + first * T;
        if constexpr (std::is_same_v<S, float>) {
          for (int j = 0; j < done; j += 8) {
            if (c == 0) prefetch(in + (j + T) * C, 8 * C * int(sizeof(S)));
            transpose(in + j * C + first, C, rows + j, T);
          }
        } else {
          alignas(kAlignment) S block[8 * T];
          for (int j = 0; j < done; j += 8) {
            if (c == 0) prefetch(in + (j + T) * C, 8 * C * int(sizeof(S)));
            transpose(in + j * C + first, C, block + j, T);
          }
          for (int k = 0; k < 8; ++k)
            for (int j = 0; j < done; ++j) rows[k * T + j] = to_accumulate(block[k * T + j]);
        }
      }
    }
  }
  for (int c = 0; c < C; ++c)
    for (int j = done; j < n; ++j) tile[c * T + j] = to_accumulate(in[j * C + c]);
}

// The way back.
template <int T, class S, class A>
SEGUNC_HD void channels_from_rows(const A* __restrict tile, int C, int n, S* __restrict out) {
  int done = 0;
  if constexpr (std::is_same_v<A, float>) {
    if (C >= 8) {
      done = n / 8 * 8;
      for (int c = 0; c < C; c += 8) {
        const int first = std::min(c, C - 8);
        const A* const rows = tile + first * T;
        if constexpr (std::is_same_v<S, float>) {
          for (int j = 0; j < done; j += 8) transpose(rows + j, T, out + j * C + first, C);
        } else {
          alignas(kAlignment) S block[8 * T];
          for (int k = 0; k < 8; ++k)
            for (int j = 0; j < done; ++j) block[k * T + j] = from_accumulate<S>(rows[k * T + j]);
          for (int j = 0; j < done; j += 8) transpose(block + j, T, out + j * C + first, C);
        }
      }
    }
  }
  for (int j = done; j < n; ++j)
    for (int c = 0; c < C; ++c) out[j * C + c] = from_accumulate<S>(tile[c * T + j]);
}

// Reads n <= T pixels of one image into rows, and their maximum over the classes.
template <int T, class S, class A>
SEGUNC_HD void read_tile(const ClassMap& map, const S* data, int64_t image, int64_t pixel, int n,
                         A* __restrict tile, A* __restrict maximum) {
  const int C = int(map.classes);
  const S* start = data + image * map.image_stride;
  for (int j = 0; j < n; ++j) maximum[j] = -std::numeric_limits<A>::infinity();
  if (map.layout == Layout::planar) {
    for (int c = 0; c < C; ++c) {
      const S* __restrict row = start + c * map.class_stride + pixel;
      A* __restrict to = tile + c * T;
      for (int j = 0; j < n; ++j) {
        const A v = to_accumulate(row[j]);
        to[j] = v;
        maximum[j] = maximum_of(maximum[j], v);
      }
    }
    return;
  }
  if (map.layout == Layout::channels_last) {
    rows_from_channels<T>(start + pixel * C, C, n, tile);
  } else {
    int64_t offset[T];
    for (int j = 0; j < n; ++j) offset[j] = pixel_offset(map, pixel + j);
    for (int c = 0; c < C; ++c)
      for (int j = 0; j < n; ++j)
        tile[c * T + j] = to_accumulate(start[c * map.class_stride + offset[j]]);
  }
  for (int c = 0; c < C; ++c)
    for (int j = 0; j < n; ++j) maximum[j] = maximum_of(maximum[j], tile[c * T + j]);
}

// Where write_tile collects what goes to memory together.
template <class S>
struct WriteBuffer {
  S* data;      // room for a row of T, or C rows of T in channels_last
  bool stream;  // past the cache
};

template <class S>
SEGUNC_HD void write_run(S* to, const S* from, int64_t count, bool stream) {
  if (stream)
    stream_copy(to, from, count * int64_t(sizeof(S)));
  else
    std::memcpy(to, from, count * sizeof(S));
}

// Writes value(c, j, tile[c * T + j]) for n <= T pixels; the tile is used up.
template <int T, class S, class A, class Value>
SEGUNC_HD void write_tile(const ClassMap& map, S* data, int64_t image, int64_t pixel, int n,
                          A* __restrict tile, const WriteBuffer<S>& buffer, Value value) {
  const int C = int(map.classes);
  S* start = data + image * map.image_stride;
  if (map.layout == Layout::planar) {
    for (int c = 0; c < C; ++c) {
      S* __restrict out = buffer.data;
      for (int j = 0; j < n; ++j) out[j] = from_accumulate<S>(value(c, j, tile[c * T + j]));
      write_run(start + c * map.class_stride + pixel, out, n, buffer.stream);
    }
    return;
  }
  for (int c = 0; c < C; ++c)
    for (int j = 0; j < n; ++j) tile[c * T + j] = value(c, j, tile[c * T + j]);
  if (map.layout == Layout::channels_last) {
    channels_from_rows<T>(tile, C, n, buffer.data);
    write_run(start + pixel * C, buffer.data, int64_t(n) * C, buffer.stream);
    return;
  }
  int64_t offset[T];
  for (int j = 0; j < n; ++j) offset[j] = pixel_offset(map, pixel + j);
  for (int c = 0; c < C; ++c)
    for (int j = 0; j < n; ++j)
      start[c * map.class_stride + offset[j]] = from_accumulate<S>(tile[c * T + j]);
}

// Calls body(image, first pixel, n) for the tiles of a unit; n is the constant T for full tiles.
template <int T, class Body>
SEGUNC_HD void for_tiles(int64_t unit, int64_t pixels, Body&& body) {
  const int64_t per_image = units_of(pixels), image = unit / per_image;
  int64_t pixel = unit % per_image * kUnitPixels;
  const int64_t end = std::min(pixels, pixel + kUnitPixels);
  for (; pixel + T <= end; pixel += T) body(image, pixel, std::integral_constant<int, T>{});
  if (pixel < end) body(image, pixel, int(end - pixel));
}

// Tiles of T pixels of samples as they lie in memory. Kernels take this or InterpolatedTiles
// (interpolation.h), which have the same functions, and are written once for both.
template <class S, int T>
class StoredTiles {
 public:
  using Number = accumulate_t<S>;
  static constexpr int kWidth = T;

  // samples: [count] pointers to [N, C, P], each laid out as map.
  StoredTiles(const ClassMap& map, const void* const* samples, int64_t count)
      : map_(map), samples_(samples), count_(count) {}

  // Calls body(image, first pixel of the result, n) for the tiles of a unit.
  template <class Body>
  SEGUNC_HD void for_tiles(int64_t unit, Body&& body) const {
    tiles::for_tiles<T>(unit, map_.pixels, body);
  }
  // As read_tile.
  SEGUNC_HD void read(int64_t sample, int64_t image, int64_t pixel, int n, Number* __restrict tile,
                      Number* __restrict maximum) const {
    read_tile<T>(map_, data(sample), image, pixel, n, tile, maximum);
  }
  // What is read after a sample of a tile: the next sample, or the next tile.
  SEGUNC_HD Ahead<S> ahead(int64_t sample, int64_t image, int64_t pixel) const {
    const bool last = sample + 1 == count_;
    return ahead_of(map_, data(last ? 0 : sample + 1), image, last ? next(pixel) : pixel);
  }
  // The first pixel of the next tile.
  SEGUNC_HD int64_t next(int64_t pixel) const { return pixel + T; }

 private:
  SEGUNC_HD const S* data(int64_t sample) const { return static_cast<const S*>(samples_[sample]); }

  const ClassMap& map_;
  const void* const* samples_;
  const int64_t count_;
};

// Calls run(S{}) with the element type.
template <class Run>
SEGUNC_HD void with_dtype(Dtype dtype, Run&& run) {
  switch (dtype) {
    case Dtype::f64:
      return run(double{});
    case Dtype::f32:
      return run(float{});
    case Dtype::bf16:
      return run(bfloat16{});
    case Dtype::f16:
      return run(float16{});
  }
}

// The same with the pixels of a tile, a constant: run(S{}, T). The tile of many classes is
// narrower, so that it stays in the L1 cache.
template <class Run>
SEGUNC_HD void with_tile(Dtype dtype, int64_t classes, Run&& run) {
  constexpr int64_t kWideClasses = 64;
  with_dtype(dtype, [&](auto s) {
    if constexpr (!std::is_same_v<decltype(s), double>)
      if (classes <= kWideClasses) return run(s, std::integral_constant<int, 128>());
    run(s, std::integral_constant<int, 32>());
  });
}

// Calls run(Y{}) with the type of the targets.
template <class Run>
SEGUNC_HD void with_index_type(IndexType type, Run&& run) {
  switch (type) {
    case IndexType::i64:
      return run(int64_t{});
    case IndexType::i32:
      return run(int32_t{});
    case IndexType::i16:
      return run(int16_t{});
    case IndexType::u8:
      return run(uint8_t{});
  }
}

}  // namespace tiles
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
