// The vocabulary of device.h for nvcc: thin wrappers, nothing else.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "../../math/exp_log.h"
#include "limits.h"

#define SEGUNC_DEVICE __device__ __forceinline__
// Variadic, because a type may contain commas.
#define SEGUNC_SHARED(name, ...) __shared__::segunc::device::SharedType<__VA_ARGS__> name

namespace segunc::device {

template <class T>
using SharedType = T;

using Stream = cudaStream_t;

constexpr unsigned kFullMask = 0xffffffffu;
constexpr unsigned kWarpSize = 32;

// A bound that only large inputs reach. On the host it is lower, so that small tests go beyond it.
constexpr int64_t at_scale(int64_t bound) { return bound; }

// A number of blocks.
struct Grid {
  Grid(int64_t blocks) : x(unsigned(blocks)) {
    if (blocks < 1 || blocks > 0x7fffffff) {
      throw std::runtime_error("a grid of " + std::to_string(blocks) + " blocks");
    }
  }
  unsigned x;
};

inline std::string launch_problem(cudaError_t error) {
  if (error != cudaErrorNoKernelImageForDevice) return cudaGetErrorString(error);
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return "this build has no code for a GPU of compute capability " + std::to_string(major) + "." +
         std::to_string(minor) +
         "; build it with SEGUNC_OPS_CUDA_TARGETS=" + std::to_string(major) + std::to_string(minor);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Grid grid, unsigned threads, size_t dynamic_shared_bytes,
            Stream stream, Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments));
  std::tuple<std::decay_t<Parameters>...> values(
      static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  const cudaError_t error = std::apply(
      [&](auto&... value) {
        void* pointers[] = {static_cast<void*>(&value)..., nullptr};
        return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(grid.x), dim3(threads),
                                pointers, dynamic_shared_bytes, stream);
      },
      values);
  if (error != cudaSuccess) {
    cudaGetLastError();  // else the next check of anyone in the process reports it once more
    throw std::runtime_error("a kernel was not launched: " + launch_problem(error));
  }
}

SEGUNC_DEVICE unsigned thread() { return threadIdx.x; }
SEGUNC_DEVICE unsigned block_index() { return blockIdx.x; }
SEGUNC_DEVICE unsigned block_size() { return blockDim.x; }
SEGUNC_DEVICE unsigned grid_size() { return gridDim.x; }
SEGUNC_DEVICE unsigned lane() { return threadIdx.x % kWarpSize; }
SEGUNC_DEVICE unsigned warp() { return threadIdx.x / kWarpSize; }

template <class T>
SEGUNC_DEVICE T* dynamic_shared() {
  static_assert(alignof(T) <= 16);
  extern __shared__ __align__(16) unsigned char segunc_dynamic_shared[];
  return reinterpret_cast<T*>(segunc_dynamic_shared);
}

SEGUNC_DEVICE void barrier() { __syncthreads(); }
SEGUNC_DEVICE int barrier_count(bool predicate) { return __syncthreads_count(predicate); }

SEGUNC_DEVICE void warp_sync(unsigned mask = kFullMask) { __syncwarp(mask); }
SEGUNC_DEVICE unsigned ballot(unsigned mask, bool predicate) {
  return __ballot_sync(mask, predicate);
}
template <class T>
SEGUNC_DEVICE unsigned match_any(unsigned mask, T value) {
  return __match_any_sync(mask, value);
}
template <class T>
SEGUNC_DEVICE T shuffle(unsigned mask, T value, unsigned source) {
  return __shfl_sync(mask, value, int(source));
}
template <class T>
SEGUNC_DEVICE T shuffle_up(unsigned mask, T value, unsigned delta) {
  return __shfl_up_sync(mask, value, delta);
}
template <class T>
SEGUNC_DEVICE T shuffle_down(unsigned mask, T value, unsigned delta) {
  return __shfl_down_sync(mask, value, delta);
}
template <class T>
SEGUNC_DEVICE T shuffle_xor(unsigned mask, T value, unsigned lane_mask) {
  return __shfl_xor_sync(mask, value, int(lane_mask));
}

// The type of CUDA's overloads that stands for an integer of T's size and signedness.
template <class T>
struct AtomicInteger {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "atomics take 32- and 64-bit integers: floating sums depend on their order");
  using unsigned_type = std::conditional_t<sizeof(T) == 4, unsigned, unsigned long long>;
  using type = std::conditional_t<std::is_unsigned_v<T>, unsigned_type,
                                  std::conditional_t<sizeof(T) == 4, int, long long>>;
};
// A value parameter of this type takes no part in deduction, so that literals convert.
template <class T>
using Value = typename std::enable_if<true, T>::type;

template <class T>
SEGUNC_DEVICE T atomic_add(T* p, Value<T> value) {
  using U = typename AtomicInteger<T>::unsigned_type;
  return T(atomicAdd(reinterpret_cast<U*>(p), U(value)));
}
template <class T>
SEGUNC_DEVICE T atomic_min(T* p, Value<T> value) {
  using U = typename AtomicInteger<T>::type;
  return T(atomicMin(reinterpret_cast<U*>(p), U(value)));
}
template <class T>
SEGUNC_DEVICE T atomic_max(T* p, Value<T> value) {
  using U = typename AtomicInteger<T>::type;
  return T(atomicMax(reinterpret_cast<U*>(p), U(value)));
}
template <class T>
SEGUNC_DEVICE T atomic_exchange(T* p, Value<T> value) {
  using U = typename AtomicInteger<T>::unsigned_type;
  return T(atomicExch(reinterpret_cast<U*>(p), U(value)));
}
template <class T>
SEGUNC_DEVICE T atomic_compare_exchange(T* p, Value<T> expected, Value<T> desired) {
  using U = typename AtomicInteger<T>::unsigned_type;
  return T(atomicCAS(reinterpret_cast<U*>(p), U(expected), U(desired)));
}

template <class T>
SEGUNC_DEVICE T load_relaxed(const T* p) {
  return *const_cast<const volatile T*>(p);
}
template <class T>
SEGUNC_DEVICE void store_relaxed(T* p, Value<T> value) {
  *const_cast<volatile T*>(p) = value;
}
template <class T>
SEGUNC_DEVICE T load_read_only(const T* p) {
  return __ldg(p);
}
// mapped[1] = value, then mapped[0] = 1, as the host sees them. Of several callers one's value
// stays.
SEGUNC_DEVICE void store_host_flag(int64_t* mapped, int64_t value) {
  store_relaxed(mapped + 1, value);
  __threadfence_system();
  store_relaxed(mapped, 1);
}

SEGUNC_DEVICE int count_leading_zeros(unsigned v) { return __clz(int(v)); }
SEGUNC_DEVICE int popcount(unsigned v) { return __popc(v); }
// One-based; 0 if no bit is set.
SEGUNC_DEVICE int find_first_set(unsigned v) { return __ffs(int(v)); }

// Instructions of their own, which the functions of CUDA's library wrap in others. Operands and
// results under 2^-126 are 0.
using math::binary_logarithm;
using math::power_of_two;
// 1 / x within 1 ulp.
SEGUNC_DEVICE float reciprocal(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
}

// Within 2^-23 of the root.
SEGUNC_DEVICE float square_root(float x) {
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}

SEGUNC_DEVICE void check_alignment(const void*, size_t) {}
template <class Word>
SEGUNC_DEVICE void store_streaming(Word* p, Word value) {
  __stcs(p, value);
}

template <int Bytes>
struct Word;
template <>
struct Word<1> {
  using type = unsigned char;
};
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = uint2;  // a 64-bit integer would be loaded in halves where they are used apart
};
template <>
struct Word<16> {
  using type = uint4;
};

}  // namespace segunc::device
