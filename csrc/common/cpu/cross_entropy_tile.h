// Cross-entropy of a tile of pixels whose logits are rows in scratch memory (tile.h), for every
// loss that makes such a tile:
//   value     l = a (log s - d_y) + sum_c b_c (log s - d_c),   d = z - max z,  s = sum_c exp d_c
//   gradient  k (total / s * exp d_c - t_c),   t_c = a [c = y] + b_c,  total = sum_c t_c
// Params has the pointers of CrossEntropyParams; `at` is the index of the tile's first pixel in the
// target.
#pragma once
#include "../../math/cross_entropy.h"
#include "exponentials.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace tiles {

// What a tile of pixels holds beside its logits.
template <class A, int T>
struct Pixels {
  alignas(kAlignment) int32_t label[T];  // 0 where ignored
  alignas(kAlignment) int32_t valid[T];  // all bits where the pixel counts, else 0
  alignas(kAlignment) A on_target[T];    // a, as above
  alignas(kAlignment) A weight[T];       // the pixel weight
  alignas(kAlignment) A upstream[T];     // upstream gradient times the call's scale
  alignas(kAlignment) A maximum[T], sum[T], target_shifted[T], smooth[T], slope[T];
};

// What all pixels of a call share.
template <class A>
struct Targets {
  const A* class_weight;
  A keep, spread, spread_total;  // 1 - e, e / C, sum_c b_c
  A scale;                       // of the gradient: 1 / normalizer, times an upstream scalar

  template <class Params>
  SEGUNC_HD explicit Targets(const Params& p)
      : class_weight(static_cast<const A*>(p.weight)),
        keep(A(1 - p.label_smoothing)),
        spread(A(p.label_smoothing / double(p.map.classes))),
        spread_total(0) {
    if (spread > A(0))
      for (int64_t c = 0; c < p.map.classes; ++c) spread_total += spread_of(int(c));
    double factor = p.normalizer ? 1 / *p.normalizer : 1;
    if (p.upstream && p.upstream_is_scalar) factor *= double(*static_cast<const A*>(p.upstream));
    scale = A(factor);
  }

  // b_c
  SEGUNC_HD A spread_of(int c) const { return class_weight ? spread * class_weight[c] : spread; }
};

template <class A>
SEGUNC_HD A where_valid(int32_t valid, A v) {
  return valid ? v : A(0);
}

// NaN at an ignored pixel must not survive, so the bits are cleared instead of multiplied.
SEGUNC_HD float clear_unless(int32_t valid, float v) {
  return bit_cast<float>(bit_cast<int32_t>(v) & valid);
}
SEGUNC_HD double clear_unless(int32_t valid, double v) {
  return bit_cast<double>(bit_cast<int64_t>(v) & int64_t(valid));
}

// Returns whether every valid target is a class.
template <class Y, class Params, class A, int T>
SEGUNC_HD bool read_labels(const Params& p, const Targets<A>& targets, int64_t at, int n,
                           Pixels<A, T>& px) {
  const Y* __restrict target = static_cast<const Y*>(p.target) + at;
  const int64_t classes = p.map.classes;
  int32_t outside = 0;
  for (int j = 0; j < n; ++j) {
    const int64_t y = int64_t(target[j]);
    const int32_t valid = -int32_t(y != p.ignore_index);
    const int32_t inside = -int32_t(y >= 0 && y < classes);
    outside |= valid & ~inside;
    px.valid[j] = valid;
    px.label[j] = int32_t(y) & valid & inside;
  }
  const A* __restrict weight = targets.class_weight;
  if (weight)
    for (int j = 0; j < n; ++j) px.on_target[j] = targets.keep * weight[px.label[j]];
  else
    for (int j = 0; j < n; ++j) px.on_target[j] = targets.keep;
  return outside == 0;
}

inline void record_bad_target(int64_t* first, int64_t pixel) {
  int64_t seen = __atomic_load_n(first, __ATOMIC_RELAXED);
  while (pixel < seen && !__atomic_compare_exchange_n(first, &seen, pixel, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
}

template <class Y, class Params>
void find_bad_target(const Params& p, int64_t at, int n) {
  const Y* target = static_cast<const Y*>(p.target) + at;
  for (int j = 0; j < n; ++j) {
    const int64_t y = int64_t(target[j]);
    if (y != p.ignore_index && (y < 0 || y >= p.map.classes))
      return record_bad_target(p.bad_target, at + j);
  }
}

// Targets, weights and upstream gradients of n pixels.
template <class Params, class A, int T>
SEGUNC_HD void read_pixels(const Params& p, const Targets<A>& targets, int64_t at, int n,
                           Pixels<A, T>& px) {
  with_index_type(p.target_type, [&](auto y) __attribute__((always_inline)) {
    using Y = decltype(y);
    if (!read_labels<Y>(p, targets, at, n, px)) find_bad_target<Y>(p, at, n);
    prefetch(static_cast<const Y*>(p.target) + at + T, T * int(sizeof(Y)));
  });
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
  if (targets.spread > A(0))
    for (int c = 0; c < C; ++c) {
      const A b = targets.spread_of(c);
      for (int j = 0; j < n; ++j) px.smooth[j] += b * (tile[c * T + j] - px.maximum[j]);
    }
}

// Of the sums of exponentials: writes the losses and the gradients of the pixel weights, as far as
// they are wanted, adds the losses to `lane`, and readies px.slope for the gradient.
template <class Params, class A, int T, class Lane>
SEGUNC_HD void write_losses(const Params& p, const Targets<A>& targets, int64_t at, int n,
                            Pixels<A, T>& px, Lane* __restrict lane) {
  A* __restrict loss = static_cast<A*>(p.loss);
  A* __restrict grad_weight = static_cast<A*>(p.grad_pixel_weight);
  for (int j = 0; j < n; ++j) {
    const A log_sum = math::log_positive(px.sum[j]);
    const A smooth = targets.spread_total * log_sum - px.smooth[j];
    const A value = math::cross_entropy(px.on_target[j], smooth, px.target_shifted[j], log_sum);
    const A weighted = where_valid(px.valid[j], px.weight[j] * value);
    lane[j] += Lane(weighted);
    px.slope[j] = px.weight[j] * px.upstream[j];
    if (loss) loss[at + j] = weighted;
    if (grad_weight) grad_weight[at + j] = where_valid(px.valid[j], value * px.upstream[j]);
  }
}

// Takes the target's term off the tile of exponentials, as a / total * s of its exponential. The
// gradient of pixel j in class c is then clear_unless(px.valid[j], v) with
//   v = tile[c * T + j] * px.sum[j] - px.slope[j] * b_c.
template <class A, int T>
SEGUNC_HD void take_targets_off(const Targets<A>& targets, int C, int n, A* __restrict tile,
                                Pixels<A, T>& px) {
  for (int j = 0; j < n; ++j) {
    const A total = px.on_target[j] + targets.spread_total;
    px.maximum[j] = total != A(0) ? px.on_target[j] / total * px.sum[j] : A(0);
    px.sum[j] = px.slope[j] * (total / px.sum[j]);
  }
  if (C <= kFewClasses)
    for (int j = 0; j < n; j += kLanes<A>) {
      const IndexPack<A> label = load_indices<A>(px.label + j);
      const Pack<A> part = load_pack(px.maximum + j);
      for (int c = 0; c < C; ++c) {
        A* const row = tile + c * T + j;
        store_pack(row, load_pack(row) - (label == c ? part : Pack<A>{}));
      }
    }
  else
    for (int j = 0; j < n; ++j) tile[px.label[j] * T + j] -= px.maximum[j];
}

}  // namespace tiles
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
