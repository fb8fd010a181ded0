// Neighbouring elements that move together.
#pragma once
#include <algorithm>
#include <cstring>

#include "../element.h"

#ifdef SEGUNC_HOST_EXECUTION
#include "host.h"
#else
#include "gpu.h"
#endif

namespace segunc::device {

template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
  static_assert(N > 0 && (N & (N - 1)) == 0);
  T element[N];
  __host__ SEGUNC_DEVICE T& operator[](int i) { return element[i]; }
  __host__ SEGUNC_DEVICE const T& operator[](int i) const { return element[i]; }
};

// A vector moves as words of up to 16 bytes. Copied as a struct, eight bf16 would be eight 16-bit
// loads to nvcc.
template <class T, int N>
struct VectorWords {
  static constexpr int kBytes = sizeof(T) * N;
  static constexpr int kWordBytes = kBytes < 16 ? kBytes : 16;
  static constexpr int kCount = kBytes / kWordBytes;
  using type = typename Word<kWordBytes>::type;
};

template <class T, int N>
SEGUNC_DEVICE Vector<accumulate_t<T>, N> to_accumulates(const Vector<T, N>& vector) {
  Vector<accumulate_t<T>, N> result;
#pragma unroll
  for (int i = 0; i < N; i++) result[i] = to_accumulate(vector[i]);
  return result;
}
// A pair's upper element is in its place already. Extracted first, it would be an instruction more.
template <int N>
SEGUNC_DEVICE Vector<float, N> to_accumulates(const Vector<bfloat16, N>& vector) {
  Vector<float, N> result;
#pragma unroll
  for (int i = 0; i + 1 < N; i += 2) {
    uint32_t pair;
    memcpy(&pair, &vector.element[i], sizeof pair);
    result[i] = bit_cast<float>(pair << 16);
    result[i + 1] = bit_cast<float>(pair & 0xffff0000u);
  }
  if (N == 1) result[0] = to_accumulate(vector[0]);
  return result;
}

// Whether vectors of so many bytes may start at data.
inline bool is_vector_aligned(const void* data, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % std::min<int64_t>(bytes, 16) == 0;
}

// p is aligned to the vector, or to 16 bytes where it is larger.
template <int N, class T>
SEGUNC_DEVICE Vector<T, N> load_vector(const T* p) {
  using Words = VectorWords<T, N>;
  using W = typename Words::type;
  check_alignment(p, Words::kWordBytes);
  Vector<T, N> vector;
#pragma unroll
  for (int i = 0; i < Words::kCount; i++) {
    const W word = reinterpret_cast<const W*>(p)[i];
    memcpy(reinterpret_cast<char*>(&vector) + i * Words::kWordBytes, &word, sizeof word);
  }
  return vector;
}

template <int N, class T>
SEGUNC_DEVICE void store_vector(T* p, const Vector<T, N>& vector) {
  using Words = VectorWords<T, N>;
  using W = typename Words::type;
  check_alignment(p, Words::kWordBytes);
#pragma unroll
  for (int i = 0; i < Words::kCount; i++) {
    W word;
    memcpy(&word, reinterpret_cast<const char*>(&vector) + i * Words::kWordBytes, sizeof word);
    reinterpret_cast<W*>(p)[i] = word;
  }
}

// For what no kernel reads again soon: leaves the caches to others.
template <int N, class T>
SEGUNC_DEVICE void store_vector_streaming(T* p, const Vector<T, N>& vector) {
  using Words = VectorWords<T, N>;
  using W = typename Words::type;
  check_alignment(p, Words::kWordBytes);
#pragma unroll
  for (int i = 0; i < Words::kCount; i++) {
    W word;
    memcpy(&word, reinterpret_cast<const char*>(&vector) + i * Words::kWordBytes, sizeof word);
    store_streaming(reinterpret_cast<W*>(p) + i, word);
  }
}

}  // namespace segunc::device
