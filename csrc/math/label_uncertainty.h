// Losses of a binary label y that is uncertain, of a logit of mean m and variance s = exp(v), and
// their derivatives.
//
// With c = 1 / sqrt(1 + a s), a = pi / 8, and t = m for y = 1, and -m for y = 0,
//   uncertainty    l1 = log(1 + exp(-c t)),            the cross-entropy of E[p] = sigmoid(c m)
//     dl1/dt = -c sigmoid(-c t)
//     dl1/dv = sigmoid(-c t) c t r / 2,                r = a s / (1 + a s), as dc/dv = -c r / 2
//   bootstrapping  l2 = W log(1 + exp(-t)) + (1 - W) log(1 + exp(t)),   W = sigmoid(5 (tau - s))
//     dl2/dt = (1 - W) sigmoid(t) - W sigmoid(-t)
//     dl2/dv = t W (1 - W) 5 s,                        as the two cross-entropies differ by t
// Labels that are exact have W = 1.
//
// Nothing overflows, and nothing small is a difference of what is large: with h = exp(-|v| / 2)
// only exponentials of what is not positive are taken, and 1 - W is a sigmoid of its own. What
// would overflow s is a large number, for which W and its derivative are 0.
#pragma once
#include "binary.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace math {

// Of a call, in the type computed in.
template <class A>
struct LabelUncertainty {
  A threshold;                             // tau
  A uncertainty_weight, bootstrap_weight;  // of l1 and l2; what has none is not computed
  bool detached;                           // W is a constant
};

// A loss, and its derivatives by m and by v.
template <class P>
struct UncertainLoss {
  P loss, by_mean, by_log_variance;
};

// What is made of v.
template <class P>
struct Variance {
  P value;  // s, up to 8e37
  P scale;  // c
  P share;  // r
};

// Functions: exponential (of what is not positive), inverse, root and logarithm of A, or packs of
// it.
template <class Functions, class A, class P>
SEGUNC_HD Variance<P> variance_of(P log_variance) {
  constexpr A kA = A(0.392699081698724154807830422909937860L);
  const auto is_large = log_variance > P{};
  const P h = Functions::exponential(minus_magnitude(log_variance) * A(0.5));
  const P e = h * h;  // s, or 1 / s
  const P one = P{} + A(1), a = P{} + kA, smallest = P{} + A(0x1p-126);
  const P inverse = Functions::inverse(is_large ? e + a : a * e + one);
  const P divisor = e < smallest ? smallest : e;
  return {is_large ? Functions::inverse(divisor) : e,
          (is_large ? h : one) * Functions::root(inverse), (is_large ? a : a * e) * inverse};
}

template <class Functions, class P>
SEGUNC_HD Sigmoids<P> sigmoids_by(P z) {
  const P e = Functions::exponential(minus_magnitude(z));
  return {e, Functions::inverse(e + 1.f)};
}
// log(1 + exp(-t)), of the sigmoids of t or -t.
template <class Functions, class P>
SEGUNC_HD P surprise_by(const Sigmoids<P>& sigmoids, P t) {
  const P sum = sigmoids.exponential + 1.f;
  return surprise_without_log(sigmoids, sum, t) + Functions::logarithm(sum);
}

// is_positive: whether y is 1, a truth value or a mask of lanes. may_flip: whether W is not 1.
template <class Functions, class A, class P, class Mask>
SEGUNC_HD UncertainLoss<P> uncertain_loss(const LabelUncertainty<A>& of, P mean, P log_variance,
                                          Mask is_positive, bool may_flip) {
  const Variance<P> variance = variance_of<Functions, A>(log_variance);
  const P t = is_positive ? mean : -mean;
  P loss = {}, by_t = {}, by_log_variance = {};
  if (of.uncertainty_weight != A(0)) {
    const P scaled = t * variance.scale;
    const auto sigmoids = sigmoids_by<Functions>(scaled);
    const P wrong = sigmoids.of(-scaled) * of.uncertainty_weight;
    loss = surprise_by<Functions>(sigmoids, scaled) * of.uncertainty_weight;
    by_t = -wrong * variance.scale;
    by_log_variance = wrong * scaled * variance.share * A(0.5);
  }
  if (of.bootstrap_weight != A(0)) {
    const auto sigmoids = sigmoids_by<Functions>(t);
    const P nothing = {};
    const P margin = (of.threshold - variance.value) * A(5);
    const auto weights = sigmoids_by<Functions>(margin);
    const P kept = may_flip ? weights.of(margin) : P{} + A(1);
    const P flipped = may_flip ? weights.of(-margin) : nothing;
    const A learned = may_flip && !of.detached ? A(5) * of.bootstrap_weight : A(0);
    // First what is 0 where the variance is large, then what may be 0.
    by_log_variance += t * (weights.derivative() * variance.value * learned);
    // Both cross-entropies have that of |t|, and one of them |t| beside.
    const P common = surprise_by<Functions>(sigmoids, t < nothing ? -t : t);
    const P beside = t < nothing ? -kept * t : flipped * t;
    loss += (common + beside) * of.bootstrap_weight;
    by_t += (flipped * sigmoids.of(t) - kept * sigmoids.of(-t)) * of.bootstrap_weight;
  }
  return {loss, is_positive ? by_t : -by_t, by_log_variance};
}

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
