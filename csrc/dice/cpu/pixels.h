// Dice and cross-entropy of a tile of pixels whose logits are rows in scratch memory (tile.h): the
// algebra of math/dice.h and math/cross_entropy.h, a loop over pixels each. `at` is the index of
// the tile's first pixel in the target.
#pragma once
#include <algorithm>
#include <type_traits>

#include "../../common/cpu/class_indices.h"
#include "../../common/cpu/exponentials.h"
#include "../../math/cross_entropy.h"
#include "../../math/dice.h"
#include "../params.h"
#include "masks.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace dice {

using namespace tiles;

// What a tile of pixels holds beside its logits.
template <class A, int T>
struct Pixels {
  alignas(kAlignment) int32_t label[T];  // 0 where ignored
  alignas(kAlignment) int32_t valid[T];  // all bits where the pixel counts, else 0
  alignas(kAlignment) A on_target[T];    // of the cross-entropy, as the next three
  alignas(kAlignment) A weight[T];
  alignas(kAlignment) A target_shifted[T];
  alignas(kAlignment) A smooth[T];  // sum_c s_c d_c
  alignas(kAlignment) A maximum[T], sum[T];
  alignas(kAlignment) A inverse[T];  // 1 / sum
  // Of the gradient (math/dice.h).
  alignas(kAlignment) A dot[T], factor[T], shift[T], on_label[T];
};

// Of the cross-entropy: what all pixels of a call share.
template <class A>
struct Shares {
  const A* class_weight;
  math::TargetShares<A> shares;
  A smooth_total = 0;  // sum_c s_c

  explicit Shares(const DiceParams& p) : class_weight(static_cast<const A*>(p.weight)) {
    const auto exact = math::target_shares(p.label_smoothing, p.map.classes);
    shares = {A(exact.on), A(exact.off)};
    if (shares.smooths())
      for (int64_t c = 0; c < p.map.classes; ++c) smooth_total += smoothing(int(c));
  }
  // s_c
  SEGUNC_HD A smoothing(int c) const {
    return class_weight ? shares.smoothing(class_weight[c]) : shares.off;
  }
};

// Targets and weights of n pixels; the lanes beyond them, of the last packs, count nothing.
template <class A, int T>
SEGUNC_HD void read_pixels(const DiceParams& p, const Shares<A>& shares, int64_t at, int n,
                           Pixels<A, T>& px) {
  with_index_type(p.target_type, [&](auto y) __attribute__((always_inline)) {
    using Y = decltype(y);
    if (!read_labels<Y>(p.target, at, n, p.map.classes, p.ignore_index, px.label, px.valid))
      record_bad_class<Y>(p.target, at, n, p.map.classes, p.ignore_index, p.bad_target);
    prefetch(static_cast<const Y*>(p.target) + at + T, T * int(sizeof(Y)));
  });
  for (int j = n; j % kStep<A>; ++j) px.valid[j] = px.label[j] = 0;
  const A* __restrict weight = static_cast<const A*>(p.pixel_weight);
  for (int j = 0; j < n; ++j) px.weight[j] = weight ? weight[at + j] : A(1);
  if (weight) prefetch(weight + at + T, T * int(sizeof(A)));
  if (shares.class_weight)
    for (int j = 0; j < n; ++j)
      px.on_target[j] = shares.shares.on_target(shares.class_weight[px.label[j]]);
  else
    for (int j = 0; j < n; ++j) px.on_target[j] = shares.shares.on;
}

// Of rows T apart those of the labels, for n pixels.
template <class A, int T>
SEGUNC_HD void choose_labelled(int C, int n, const A* __restrict tile, const Pixels<A, T>& px,
                               A* __restrict chosen) {
  if (C <= kFewClasses)
    for (int j = 0; j < n; j += kLanes<A>)
      store_pack(chosen + j, choose<T>(C, tile + j, load_indices<A>(px.label + j)));
  else
    for (int j = 0; j < n; ++j) chosen[j] = tile[px.label[j] * T + j];
}

// What the cross-entropy needs of the logits of a tile before they become exponentials.
template <class A, int T>
SEGUNC_HD void read_logits(const Shares<A>& shares, int C, int n, const A* __restrict tile,
                           Pixels<A, T>& px) {
  choose_labelled(C, n, tile, px, px.target_shifted);
  for (int j = 0; j < n; ++j) px.target_shifted[j] -= px.maximum[j];
  for (int j = 0; j < n; ++j) px.smooth[j] = A(0);
  if (shares.shares.smooths())
    for (int c = 0; c < C; ++c) {
      const A s = shares.smoothing(c);
      for (int j = 0; j < n; ++j) px.smooth[j] += s * (tile[c * T + j] - px.maximum[j]);
    }
}

// A pixel's cross-entropy, without its weight.
template <class A, int T>
SEGUNC_HD A cross_entropy_of(const Shares<A>& shares, const Pixels<A, T>& px, int j) {
  const math::SoftmaxTerms<A> softmax{px.sum[j], px.target_shifted[j], shares.smooth_total,
                                      px.smooth[j]};
  return math::cross_entropy(px.on_target[j], softmax, math::log_positive(px.sum[j]));
}

}  // namespace dice
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
