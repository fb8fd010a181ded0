// The gradient of a tile of pixels (math/dice.h), for logits in memory and interpolated ones.
#pragma once
#include "pixels.h"
#include "slopes.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace dice {

using namespace tiles;

// Of a pixel's exponentials the sum, and that of a_c e_c, or of a_c e_c^2.
template <class A, bool kSquared>
struct Dots {
  A *sums, *dots;  // [T]
  const A* slope;  // a_c of the class that comes next
  Pack<A> sum = {}, dot = {};

  SEGUNC_HD void add(Pack<A> e, Pack<A>) {
    sum += e;
    dot += *slope++ * math::dice_mass(kSquared, e);
  }
  SEGUNC_HD void store(int j) const {
    store_pack(sums + j, sum);
    store_pack(dots + j, dot);
  }
};

// Logits of a tile, whose maximum is in px, to their gradient, which is 0 at pixels that do not
// count.
template <bool kSquared, class A, int T, class S, class N>
SEGUNC_HD void logits_to_gradients(const DiceParams& p, const Shares<A>& shares,
                                   const Slopes<A>& slopes, int C, int64_t at, N n,
                                   A* __restrict tile, const Ahead<S>& ahead, Pixels<A, T>& px) {
  A* __restrict grad_weight = static_cast<A*>(p.grad_pixel_weight);
  if (grad_weight) read_logits(shares, C, n, tile, px);
  const A *by_predicted = slopes.by_predicted(), *by_common = slopes.by_common();
  exponentials<T>(C, n, tile, px.maximum, ahead, Dots<A, kSquared>{px.sum, px.dot, by_predicted});
  alignas(kAlignment) A labelled[T];
  choose_labelled(C, n, tile, px, labelled);
  if (grad_weight)
    for (int j = 0; j < n; ++j)
      grad_weight[at + j] = keep(px.valid[j], cross_entropy_of(shares, px, j) * slopes.factor());
  for (int j = 0; j < n; ++j) {
    const A inverse = A(1) / px.sum[j];
    const A dot = kSquared ? A(2) * px.dot[j] * inverse * inverse : px.dot[j] * inverse;
    const A factor = px.weight[j] * slopes.factor();
    const auto terms = math::dice_terms(dot, by_common[px.label[j]], labelled[j] * inverse, factor,
                                        px.on_target[j], px.on_target[j] + shares.smooth_total);
    px.inverse[j] = inverse;
    px.factor[j] = factor;
    px.shift[j] = terms.shift;
    px.on_label[j] = keep(px.valid[j], terms.on_label);
  }
  for (int j = n; j % kStep<A>; ++j) px.on_label[j] = A(0);
  const bool smooths = shares.shares.smooths(), few = C <= kFewClasses;
  for (int c = 0; c < C; ++c) {
    const Pack<A> a = Pack<A>{} + by_predicted[c];
    const A s = smooths ? shares.smoothing(c) : A(0);
    for (int j = 0; j < n; j += kLanes<A>) {
      A* const row = tile + c * T + j;
      const Pack<A> probability = load_pack(row) * load_pack(px.inverse + j);
      Pack<A> v = math::dice_derivative(probability, math::dice_slope(kSquared, a, probability),
                                        load_pack(px.shift + j));
      if (smooths) v -= load_pack(px.factor + j) * s;
      v = keep_pack<A>(px.valid + j, v);
      if (few) v += load_indices<A>(px.label + j) == c ? load_pack(px.on_label + j) : Pack<A>{};
      store_pack(row, v);
    }
  }
  if (!few)
    for (int j = 0; j < n; ++j) tile[px.label[j] * T + j] += px.on_label[j];
}

}  // namespace dice
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
