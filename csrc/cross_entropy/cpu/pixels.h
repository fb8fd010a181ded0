// Cross-entropy of a tile of pixels whose logits are rows in scratch memory (tile.h): the algebra
// of math/cross_entropy.h, a loop over pixels each. What a pixel's loss is changes here, not in the
// traversals (stored.cpp, interpolated.cpp). `at` is the index of the tile's first pixel in the
// target.
#pragma once
#include <limits>
#include <type_traits>

#include "../../common/cpu/class_indices.h"
#include "../../common/cpu/exponentials.h"
#include "../../common/cpu/philox.h"
#include "../../math/cross_entropy.h"
#include "../params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace tiles {

// What a tile of pixels holds beside its logits.
template <class A, int T>
struct Pixels {
  alignas(kAlignment) int32_t label[T];  // 0 where ignored
  alignas(kAlignment) int32_t valid[T];  // all bits where the pixel counts, else 0
  alignas(kAlignment) A on_target[T];    // a
  alignas(kAlignment) A weight[T];       // the pixel weight
  alignas(kAlignment) A upstream[T];     // upstream gradient times the call's scale
  alignas(kAlignment) A maximum[T], sum[T], target_shifted[T];
  alignas(kAlignment) A smooth[T];            // sum_c b_c d_c
  alignas(kAlignment) A modulation[T];        // m, where there is one
  alignas(kAlignment) A factor[T], slope[T];  // of the gradient
  alignas(kAlignment) A target_exponential[T];
};

// What all pixels of a call share.
template <class A>
struct Targets {
  const A* class_weight;
  math::TargetShares<A> shares;
  A smooth_total = 0;  // sum_c b_c
  A scale;             // of the gradient: 1 / normalizer, times an upstream scalar
  Modulation modulation;
  const A* offset;  // of the adjustment
  A logit_scale;
  bool offset_on_target;
  NoiseKind noise;
  A sigma;
  uint64_t seed = 0;

  SEGUNC_HD explicit Targets(const CrossEntropyParams& p)
      : class_weight(static_cast<const A*>(p.weight)),
        modulation(p.modulation),
        offset(static_cast<const A*>(p.adjustment.offset)),
        logit_scale(offset ? A(p.adjustment.scale) : A(1)),
        offset_on_target(p.adjustment.on_target),
        noise(p.adjustment.noise),
        sigma(A(p.adjustment.sigma)) {
    if (noise != NoiseKind::none) seed = uint64_t(*p.adjustment.seed);
    const auto exact = math::target_shares(p.label_smoothing, p.map.classes);
    shares = {A(exact.on), A(exact.off)};
    if (shares.smooths())
      for (int64_t c = 0; c < p.map.classes; ++c) smooth_total += smoothing(int(c));
    double factor = p.normalizer ? 1 / *p.normalizer : 1;
    if (p.upstream && p.upstream_is_scalar) factor *= double(*static_cast<const A*>(p.upstream));
    scale = A(factor);
  }

  // b_c
  SEGUNC_HD A smoothing(int c) const {
    return class_weight ? shares.smoothing(class_weight[c]) : shares.off;
  }
};

// Targets, weights and upstream gradients of n pixels.
template <class A, int T>
SEGUNC_HD void read_pixels(const CrossEntropyParams& p, const Targets<A>& targets, int64_t at,
                           int n, Pixels<A, T>& px) {
  with_index_type(p.target_type, [&](auto y) __attribute__((always_inline)) {
    using Y = decltype(y);
    if (!read_labels<Y>(p.target, at, n, p.map.classes, p.ignore_index, px.label, px.valid))
      record_bad_class<Y>(p.target, at, n, p.map.classes, p.ignore_index, p.bad_target);
    prefetch(static_cast<const Y*>(p.target) + at + T, T * int(sizeof(Y)));
  });
  const A* __restrict class_weight = targets.class_weight;
  if (class_weight)
    for (int j = 0; j < n; ++j)
      px.on_target[j] = targets.shares.on_target(class_weight[px.label[j]]);
  else
    for (int j = 0; j < n; ++j) px.on_target[j] = targets.shares.on;
  const A* __restrict weight = static_cast<const A*>(p.pixel_weight);
  const A* __restrict upstream = static_cast<const A*>(p.upstream);
  for (int j = 0; j < n; ++j) px.weight[j] = weight ? weight[at + j] : A(1);
  if (weight) prefetch(weight + at + T, T * int(sizeof(A)));
  if (upstream && !p.upstream_is_scalar)
    for (int j = 0; j < n; ++j) px.upstream[j] = upstream[at + j] * targets.scale;
  else
    for (int j = 0; j < n; ++j) px.upstream[j] = targets.scale;
}

template <class A>
struct Sum {
  A* sums;  // [T]
  Pack<A> sum = {};

  SEGUNC_HD void add(Pack<A> e, Pack<A>) { sum += e; }
  SEGUNC_HD void store(int j) const { store_pack(sums + j, sum); }
};

// Adds offset_c |delta| to the logits of a tile, and makes their maximum.
template <NoiseKind kind, class A, int T>
SEGUNC_HD void add_noise(const Targets<A>& targets, int64_t at, int C, int n, A* __restrict tile,
                         Pixels<A, T>& px) {
  constexpr int kWords = 4;
  alignas(kAlignment) uint32_t words[kWords][T];
  // The row beside a last class that has none.
  alignas(kAlignment) A unpaired[T];
  for (int j = 0; j < n; ++j) unpaired[j] = -std::numeric_limits<A>::infinity();
  for (int first = 0; first < C; first += kWords) {
    draw_words(at, uint32_t(first / kWords), 0, targets.seed, words);
    for (int k = 0; k < kWords && first + k < C; k += 2) {
      const int c = first + k;
      const bool paired = c + 1 < C;
      A* __restrict row = tile + c * T;
      A* __restrict next = paired ? row + T : unpaired;
      const A offset = targets.offset[c], next_offset = paired ? targets.offset[c + 1] : A(0);
      for (int j = 0; j < n; ++j) {
        const auto noise = math::noise_of(kind, targets.sigma, words[k][j], words[k + 1][j]);
        row[j] += offset * noise.first;
        next[j] += next_offset * noise.second;
        px.maximum[j] = maximum_of(px.maximum[j], maximum_of(row[j], next[j]));
      }
    }
  }
}

// Scales the logits of a tile and adds the offsets of their classes, or of the labelled one alone,
// and makes their maximum.
template <bool kOnTarget, class A, int T>
SEGUNC_HD void add_offsets(const Targets<A>& targets, int C, int n, A* tile, Pixels<A, T>& px) {
  const Pack<A> scale = Pack<A>{} + targets.logit_scale;
  for (int j = 0; j < n; j += kLanes<A>) {
    const IndexPack<A> label = load_indices<A>(px.label + j);
    Pack<A> maximum = load_pack(px.maximum + j);
    for (int c = 0; c < C; ++c) {
      Pack<A> offset = Pack<A>{} + targets.offset[c];
      if (kOnTarget) offset = label == c ? offset : Pack<A>{};
      const Pack<A> v = load_pack(tile + c * T + j) * scale + offset;
      store_pack(tile + c * T + j, v);
      maximum = v > maximum ? v : maximum;
    }
    store_pack(px.maximum + j, maximum);
  }
}

// Logits of a tile to those that the loss is of, and their maximum. Out of line, as what only some
// losses need: compiled for each type of the logits it would be half of the time that they take.
template <class A, int T>
[[gnu::noinline]] void adjust_logits(const Targets<A>& targets, int64_t at, int C, int n,
                                     A* __restrict tile, Pixels<A, T>& px) {
  for (int j = 0; j < n; ++j) px.maximum[j] = -std::numeric_limits<A>::infinity();
  if (targets.noise == NoiseKind::normal)
    return add_noise<NoiseKind::normal>(targets, at, C, n, tile, px);
  if (targets.noise == NoiseKind::uniform)
    return add_noise<NoiseKind::uniform>(targets, at, C, n, tile, px);
  if (targets.offset_on_target)
    add_offsets<true>(targets, C, n, tile, px);
  else
    add_offsets<false>(targets, C, n, tile, px);
}

// What is needed of the logits of a tile before they become exponentials: the target's and, where
// labels are smoothed, sum_c b_c d_c.
template <class A, int T>
SEGUNC_HD void read_logits(const Targets<A>& targets, int C, int n, const A* __restrict tile,
                           Pixels<A, T>& px) {
  if (C <= kFewClasses)
    for (int j = 0; j < n; j += kLanes<A>) {
      const Pack<A> logit = choose<T>(C, tile + j, load_indices<A>(px.label + j));
      store_pack(px.target_shifted + j, logit - load_pack(px.maximum + j));
    }
  else
    for (int j = 0; j < n; ++j) px.target_shifted[j] = tile[px.label[j] * T + j] - px.maximum[j];
  for (int j = 0; j < n; ++j) px.smooth[j] = A(0);
  if (targets.shares.smooths())
    for (int c = 0; c < C; ++c) {
      const A b = targets.smoothing(c);
      for (int j = 0; j < n; ++j) px.smooth[j] += b * (tile[c * T + j] - px.maximum[j]);
    }
}

// Calls run(kind) with the kind of modulation, known to the compiler.
template <class Run>
SEGUNC_HD void with_modulation(ModulationKind kind, Run&& run) {
  using K = ModulationKind;
  switch (kind) {
    case K::none:
      return run(std::integral_constant<K, K::none>{});
    case K::focal:
      return run(std::integral_constant<K, K::focal>{});
    case K::falling:
      return run(std::integral_constant<K, K::falling>{});
    case K::rising:
      return run(std::integral_constant<K, K::rising>{});
  }
}

// A pixel's cross-entropy, from log s.
template <class A, int T>
SEGUNC_HD A loss_of(const Targets<A>& targets, const Pixels<A, T>& px, int j, A log_sum) {
  const math::SoftmaxTerms<A> softmax{px.sum[j], px.target_shifted[j], targets.smooth_total,
                                      px.smooth[j]};
  return math::cross_entropy(px.on_target[j], softmax, log_sum);
}

// Writes a pixel's loss and the gradient of its weight, as far as they are wanted, adds the loss to
// `lane`, and readies px.factor.
template <class A, int T, class Lane>
SEGUNC_HD void write_loss(const CrossEntropyParams& p, const Targets<A>& targets, int64_t at, int j,
                          A value, Pixels<A, T>& px, Lane* __restrict lane) {
  A* __restrict loss = static_cast<A*>(p.loss);
  A* __restrict grad_weight = static_cast<A*>(p.grad_pixel_weight);
  const auto weighted = math::weighted(value, px.weight[j], px.upstream[j]);
  const A valid_loss = where_valid(px.valid[j], weighted.loss);
  lane[j] += Lane(valid_loss);
  px.factor[j] = weighted.factor * targets.logit_scale;
  if (loss) loss[at + j] = valid_loss;
  if (grad_weight) grad_weight[at + j] = where_valid(px.valid[j], weighted.weight_gradient);
}

// write_losses of a loss with a factor: px.on_target becomes m a - k. Out of line, as above.
template <class A, int T, class Lane>
[[gnu::noinline]] void write_modulated_losses(const CrossEntropyParams& p,
                                              const Targets<A>& targets, int64_t image, int64_t at,
                                              int n, Pixels<A, T>& px, Lane* __restrict lane) {
  const A* image_factor = static_cast<const A*>(targets.modulation.image_factor);
  if (image_factor) {
    image_factor += image * p.map.classes;
    for (int j = 0; j < n; ++j) px.modulation[j] = image_factor[px.label[j]];
  } else {
    for (int j = 0; j < n; ++j) px.modulation[j] = A(1);
  }
  const A rate = A(targets.modulation.rate), peak = A(targets.modulation.peak);
  const bool detached = targets.modulation.detached;
  alignas(kAlignment) A modulated_loss[T];
  with_modulation(targets.modulation.kind, [&](auto kind) __attribute__((always_inline)) {
    for (int j = 0; j < n; ++j) {
      const A log_sum = math::log_positive(px.sum[j]);
      const A value = loss_of(targets, px, j, log_sum);
      const A log_p = -math::negative_log_probability(px.target_shifted[j], log_sum);
      const auto modulated = math::modulated(kind(), log_p, rate, peak, detached);
      const A pull = px.modulation[j] * math::modulation_pull(value, modulated.slope);
      px.modulation[j] *= modulated.factor;
      px.on_target[j] = px.modulation[j] * px.on_target[j] - pull;
      modulated_loss[j] = px.modulation[j] * value;
    }
  });
  // Apart: a loop that also has what is written if wanted is not vectorised.
  for (int j = 0; j < n; ++j) write_loss(p, targets, at, j, modulated_loss[j], px, lane);
}

// Of the sums of exponentials: writes the losses and the gradients of the pixel weights, as far as
// they are wanted, adds the losses to `lane`, and readies px.factor for the gradient.
template <class A, int T, class Lane>
SEGUNC_HD void write_losses(const CrossEntropyParams& p, const Targets<A>& targets, int64_t image,
                            int64_t at, int n, Pixels<A, T>& px, Lane* __restrict lane) {
  if (targets.modulation.used()) return write_modulated_losses(p, targets, image, at, n, px, lane);
  for (int j = 0; j < n; ++j) {
    const A value = loss_of(targets, px, j, math::log_positive(px.sum[j]));
    write_loss(p, targets, at, j, value, px, lane);
  }
}

// Takes the target's term off the tile of exponentials, and readies px.slope. The gradient of pixel
// j in class c is then clear_unless(px.valid[j], v) with
//   v = cross_entropy_derivative(tile[c * T + j], px.slope[j], px.factor[j], b_c).
template <class A, int T>
SEGUNC_HD void take_targets_off(const Targets<A>& targets, int C, int n, A* __restrict tile,
                                Pixels<A, T>& px) {
  const bool spreads = targets.modulation.used() && targets.shares.smooths();
  for (int j = 0; j < n; ++j) {
    const A spread = spreads ? px.modulation[j] : A(1);
    const A total = px.on_target[j] + spread * targets.smooth_total;
    px.target_exponential[j] = math::target_exponential(px.on_target[j], total, px.sum[j]);
    px.slope[j] = px.factor[j] * (total / px.sum[j]);
  }
  if (spreads)
    for (int j = 0; j < n; ++j) px.factor[j] *= px.modulation[j];
  if (C <= kFewClasses)
    for (int j = 0; j < n; j += kLanes<A>) {
      const IndexPack<A> label = load_indices<A>(px.label + j);
      const Pack<A> part = load_pack(px.target_exponential + j);
      for (int c = 0; c < C; ++c) {
        A* const row = tile + c * T + j;
        store_pack(row, load_pack(row) - (label == c ? part : Pack<A>{}));
      }
    }
  else
    for (int j = 0; j < n; ++j) tile[px.label[j] * T + j] -= px.target_exponential[j];
}

}  // namespace tiles
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
