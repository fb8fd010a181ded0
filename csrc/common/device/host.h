// The vocabulary of device.h for an ordinary compiler: calls into the host execution, which is not
// part of the library (python_tests/native).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "host_execution/host_execution.h"
#include "limits.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ [[gnu::always_inline]] inline
#define __launch_bounds__(...)
#define SEGUNC_DEVICE [[gnu::always_inline]] inline
// The address of the tag is the identity of the array: one per function instantiation, as in CUDA.
#define SEGUNC_SHARED(name, ...)                                                                   \
  static const char name##_tag = 0;                                                                \
  auto& name = *static_cast<::segunc::device::SharedType<__VA_ARGS__>*>(                           \
      ::segunc::host::shared_array(&name##_tag, sizeof(::segunc::device::SharedType<__VA_ARGS__>), \
                                   alignof(::segunc::device::SharedType<__VA_ARGS__>)))

namespace segunc::device {

using host::Site;

template <class T>
using SharedType = T;

struct Stream {};

constexpr unsigned kFullMask = 0xffffffffu;
constexpr unsigned kWarpSize = 32;

// A bound that only large inputs reach. Here it is lower, so that small tests go beyond it.
constexpr int64_t at_scale(int64_t bound) { return bound < 8 ? bound : 8; }

// A number of blocks.
struct Grid {
  Grid(int64_t blocks) : x(unsigned(blocks)) {
    if (blocks < 1 || blocks > 0x7fffffff) {
      throw std::runtime_error("a grid of " + std::to_string(blocks) + " blocks");
    }
  }
  unsigned x;
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Grid grid, unsigned threads, size_t dynamic_shared_bytes,
            Stream, Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments));
  const auto run = [&] { kernel(static_cast<Parameters>(arguments)...); };
  host::launch(
      reinterpret_cast<const void*>(kernel), grid.x, threads, dynamic_shared_bytes,
      [](const void* body) { (*static_cast<const decltype(run)*>(body))(); }, &run);
}

SEGUNC_DEVICE unsigned thread() { return host::thread_index(); }
SEGUNC_DEVICE unsigned block_index() { return host::block_index(); }
SEGUNC_DEVICE unsigned block_size() { return host::block_size(); }
SEGUNC_DEVICE unsigned grid_size() { return host::grid_size(); }
SEGUNC_DEVICE unsigned lane() { return thread() % kWarpSize; }
SEGUNC_DEVICE unsigned warp() { return thread() / kWarpSize; }

template <class T>
SEGUNC_DEVICE T* dynamic_shared() {
  static_assert(alignof(T) <= 16);
  return static_cast<T*>(host::dynamic_shared());
}

// Values travel through the scheduler as 64 bits.
template <class T>
SEGUNC_DEVICE uint64_t pack(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
SEGUNC_DEVICE T unpack(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

SEGUNC_DEVICE void barrier(Site site = Site::caller()) { host::barrier_count(false, site); }
SEGUNC_DEVICE int barrier_count(bool predicate, Site site = Site::caller()) {
  return host::barrier_count(predicate, site);
}

SEGUNC_DEVICE void warp_sync(unsigned mask = kFullMask, Site site = Site::caller()) {
  host::warp_operation(host::WarpOperation::sync, mask, 0, 0, site);
}
SEGUNC_DEVICE unsigned ballot(unsigned mask, bool predicate, Site site = Site::caller()) {
  return unsigned(host::warp_operation(host::WarpOperation::ballot, mask, predicate, 0, site));
}
template <class T>
SEGUNC_DEVICE unsigned match_any(unsigned mask, T value, Site site = Site::caller()) {
  return unsigned(host::warp_operation(host::WarpOperation::match_any, mask, pack(value), 0, site));
}
template <class T>
SEGUNC_DEVICE T shuffle(unsigned mask, T value, unsigned source, Site site = Site::caller()) {
  return unpack<T>(
      host::warp_operation(host::WarpOperation::shuffle, mask, pack(value), source, site));
}
template <class T>
SEGUNC_DEVICE T shuffle_up(unsigned mask, T value, unsigned delta, Site site = Site::caller()) {
  return unpack<T>(
      host::warp_operation(host::WarpOperation::shuffle_up, mask, pack(value), delta, site));
}
template <class T>
SEGUNC_DEVICE T shuffle_down(unsigned mask, T value, unsigned delta, Site site = Site::caller()) {
  return unpack<T>(
      host::warp_operation(host::WarpOperation::shuffle_down, mask, pack(value), delta, site));
}
template <class T>
SEGUNC_DEVICE T shuffle_xor(unsigned mask, T value, unsigned lane_mask,
                            Site site = Site::caller()) {
  return unpack<T>(
      host::warp_operation(host::WarpOperation::shuffle_xor, mask, pack(value), lane_mask, site));
}

// A value parameter of this type takes no part in deduction, so that literals convert.
template <class T>
using Value = typename std::enable_if<true, T>::type;

template <class T>
SEGUNC_DEVICE T atomic(host::AtomicOperation operation, T* p, T value, T expected, Site site) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "atomics take 32- and 64-bit integers: floating sums depend on their order");
  return unpack<T>(host::atomic(operation, p, sizeof(T), std::is_signed_v<T>, pack(value),
                                pack(expected), site));
}
template <class T>
SEGUNC_DEVICE T atomic_add(T* p, Value<T> value, Site site = Site::caller()) {
  return atomic(host::AtomicOperation::add, p, value, T(), site);
}
template <class T>
SEGUNC_DEVICE T atomic_min(T* p, Value<T> value, Site site = Site::caller()) {
  return atomic(host::AtomicOperation::min, p, value, T(), site);
}
template <class T>
SEGUNC_DEVICE T atomic_max(T* p, Value<T> value, Site site = Site::caller()) {
  return atomic(host::AtomicOperation::max, p, value, T(), site);
}
template <class T>
SEGUNC_DEVICE T atomic_exchange(T* p, Value<T> value, Site site = Site::caller()) {
  return atomic(host::AtomicOperation::exchange, p, value, T(), site);
}
template <class T>
SEGUNC_DEVICE T atomic_compare_exchange(T* p, Value<T> expected, Value<T> desired,
                                        Site site = Site::caller()) {
  return atomic(host::AtomicOperation::compare_exchange, p, desired, expected, site);
}

template <class T>
SEGUNC_DEVICE T load_relaxed(const T* p, Site site = Site::caller()) {
  return unpack<T>(host::atomic(host::AtomicOperation::load, const_cast<T*>(p), sizeof(T),
                                std::is_signed_v<T>, 0, 0, site));
}
template <class T>
SEGUNC_DEVICE void store_relaxed(T* p, Value<T> value, Site site = Site::caller()) {
  host::atomic(host::AtomicOperation::store, p, sizeof(T), std::is_signed_v<T>, pack(value), 0,
               site);
}
template <class T>
SEGUNC_DEVICE T load_read_only(const T* p) {
  return *p;
}
// mapped[1] = value, then mapped[0] = 1. Of several callers one's value stays.
SEGUNC_DEVICE void store_host_flag(int64_t* mapped, int64_t value, Site site = Site::caller()) {
  host::count_host_flag();
  store_relaxed(mapped + 1, value, site);
  store_relaxed(mapped, 1, site);
}

SEGUNC_DEVICE int count_leading_zeros(unsigned v) { return v ? __builtin_clz(v) : 32; }
SEGUNC_DEVICE int popcount(unsigned v) { return __builtin_popcount(v); }
// One-based; 0 if no bit is set.
SEGUNC_DEVICE int find_first_set(unsigned v) { return __builtin_ffs(int(v)); }

// Exact but for one rounding; results of the first under 2^-126 are 0.
SEGUNC_DEVICE float power_of_two(float x) {
  const float power = std::exp2(x);
  return power < 0x1p-126f ? 0.f : power;
}
SEGUNC_DEVICE float binary_logarithm(float x) { return std::log2(x); }
SEGUNC_DEVICE float reciprocal(float x) { return 1.f / x; }
SEGUNC_DEVICE float square_root(float x) { return std::sqrt(x); }

// A GPU traps on a misaligned vector access, an ordinary processor does not.
SEGUNC_DEVICE void check_alignment(const void* p, size_t bytes, Site site = Site::caller()) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) host::fail("a misaligned vector access", site);
}
template <class Word>
SEGUNC_DEVICE void store_streaming(Word* p, Word value) {
  *p = value;
}

template <int Bytes>
struct Word;
template <>
struct Word<1> {
  using type [[gnu::may_alias]] = uint8_t;
};
template <>
struct Word<2> {
  using type [[gnu::may_alias]] = uint16_t;
};
template <>
struct Word<4> {
  using type [[gnu::may_alias]] = uint32_t;
};
template <>
struct Word<8> {
  using type [[gnu::may_alias]] = uint64_t;
};
template <>
struct Word<16> {
  using type [[gnu::may_alias, gnu::vector_size(16)]] = uint32_t;
};

}  // namespace segunc::device
