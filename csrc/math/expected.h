// Cross-entropy of a probability that is a mean of draws' probabilities.
//
// With log-probabilities l_s of the labelled class in S draws, the loss is
//   -log (1 / S sum_s exp(l_s)),
// and its derivative is sum_s v_s dl_s with v_s = exp(l_s) / sum_t exp(l_t). The sum is kept with
// its largest term m: total = sum_s exp(l_s - m).
#pragma once
#include "exp_log.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace math {

// Below every log-probability, and finite: terms of it are 0, without a difference of infinities.
template <class A>
constexpr A kNoLogProbability = A(-3e38);

// -log (total exp(m) / S); infinite if no draw gave the class a chance.
template <class A>
SEGUNC_HD A negative_log_mean(A largest, A total, A log_draws) {
  return total == A(0) ? A(__builtin_huge_val()) : log_draws - (largest + log_positive(total));
}

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
