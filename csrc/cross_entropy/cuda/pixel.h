// A pixel's cross-entropy, as kernels of every traversal compute it: label and factors in, loss and
// the logits' gradient out. What a pixel's loss is changes here, not in the traversals (stored.cu,
// interpolated.cu).
#pragma once
#include "../../common/device/labels.h"
#include "../../common/device/softmax.h"
#include "../../common/device/work.h"
#include "../../math/cross_entropy.h"
#include "../params.h"

namespace segunc::cuda {

using namespace device;
using math::SoftmaxTerms;

// Divided on the host: doubles are slow on a GPU.
using TargetShares = math::TargetShares<double>;

inline TargetShares target_shares(const CrossEntropyParams& p) {
  return math::target_shares(p.label_smoothing, p.map.classes);
}

struct LossWork : Work {
  TargetShares shares;
};

inline LossWork make_loss_work(const CrossEntropyParams& p, int64_t images, int64_t pixels,
                               int64_t tile, int64_t max_blocks) {
  return {make_work(images, pixels, tile, max_blocks), target_shares(p)};
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
  math::TargetShares<A> shares;
  A scale;  // of every gradient: the scalar upstream gradient by the normalizer

  SEGUNC_DEVICE Constants(const CrossEntropyParams& p, const TargetShares& shares)
      : weight(static_cast<const A*>(p.weight)), shares{A(shares.on), A(shares.off)}, scale(A(1)) {
    if (p.upstream_is_scalar && p.upstream) scale = *static_cast<const A*>(p.upstream);
    if (p.normalizer) scale *= inverse(A(*p.normalizer));
  }
  SEGUNC_DEVICE A class_weight(int c) const { return weight ? load_read_only(weight + c) : A(1); }
  SEGUNC_DEVICE bool smooths() const { return shares.smooths(); }
  SEGUNC_DEVICE A on_target(int label) const { return shares.on_target(class_weight(label)); }  // a
  // report: rare
  SEGUNC_DEVICE A smoothing(int c) const { return shares.smoothing(class_weight(c)); }  // b_c
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
  const A on_target = constants.on_target(label);
  const auto weighted = math::weighted(math::cross_entropy(on_target, softmax), pixel_weight,
                                       upstream * constants.scale);
  const A total = on_target + softmax.smooth_total;
  return {weighted.loss, weighted.weight_gradient, weighted.factor * total * inverse(softmax.sum),
          weighted.factor * on_target, weighted.factor};
}

// The upstream gradient of each pixel; the scalar one is part of Constants::scale.
SEGUNC_DEVICE const void* upstream_map(const CrossEntropyParams& p) {
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
    // report: begin rare
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
    // report: end
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

SEGUNC_DEVICE void store_partial(const CrossEntropyParams& p, double sum) {
  if (p.partial) {
    sum = block_sum(sum);
    if (thread() == 0) p.partial[block_index()] = sum;
  }
}

}  // namespace segunc::cuda
