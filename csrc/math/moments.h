// Moments and entropies of class probabilities over samples.
#pragma once
#include "exp_log.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace math {

// One more value into a running mean and sum of squared deviations (Welford); count includes it.
template <class A>
SEGUNC_HD void accumulate_moments(A value, A inverse_count, A& mean, A& squared_deviations) {
  const A delta = value - mean;
  mean += delta * inverse_count;
  squared_deviations += delta * (value - mean);
}

// -p log p, 0 at p = 0: the smallest positive float of a softmax is normal on the host.
template <class A>
SEGUNC_HD A entropy_term(A p) {
  return p > A{} ? -p * log_positive(p) : A{};
}

// Entropy of softmax(z) from s = sum_c exp(d_c) and dot = sum_c d_c exp(d_c), d_c = z_c - max z.
template <class A>
SEGUNC_HD A softmax_entropy(A log_sum, A dot, A inverse_sum) {
  return log_sum - dot * inverse_sum;
}

// d exp(d), 0 at d = -inf, where the class has no mass.
template <class A>
SEGUNC_HD A weighted_exponent(A exponential, A d) {
  return exponential > A{} ? exponential * d : A{};
}

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
