// A pixel's cross-entropy, as kernels of every traversal compute it: label and factors in, loss and
// the logits' gradient out. Params: a loss's struct with target, weight, upstream and the like.
#pragma once
#include "../../math/cross_entropy.h"
#include "labels.h"
#include "softmax.h"

namespace segunc::device {

// What of a target falls to the labelled class, and to each class by smoothing.
struct TargetShares {
  double on, off;
};

template <class Params>
TargetShares target_shares(const Params& p) {
  return {1.0 - p.label_smoothing, p.label_smoothing / double(p.map.classes)};
}

// data[first ...], or ones without data.
template <int V, class A>
SEGUNC_DEVICE Vector<A, V> load_factors(const void* data, int64_t first) {
  if (data) return load_vector<V>(static_cast<const A*>(data) + first);
  Vector<A, V> ones;
#pragma unroll
  for (int j = 0; j < V; j++) ones[j] = A(1);
  return ones;
}

// What is the same for every pixel.
template <class A>
struct Constants {
  const A* weight;
  A on_share, off_share;
  A scale;  // of every gradient: the scalar upstream gradient by the normalizer

  template <class Params>
  SEGUNC_DEVICE Constants(const Params& p, const TargetShares& shares)
      : weight(static_cast<const A*>(p.weight)),
        on_share(A(shares.on)),
        off_share(A(shares.off)),
        scale(A(1)) {
    if (p.upstream_is_scalar && p.upstream) scale = *static_cast<const A*>(p.upstream);
    if (p.normalizer) scale *= inverse(A(*p.normalizer));
  }
  SEGUNC_DEVICE A class_weight(int c) const { return weight ? load_read_only(weight + c) : A(1); }
  SEGUNC_DEVICE bool smooths() const { return off_share != A(0); }
  // b_c
  SEGUNC_DEVICE A smoothing(int c) const { return off_share * class_weight(c); }
};

// What a pixel's softmax has to tell: s, d_y, and with smoothing sum_c b_c and sum_c b_c d_c.
template <class A>
struct SoftmaxTerms {
  A sum, target_shifted, smooth_total, smooth_dot;
};

// What is written for a pixel, and the factors of its logits' gradient
//   slope * exp d_c - on_target [c = y] - factor * b_c.
template <class A>
struct PixelTerms {
  A loss, weight_gradient;
  A slope, on_target, factor;
};

template <class A>
SEGUNC_DEVICE PixelTerms<A> pixel_terms(const Constants<A>& constants, int label,
                                        const SoftmaxTerms<A>& softmax, A pixel_weight,
                                        A upstream) {
  if (label == kIgnored) return {A(0), A(0), A(0), A(0), A(0)};
  if (label == kOutOfRange) return {kNaN<A>, kNaN<A>, kNaN<A>, A(0), A(0)};
  const A log_sum = math::log_positive(softmax.sum);
  const A on_target = constants.on_share * constants.class_weight(label);
  const A smooth = softmax.smooth_total * log_sum - softmax.smooth_dot;
  const A loss = math::cross_entropy(on_target, smooth, softmax.target_shifted, log_sum);
  const A outer = upstream * constants.scale;
  const A factor = pixel_weight * outer;
  return {pixel_weight * loss, loss * outer,
          factor * (on_target + softmax.smooth_total) * inverse(softmax.sum), factor * on_target,
          factor};
}

// The upstream gradient of each pixel; the scalar one is part of Constants::scale.
template <class Params>
SEGUNC_DEVICE const void* upstream_map(const Params& p) {
  return p.upstream_is_scalar ? nullptr : p.upstream;
}

// Logits, in place, to exponentials, with their terms. target_shifted is the caller's.
template <int K, int V, class A, class Owner>
SEGUNC_DEVICE void softmax_in_place(const Constants<A>& constants, const Owner& owner,
                                    const A (&maximum)[V], A (&value)[K][V],
                                    SoftmaxTerms<A> (&softmax)[V]) {
#pragma unroll
  for (int j = 0; j < V; j++) {
    softmax[j].sum = softmax[j].smooth_total = softmax[j].smooth_dot = A(0);
  }
  if (constants.smooths()) {
#pragma unroll
    for (int i = 0; i < K; i++) {
      if (i < owner.owned) {
        const A b = constants.smoothing(owner.class_of(i));
#pragma unroll
        for (int j = 0; j < V; j++) {
          softmax[j].smooth_total += b;
          softmax[j].smooth_dot += b * (value[i][j] - maximum[j]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < V; j++) {
      softmax[j].smooth_total = owner.sum(softmax[j].smooth_total);
      softmax[j].smooth_dot = owner.sum(softmax[j].smooth_dot);
    }
  }
#pragma unroll
  for (int i = 0; i < K; i++) {
#pragma unroll
    for (int j = 0; j < V; j++) {
      value[i][j] = math::exp_nonpositive(value[i][j] - maximum[j]);
      softmax[j].sum += value[i][j];
    }
  }
#pragma unroll
  for (int j = 0; j < V; j++) softmax[j].sum = owner.sum(softmax[j].sum);
}

// The gradient of a class whose share of the target is t_c. At an ignored pixel the slope is 0, and
// the bound keeps a NaN from surviving that; at a valid one the slope is then NaN as well.
template <class A>
SEGUNC_DEVICE A logit_gradient(const PixelTerms<A>& terms, A exponential, A t_c) {
  const A bounded = exponential < A(1) ? exponential : A(1);
  return math::cross_entropy_derivative(bounded, terms.slope, t_c);
}
template <class A>
SEGUNC_DEVICE A target_share(const PixelTerms<A>& terms, int label, int c, A b) {
  return (c == label ? terms.on_target : A(0)) + terms.factor * b;
}

template <class Params>
SEGUNC_DEVICE void store_partial(const Params& p, double sum) {
  if (p.partial) {
    sum = block_sum(sum);
    if (thread() == 0) p.partial[block_index()] = sum;
  }
}

}  // namespace segunc::device
