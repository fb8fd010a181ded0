// Which pixels of a tile a thread has, and how their elements move.
#pragma once
#include "device.h"
#include "integer.h"

namespace segunc::device {

// V neighbours, which move as one vector.
template <int V>
struct AdjacentPixels {
  static constexpr int kCount = V;

  AdjacentPixels() = default;
  SEGUNC_DEVICE explicit AdjacentPixels(int) {}
  SEGUNC_DEVICE static int first(int thread) { return thread * V; }
  SEGUNC_DEVICE bool has(int) const { return true; }
  SEGUNC_DEVICE bool has_all() const { return true; }
  SEGUNC_DEVICE int distance(int j) const { return j; }  // from the first
  // p: the element of the first pixel.
  template <class T>
  SEGUNC_DEVICE Vector<T, V> load(const T* p, T) const {
    return load_vector<V>(p);
  }
  template <class T>
  SEGUNC_DEVICE Vector<T, V> load_all(const T* p) const {
    return load_vector<V>(p);  // report: vector min(16, sizeof(T) * V)
  }
  template <class T>
  SEGUNC_DEVICE void store(T* p, const Vector<T, V>& values) const {
    store_vector_streaming(p, values);  // report: vector min(16, sizeof(T) * V)
  }
};

// V pixels, each so many after the one before, which move one by one: for whatever alignment. The
// last of them may be missing.
template <int V, int Distance>
struct SpacedPixels {
  static constexpr int kCount = V;
  int left;  // pixels of the tile, from the first of these on

  SEGUNC_DEVICE explicit SpacedPixels(int left) : left(left) {}
  SEGUNC_DEVICE static int first(int thread) { return thread; }
  SEGUNC_DEVICE bool has(int j) const { return j == 0 || j * Distance < left; }
  SEGUNC_DEVICE bool has_all() const { return has(V - 1); }
  SEGUNC_DEVICE int distance(int j) const { return j * Distance; }
  // missing: what a missing pixel has.
  template <class T>
  SEGUNC_DEVICE Vector<T, V> load(const T* p, T missing) const {
    Vector<T, V> values;
#pragma unroll
    for (int j = 0; j < V; j++) values[j] = has(j) ? p[j * Distance] : missing;
    return values;
  }
  template <class T>
  SEGUNC_DEVICE Vector<T, V> load_all(const T* p) const {
    Vector<T, V> values;
#pragma unroll
    for (int j = 0; j < V; j++) values[j] = p[j * Distance];
    return values;
  }
  template <class T>
  SEGUNC_DEVICE void store(T* p, const Vector<T, V>& values) const {
#pragma unroll
    for (int j = 0; j < V; j++) {
      if (has(j)) p[j * Distance] = values[j];
    }
  }
};

// Those of pixels, the first of which is data[first], or ones without data.
template <class A, class Pixels>
SEGUNC_DEVICE Vector<A, Pixels::kCount> load_factors(const Pixels& pixels, const void* data,
                                                     int64_t first) {
  if (data) return pixels.load(static_cast<const A*>(data) + first, A(1));
  Vector<A, Pixels::kCount> ones;
#pragma unroll
  for (int j = 0; j < Pixels::kCount; j++) ones[j] = A(1);
  return ones;
}
template <int V, class A>
SEGUNC_DEVICE Vector<A, V> load_factors(const void* data, int64_t first) {
  return load_factors<A>(AdjacentPixels<V>(), data, first);
}

// The logits of a thread's pixels, a vector a class, all on their way before anything waits;
// `absent` where present(c) says that there is none. logits: of class 0 and the first pixel.
template <class Pixels, class T, class Present, int K, int V>
SEGUNC_DEVICE void load_classes(const Pixels& pixels, const T* logits, unsigned class_stride,
                                T absent, Present present, Vector<T, V> (&raw)[K]) {
  const auto load_each = [&](auto load) {
#pragma unroll
    for (int c = 0; c < K; c++) {
      if (present(c)) {
        raw[c] = load(logits + product(c, class_stride));
      } else {
#pragma unroll
        for (int j = 0; j < V; j++) raw[c][j] = absent;
      }
    }
  };
  if (pixels.has_all()) {
    load_each([&](const T* q) { return pixels.load_all(q); });
  } else {
    load_each([&](const T* q) { return pixels.load(q, absent); });  // report: rare
  }
}

}  // namespace segunc::device
