// The sigmoid of a logit z, and the binary cross-entropy of it with y in {0, 1}, from one
// exponential, of floats or packs of them.
//
// With e = exp(-|z|) and u = 1 + e the sigmoid is 1 / u for z >= 0, else e / u, and 1 - sigmoid the
// other one, exact where it is small. With t = z for y = 1, and -z for y = 0, and w the weight of
// y = 1, else 1,
//   l = w log(1 + exp(-t)) = w (max(-t, 0) + log u),
//   dl/dz = w sigmoid(-t), negative for y = 1.
#pragma once
#include "exp_log.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace math {

// Its exponential is exp_nonpositive of it.
template <class P>
SEGUNC_HD P minus_magnitude(P z) {
  return z > P{} ? -z : z;
}

#ifdef __CUDA_ARCH__
// Part of the instruction that takes it.
SEGUNC_HD float minus_magnitude(float z) { return -fabsf(z); }
#endif

// e, and 1 / (1 + e).
template <class P>
struct Sigmoids {
  P exponential, inverse;

  // sigmoid(v), v being z or -z.
  SEGUNC_HD P of(P v) const { return v < P{} ? exponential * inverse : inverse; }
  // sigmoid'(z)
  SEGUNC_HD P derivative() const { return exponential * inverse * inverse; }
};

// l without its weight and without the logarithm of u, rounded as `sum`: what the rounding has cost
// is in it.
template <class P>
SEGUNC_HD P surprise_without_log(const Sigmoids<P>& sigmoids, P sum, P t) {
  const P rest = (sigmoids.exponential - (sum - 1.f)) * sigmoids.inverse;
  return t < P{} ? rest - t : rest;
}

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
