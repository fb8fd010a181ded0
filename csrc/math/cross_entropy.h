// Cross-entropy of one pixel against a smoothed, class-weighted target, and its derivatives.
//
// With logits z, maximum m, d = z - m, s = sum_c exp(d_c), label y, class weights w and smoothing
// e, torch's loss of p = softmax(z) is
//   l = sum_c t_c (-log p_c) = a (log s - d_y) + sum_c b_c (log s - d_c),
//   t_c = a [c = y] + b_c,   a = (1 - e) w_y,   b_c = e / C * w_c,   total = sum_c t_c.
// Its derivative is  dl/dz_c = total p_c - t_c = total / s * exp(d_c) - t_c.
#pragma once
#include <cstdint>

#include "exp_log.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace math {

// How a target is spread over the classes: what falls to the labelled one, and to each.
template <class A>
struct TargetShares {
  A on, off;  // 1 - e, e / C

  SEGUNC_HD bool smooths() const { return off > A(0); }
  SEGUNC_HD A on_target(A class_weight) const { return on * class_weight; }   // a
  SEGUNC_HD A smoothing(A class_weight) const { return off * class_weight; }  // b_c
};

SEGUNC_HD TargetShares<double> target_shares(double label_smoothing, int64_t classes) {
  return {1.0 - label_smoothing, label_smoothing / double(classes)};
}

// What a pixel's softmax has to tell. The last two are 0 without smoothing.
template <class A>
struct SoftmaxTerms {
  A sum;             // s
  A target_shifted;  // d_y
  A smooth_total;    // sum_c b_c
  A smooth_dot;      // sum_c b_c d_c
};

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
template <class A>
SEGUNC_HD A cross_entropy(A on_target, const SoftmaxTerms<A>& softmax, A log_sum) {
  const A smooth = softmax.smooth_total * log_sum - softmax.smooth_dot;
  return cross_entropy(on_target, smooth, softmax.target_shifted, log_sum);
}

// A loss u l, where the gradient g flows in: g l is that of u, and the derivative's factor is u g.
template <class A>
struct Weighted {
  A loss, weight_gradient, factor;
};
template <class A>
SEGUNC_HD Weighted<A> weighted(A loss, A weight, A upstream) {
  return {weight * loss, loss * upstream, weight * upstream};
}

// exponential is exp(z_c - m), slope is total / s, and t_c as above; or the last two times a
// factor.
template <class A>
SEGUNC_HD A cross_entropy_derivative(A exponential, A slope, A t_c) {
  return exponential * slope - t_c;
}
// The slope has the factor, t_c has it yet to get.
template <class A>
SEGUNC_HD A cross_entropy_derivative(A exponential, A slope, A factor, A t_c) {
  return exponential * slope - factor * t_c;
}

// What of the target's exponential is worth a: taken off it, a is no longer part of t_y.
template <class A>
SEGUNC_HD A target_exponential(A on_target, A total, A sum) {
  return total != A(0) ? on_target / total * sum : A(0);
}

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
