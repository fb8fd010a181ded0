// exp and log as the kernels need them. The float versions are inline polynomials on the host, so
// that a plain loop over pixels vectorises; on a GPU they are CUDA's own.
#pragma once
#include <cmath>

#include "../common/element.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace math {

// e^x for x <= 0, within 1.5 ulp. On the host results under e^-87 are 0, so that no denormal is
// ever produced. NaN stays NaN.
SEGUNC_HD float exp_nonpositive(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  constexpr float kRound = 0x1.8p23f;  // adding it leaves round(x / ln 2) in the low bits
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  // Pairs of terms rather than one Horner chain: shorter dependency chains fill more ports.
  const float r2 = r * r;
  const float high = 1.9875691500e-4f * r + 1.3981999507e-3f;
  const float middle = 8.3334519073e-3f * r + 4.1665795894e-2f;
  const float low = 1.6666665459e-1f * r + 5.0000001201e-1f;
  const float p = ((high * r2 + middle) * r2 + low) * r2 + (r + 1.f);
  const uint32_t scaled = bit_cast<uint32_t>(p) + (bit_cast<uint32_t>(shifted) << 23);
  return x < -87.f ? 0.f : bit_cast<float>(scaled);
#endif
}
SEGUNC_HD double exp_nonpositive(double x) { return ::exp(x); }

// Natural logarithm of a finite positive normal number, within 1.5 ulp. NaN stays NaN.
SEGUNC_HD float log_positive(float x) {
#ifdef __CUDA_ARCH__
  return logf(x);
#else
  constexpr uint32_t kSqrtHalf = 0x3f3504f3;
  const int32_t i = bit_cast<int32_t>(bit_cast<uint32_t>(x) - kSqrtHalf);
  const float n = float(i >> 23);
  const float f = bit_cast<float>((uint32_t(i) & 0x7fffff) + kSqrtHalf) - 1.f;
  const float z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float tail = (p * f * z + n * -2.12194440e-4f) - 0.5f * z;
  const float y = (f + tail) + n * 0.693359375f;
  return x == x ? y : x;
#endif
}
SEGUNC_HD double log_positive(double x) { return ::log(x); }

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
