// The gradient of Dice and cross-entropy together at a pixel.
//
// Dice depends on the pixels through sums over them of m(p_c), of [y = c] and of p_c [y = c], with
// m(p) = p, or p^2. With a_c and b_c the derivatives of the loss by the first and the last of these
//   q_c = a_c m'(p_c) + b_c [y = c]
// is its derivative by p_c, and  p_c (q_c - sum_k p_k q_k)  that by the logit z_c. A cross-entropy
// with the factor f adds  f (total p_c - t_c),  t_c = on_target [y = c] + s_c
// (math/cross_entropy.h). Together
//   dl/dz_c = p_c (a_c m'(p_c) + shift) + on_label [y = c] - f s_c,
//   shift = f total - sum_k p_k q_k,   on_label = p_y b_y - f on_target.
#pragma once
#include "../common/host_device.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace math {

// m(p), and a m'(p).
template <class P>
SEGUNC_HD P dice_mass(bool squared, P p) {
  return squared ? p * p : p;
}
template <class P>
SEGUNC_HD P dice_slope(bool squared, P a, P p) {
  return squared ? (a + a) * p : a;
}

template <class A>
struct DiceTerms {
  A shift, on_label;
};
// dot is sum_k p_k a_k m'(p_k), b_y and p_y are the labelled class's.
template <class A>
SEGUNC_HD DiceTerms<A> dice_terms(A dot, A b_y, A p_y, A factor, A on_target, A total) {
  const A common = p_y * b_y;
  return {factor * total - (dot + common), common - factor * on_target};
}

// Without what the label and smoothing add; slope is a_c m'(p_c).
template <class P>
SEGUNC_HD P dice_derivative(P p, P slope, P shift) {
  return p * (slope + shift);
}

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
