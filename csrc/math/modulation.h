// Factors of a pixel's cross-entropy that follow from the probability p of its labelled class.
//
// With q = log p and the cross-entropy l, the loss is m(q) l. As dq/dz_c = [c = y] - p_c and
// dl/dz_c = total p_c - t_c (cross_entropy.h), with m' = dm/dq and k = l m',
//   d(m l)/dz_c = (m total - k) p_c - (m t_c - k [c = y]):
// the same form, with other numbers. The factor of a detached one is a constant: k = 0.
//   focal     m = (1 - p)^rate             m' = -rate p (1 - p)^(rate - 1)
//   falling   m = peak exp(-rate p)        m' = -rate p m
//   rising    m = peak exp(-rate (1 - p))  m' =  rate p m
#pragma once
#include <cmath>

#include "exp_log.h"

namespace segunc {

enum class ModulationKind : int { none, focal, falling, rising };

inline namespace SEGUNC_VARIANT {
namespace math {

// 1 - e^q for q <= 0, within 3 ulp: near 0 not by a difference, which would lose what counts there.
SEGUNC_HD float complement_of(float q, float exp_q) {
  constexpr float kNear = -0.35f;  // from there on the series ends within 2^-25
  float series = 1.f / 40320;      // of (e^q - 1) / q
  series = series * q + 1.f / 5040;
  series = series * q + 1.f / 720;
  series = series * q + 1.f / 120;
  series = series * q + 1.f / 24;
  series = series * q + 1.f / 6;
  series = series * q + 1.f / 2;
  series = -q * (series * q + 1.f);
  const float complement = q > kNear ? series : 1.f - exp_q;
  return complement > 0.f ? complement : 0.f;
}
SEGUNC_HD double complement_of(double q, double) {
  const double complement = -::expm1(q);
  return complement > 0.0 ? complement : 0.0;
}

// Logarithms and exponentials to whatever base is cheapest: 2 on a GPU, where either is one
// instruction.
SEGUNC_HD float log_any(float x) {
#ifdef __CUDA_ARCH__
  return binary_logarithm(x);
#else
  return log_positive(x);
#endif
}
SEGUNC_HD double log_any(double x) { return ::log(x); }
SEGUNC_HD float exp_any(float x) {
#ifdef __CUDA_ARCH__
  return power_of_two(x);
#else
  return exp_nonpositive(x);
#endif
}
SEGUNC_HD double exp_any(double x) { return ::exp(x); }
SEGUNC_HD float to_any(float x) {
#ifdef __CUDA_ARCH__
  return x * 1.44269504f;
#else
  return x;
#endif
}
SEGUNC_HD double to_any(double x) { return x; }

// m and m', which is 0 where m is detached.
template <class A>
struct Modulated {
  A factor, slope;
};

// log_p may exceed 0 by what rounding makes of it. Of no kind rate is 0 and peak 1, and so is m.
// Without branches on the kind: a GPU does not know it before it runs, and three copies of this for
// every pixel of a thread would be most of a kernel.
template <class A>
SEGUNC_HD Modulated<A> modulated(ModulationKind kind, A log_p, A rate, A peak, bool detached) {
  constexpr A kLeast = A(1e-37);
  const bool focal = kind == ModulationKind::focal, rises = kind == ModulationKind::rising;
  const A p = exp_any(to_any(log_p)), others = complement_of(log_p, p);
  const A exponent =
      focal ? log_any(others > kLeast ? others : kLeast) : to_any(rises ? -others : -p);
  // Where p is 1 the slope of an exponent below 1 is infinite, but l is 0, and so is k.
  const A certain = focal ? kLeast : A(-1), slope_rate = focal ? rate - A(1) : rate;
  const A slope_peak = detached ? A(0) : rises ? peak : -peak;
  const A by_others = others > certain ? exp_any(slope_rate * exponent) : A(0);
  return {peak * exp_any(rate * exponent), p * by_others * (slope_peak * rate)};
}

// k. Where p is 0 it is 0, even if the loss is infinite.
template <class A>
SEGUNC_HD A modulation_pull(A loss, A slope) {
  return slope != A(0) ? loss * slope : A(0);
}

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
