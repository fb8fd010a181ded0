// Cross-entropy of one pixel against a smoothed, class-weighted target, and its derivative.
//
// With logits z, maximum m, s = sum_c exp(z_c - m), p = softmax(z), label y, class weights w and
// smoothing e, torch's loss is  l = sum_c t_c * (-log p_c)  with  t_c = a [c = y] + b_c,
//   a = (1 - e) w_y,   b_c = e / C * w_c,   total = sum_c t_c.
// Its derivative is  dl/dz_c = total * p_c - t_c.
#pragma once
#include "exp_log.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace math {

// -log p_c from the shifted logit z_c - m and log s. Infinite logits give torch's inf or NaN.
template <class A>
SEGUNC_HD A negative_log_probability(A shifted, A log_sum) {
  return log_sum - shifted;
}

// smooth is sum_c b_c * (-log p_c); 0 without smoothing.
template <class A>
SEGUNC_HD A cross_entropy(A on_target, A smooth, A target_shifted, A log_sum) {
  return on_target * negative_log_probability(target_shifted, log_sum) + smooth;
}

// exponential is exp(z_c - m), total_over_sum is total / s, and t_c as above.
template <class A>
SEGUNC_HD A cross_entropy_derivative(A exponential, A total_over_sum, A t_c) {
  return exponential * total_over_sum - t_c;
}

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
