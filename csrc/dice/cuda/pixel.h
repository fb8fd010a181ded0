// A pixel's part of Dice and cross-entropy, as kernels of every traversal compute it.
#pragma once
#include "../../common/device/interpolation.h"
#include "../../common/device/labels.h"
#include "../../common/device/softmax.h"
#include "../../common/device/work.h"
#include "../../math/cross_entropy.h"
#include "../../math/dice.h"
#include "../params.h"
#include "slopes.h"

namespace segunc::cuda {

// Of the cross-entropy, what is the same for every pixel. Divided on the host: doubles are slow on
// a GPU.
struct ExactDiceShares {
  double on, off;

  explicit ExactDiceShares(const DiceParams& p)
      : on(math::target_shares(p.label_smoothing, p.map.classes).on),
        off(math::target_shares(p.label_smoothing, p.map.classes).off) {}
};

template <class A>
struct DiceShares {
  const A* weight;
  math::TargetShares<A> shares;

  SEGUNC_DEVICE DiceShares(const DiceParams& p, const ExactDiceShares& exact)
      : weight(static_cast<const A*>(p.weight)), shares{A(exact.on), A(exact.off)} {}
  SEGUNC_DEVICE A class_weight(int c) const { return weight ? load_read_only(weight + c) : A(1); }
  SEGUNC_DEVICE bool smooths() const { return shares.smooths(); }
  SEGUNC_DEVICE A on_target(int label) const { return shares.on_target(class_weight(label)); }
  SEGUNC_DEVICE A smoothing(int c) const { return shares.smoothing(class_weight(c)); }  // s_c
};

// A valid pixel's cross-entropy, without its weight. logit_of(c) gives its logits.
template <class A, class Logit>
SEGUNC_DEVICE A cross_entropy_of(const DiceShares<A>& shares, int64_t classes, int label, A maximum,
                                 A sum, Logit logit_of) {
  math::SoftmaxTerms<A> softmax{sum, logit_of(label) - maximum, A(0), A(0)};
  if (shares.smooths()) {
    for (int64_t c = 0; c < classes; c++) {
      const A s = shares.smoothing(int(c));
      softmax.smooth_total += s;
      softmax.smooth_dot += s * (logit_of(c) - maximum);
    }
  }
  return math::cross_entropy(shares.on_target(label), softmax, log_of_sum(sum));
}

// What of a pixel the gradients of its logits need.
template <class A>
struct DiceGradientTerms {
  A maximum, inverse;         // of the softmax
  A shift, on_label, factor;  // math/dice.h
};

// The sum of exp(z_c - maximum) over the classes read so far, and that of a_c times them, or their
// squares.
template <class A>
struct OnlineDots {
  bool squared;
  A maximum = -kInfinity<A>;
  A sum = 0, dot = 0;

  SEGUNC_DEVICE void add(A logit, A a) {
    if (logit > maximum) {
      const A shrinks = math::exp_nonpositive(maximum - logit);
      sum = sum * shrinks + A(1);
      dot = dot * math::dice_mass(squared, shrinks) + a;
      maximum = logit;
    } else {
      // Equal infinities have no difference.
      const A e = logit == maximum ? A(1) : math::exp_nonpositive(logit - maximum);
      sum += e;
      dot += a * math::dice_mass(squared, e);
    }
  }
};

// Of any pixel; also writes the gradient of its weight. index: among all pixels. factor: of the
// cross-entropies, times the upstream gradient.
template <class A, class Logit>
SEGUNC_DEVICE DiceGradientTerms<A> gradient_terms(const DiceParams& p, const DiceShares<A>& shares,
                                                  const DiceSlopes<A>& slopes, A factor,
                                                  int64_t index, int label, Logit logit_of) {
  A* const grad_weight = static_cast<A*>(p.grad_pixel_weight);
  if (label < 0) {
    // What is no class makes the gradient NaN, as it has made the loss.
    const A nothing = label == kOutOfRange ? kNaN<A> : A(0);
    if (grad_weight) grad_weight[index] = nothing;
    return {A(0), A(0), nothing, A(0), A(0)};
  }
  const int64_t classes = p.map.classes;
  OnlineDots<A> online{p.squared};
  // report: trips elements * (sizeof(T) + 4) / accessed
#pragma unroll 4
  for (int64_t c = 0; c < classes; c++) {
    online.add(logit_of(c), load_read_only(slopes.by_predicted + c));
  }
  // An infinite maximum makes the sum NaN, as the subtraction would in one pass.
  const A sum = online.sum + (online.maximum - online.maximum);
  const A inverse = inverse_of_sum(sum);
  const A dot = p.squared ? A(2) * online.dot * inverse * inverse : online.dot * inverse;
  if (grad_weight) {
    grad_weight[index] =
        factor * cross_entropy_of(shares, classes, label, online.maximum, sum, logit_of);
  }
  if (p.pixel_weight) factor *= static_cast<const A*>(p.pixel_weight)[index];
  const A on_target = shares.on_target(label);
  A total = on_target;
  if (shares.smooths()) {
    for (int64_t c = 0; c < classes; c++) total += shares.smoothing(int(c));
  }
  const A labelled = math::exp_nonpositive(logit_of(label) - online.maximum) * inverse;
  const auto terms = math::dice_terms(dot, load_read_only(slopes.by_common + label), labelled,
                                      factor, on_target, total);
  return {online.maximum, inverse, terms.shift, terms.on_label, factor};
}

// Of a logit of class c.
template <class A>
SEGUNC_DEVICE A logit_gradient(const DiceParams& p, const DiceShares<A>& shares,
                               const DiceGradientTerms<A>& terms, A logit, A a, int c, int label) {
  const A probability = math::exp_nonpositive(logit - terms.maximum) * terms.inverse;
  A v =
      math::dice_derivative(probability, math::dice_slope(p.squared, a, probability), terms.shift);
  if (shares.smooths()) v -= terms.factor * shares.smoothing(c);
  return c == label ? v + terms.on_label : v;
}

}  // namespace segunc::cuda
