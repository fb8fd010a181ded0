// The element types of tensors and the type each is computed in.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "host_device.h"

namespace segunc {

enum class Dtype : int { f64, f32, bf16, f16 };
enum class IndexType : int { i64, i32, i16, u8 };

// Storage only: arithmetic is in accumulate_t.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

inline namespace SEGUNC_VARIANT {

template <class To, class From>
SEGUNC_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

SEGUNC_HD float to_accumulate(float v) { return v; }
SEGUNC_HD double to_accumulate(double v) { return v; }
SEGUNC_HD float to_accumulate(bfloat16 v) { return bit_cast<float>(uint32_t(v.bits) << 16); }
SEGUNC_HD float to_accumulate(float16 v) {
#ifdef __CUDA_ARCH__
  return __half2float(bit_cast<__half>(v));
#else
  // The exponent is rebiased by a multiplication, which also normalises subnormals.
  const uint32_t magnitude = uint32_t(v.bits & 0x7fffu) << 13;
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16;
  return bit_cast<float>(sign | (magnitude >= 0x0f800000u ? special : finite));
#endif
}

// Rounds to nearest even; NaN stays NaN.
template <class T>
SEGUNC_HD T from_accumulate(accumulate_t<T> v);
template <>
SEGUNC_HD float from_accumulate<float>(float v) {
  return v;
}
template <>
SEGUNC_HD double from_accumulate<double>(double v) {
  return v;
}
template <>
SEGUNC_HD bfloat16 from_accumulate<bfloat16>(float v) {
#ifdef __CUDA_ARCH__
  return bit_cast<bfloat16>(__float2bfloat16_rn(v));
#else
  const uint32_t u = bit_cast<uint32_t>(v);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return {uint16_t(v == v ? rounded : 0x7fc0u)};
#endif
}
template <>
SEGUNC_HD float16 from_accumulate<float16>(float v) {
#ifdef __CUDA_ARCH__
  return bit_cast<float16>(__float2half_rn(v));
#else
  const uint32_t u = bit_cast<uint32_t>(v), magnitude = u & 0x7fffffffu;
  const float a = bit_cast<float>(magnitude);
  // Below 2^-14 the result is a multiple of 2^-24, which is the ulp of 0.5: the addition rounds.
  const uint32_t subnormal = bit_cast<uint32_t>(a + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  uint32_t h = a < 0x1p-14f ? subnormal : normal;
  h = a >= 65520.f ? 0x7c00u : h;
  h = v == v ? h : 0x7e00u;
  return {uint16_t(h | ((u >> 16) & 0x8000u))};
#endif
}

SEGUNC_HD int bytes_of(IndexType type) {
  switch (type) {
    case IndexType::i64:
      return 8;
    case IndexType::i32:
      return 4;
    case IndexType::i16:
      return 2;
    default:
      return 1;
  }
}

SEGUNC_HD int64_t load_index(const void* data, IndexType type, int64_t i) {
  switch (type) {
    case IndexType::i64:
      return static_cast<const int64_t*>(data)[i];
    case IndexType::i32:
      return static_cast<const int32_t*>(data)[i];
    case IndexType::i16:
      return static_cast<const int16_t*>(data)[i];
    default:
      return static_cast<const uint8_t*>(data)[i];
  }
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
