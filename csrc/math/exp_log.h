// exp and log as the kernels need them. The float versions are inline polynomials on the host, so
// that they work on vectors too; on a GPU they are CUDA's own.
#pragma once
#include <cmath>

#include "../common/element.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace math {

#ifndef __CUDA_ARCH__
// The polynomials take a float or a vector of floats (GCC's vector extension) alike.
template <class F>
struct Bits {
  typedef uint32_t type __attribute__((vector_size(sizeof(F))));
  typedef int32_t signed_type __attribute__((vector_size(sizeof(F))));
};
template <>
struct Bits<float> {
  using type = uint32_t;
  using signed_type = int32_t;
};

SEGUNC_HD float to_float(int32_t i) { return float(i); }
template <class I>
SEGUNC_HD auto to_float(I i) {
  typedef float F __attribute__((vector_size(sizeof(I))));
  return __builtin_convertvector(i, F);
}

template <class F>
SEGUNC_HD F exp_polynomial(F x) {
  using U = typename Bits<F>::type;
  constexpr float kRound = 0x1.8p23f;  // adding it leaves round(x / ln 2) in the low bits
  const F shifted = x * 1.44269504f + kRound;
  const F n = shifted - kRound;
  const F r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  // Pairs of terms rather than one Horner chain: shorter dependency chains fill more ports.
  const F r2 = r * r;
  const F high = 1.9875691500e-4f * r + 1.3981999507e-3f;
  const F middle = 8.3334519073e-3f * r + 4.1665795894e-2f;
  const F low = 1.6666665459e-1f * r + 5.0000001201e-1f;
  const F p = ((high * r2 + middle) * r2 + low) * r2 + (r + 1.f);
  const U scaled = bit_cast<U>(p) + (bit_cast<U>(shifted) << 23);
  return x < -87.f ? F{} : bit_cast<F>(scaled);
}

#if defined(__AVX512F__)
// Sixteen lanes can look up powers of two in a register, so that a cubic is enough: half of the
// polynomial's instructions.
typedef float Float16Lanes __attribute__((vector_size(64)));

SEGUNC_HD Float16Lanes exp_polynomial(Float16Lanes x) {
  using F = Float16Lanes;
  using U = Bits<F>::type;
  using I = Bits<F>::signed_type;
  // 2^(i/16)
  const F powers = {1.f,         1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f,
                    1.29683955f, 1.35425555f, 1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
                    1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
  constexpr float kRound = 0x1.8p23f;  // adding it leaves round(16 x / ln 2) in the low bits
  constexpr float kScale = 16 * 1.44269504f, kHigh = 0.693359375f / 16, kLow = -2.12194440e-4f / 16;
  const F shifted = x * kScale + kRound;
  const F n = shifted - kRound;
  const F r = (x - n * kHigh) - n * kLow;
  const F power = __builtin_shuffle(powers, bit_cast<I>(shifted));  // by the lowest four bits
  const F q = (1.66666672e-1f * r + 0.5f) * (r * r) + r;
  const U scaled = bit_cast<U>(power * q + power) + (bit_cast<U>(shifted) >> 4 << 23);
  return x < -87.f ? F{} : bit_cast<F>(scaled);
}
#endif

template <class F>
SEGUNC_HD F log_polynomial(F x) {
  using U = typename Bits<F>::type;
  using I = typename Bits<F>::signed_type;
  constexpr uint32_t kSqrtHalf = 0x3f3504f3;
  const U above = bit_cast<U>(x) - kSqrtHalf;
  const F n = to_float(bit_cast<I>(above) >> 23);
  const F f = bit_cast<F>((above & 0x7fffffu) + kSqrtHalf) - 1.f;
  const F z = f * f;
  F p = 7.0376836292e-2f * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const F tail = (p * f * z + n * -2.12194440e-4f) - 0.5f * z;
  const F y = (f + tail) + n * 0.693359375f;
  return x == x ? y : x;
}
#endif

#ifdef __CUDACC__
// Instructions of their own, which the functions of CUDA's library wrap in others. Operands and
// results under 2^-126 are 0.
// 2^x within 2 ulp.
__device__ __forceinline__ float power_of_two(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}
// log2 x within 2^-22, beyond [1/2, 2] of the result.
__device__ __forceinline__ float binary_logarithm(float x) {
  float logarithm;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(logarithm) : "f"(x));
  return logarithm;
}
#endif

// e^x for x <= 0, within 1.5 ulp. On the host results under e^-87 are 0, so that no denormal is
// ever produced. NaN stays NaN.
template <class F>
SEGUNC_HD F exp_nonpositive(F x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  return exp_polynomial(x);
#endif
}
SEGUNC_HD double exp_nonpositive(double x) { return ::exp(x); }

// Natural logarithm of a finite positive normal number, within 1.5 ulp. NaN stays NaN.
template <class F>
SEGUNC_HD F log_positive(F x) {
#ifdef __CUDA_ARCH__
  return logf(x);
#else
  return log_polynomial(x);
#endif
}
SEGUNC_HD double log_positive(double x) { return ::log(x); }

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
