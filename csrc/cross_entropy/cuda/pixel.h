// A pixel's cross-entropy, as kernels of every traversal compute it: label and factors in, loss and
// the logits' gradient out. What a pixel's loss is changes here, not in the traversals (stored.cu,
// interpolated.cu).
#pragma once
#include <type_traits>

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

// What kernels know that a loss may have: a weighted target alone; smoothed labels, a factor or
// adjusted logits; or logits with noise as well. What it has not, they are spared the instructions
// and the registers of. Noise is drawn by kernels that take a class at a time: unrolled for every
// class of a thread's pixels it would be most of the library.
constexpr int kPlain = 0, kVaried = 1, kNoisy = 2;
template <int variation>
using Variation = std::integral_constant<int, variation>;

inline bool is_noisy(const CrossEntropyParams& p) { return p.adjustment.noise != NoiseKind::none; }
inline bool varies(const CrossEntropyParams& p) {
  return p.label_smoothing > 0 || p.modulation.used() || p.adjustment.offset;
}

struct LossWork : Work {
  TargetShares shares;
};

inline LossWork make_loss_work(const CrossEntropyParams& p, int64_t images, int64_t pixels,
                               int64_t tile, int64_t max_blocks) {
  return {make_work(images, pixels, tile, max_blocks), target_shares(p)};
}

// What is the same for every pixel.
template <class A>
struct Constants {
  const A* weight;
  math::TargetShares<A> shares;
  A scale;  // of every gradient: the scalar upstream gradient by the normalizer
  A logit_scale;

  SEGUNC_DEVICE Constants(const CrossEntropyParams& p, const TargetShares& shares)
      : weight(static_cast<const A*>(p.weight)),
        shares{A(shares.on), A(shares.off)},
        scale(A(1)),
        logit_scale(p.adjustment.offset ? A(p.adjustment.scale) : A(1)) {
    if (p.upstream_is_scalar && p.upstream) scale = *static_cast<const A*>(p.upstream);
    if (p.normalizer) scale *= inverse(A(*p.normalizer));
  }
  SEGUNC_DEVICE A class_weight(int c) const { return weight ? load_read_only(weight + c) : A(1); }
  SEGUNC_DEVICE bool smooths() const { return shares.smooths(); }
  SEGUNC_DEVICE bool may_smooth() const { return smooths(); }
  SEGUNC_DEVICE A on_target(int label) const { return shares.on_target(class_weight(label)); }  // a
  // report: rare
  SEGUNC_DEVICE A smoothing(int c) const { return shares.smoothing(class_weight(c)); }  // b_c
};

// Whether a launch may smooth labels, known to the compiler, and what falls to each class, which
// the block has computed beforehand.
template <class A, bool Smooths>
struct BlockSmoothing {
  const A* share;  // [C], in shared memory
  bool used;

  SEGUNC_DEVICE static constexpr bool may_smooth() { return Smooths; }
  SEGUNC_DEVICE bool smooths() const { return Smooths && used; }
  SEGUNC_DEVICE A smoothing(int c) const { return share[c]; }
};

// Of at most so many classes. The block takes part as a whole.
template <bool Smooths, int Most, class A>
SEGUNC_DEVICE BlockSmoothing<A, Smooths> block_smoothing(const Constants<A>& constants,
                                                         int classes) {
  if constexpr (Smooths) {
    SEGUNC_SHARED(share, A[Most]);
    for (int c = int(thread()); c < classes; c += int(block_size())) {
      share[c] = constants.smoothing(c);
    }
    barrier();
    return {share, constants.smooths()};
  }
  return {nullptr, false};
}

// |delta| of a class and a pixel, as its index in the target.
template <class A>
SEGUNC_DEVICE A noise_at(const Adjustment& adjustment, int64_t pixel, int c) {
  uint32_t words[4];
  math::words_of(pixel, c / 4, 0, uint64_t(load_read_only(adjustment.seed)), words);
  const bool upper = c & 2;
  const auto noise = math::noise_of(adjustment.noise, A(adjustment.sigma),
                                    upper ? words[2] : words[0], upper ? words[3] : words[1]);
  return c & 1 ? noise.second : noise.first;
}

// A logit to the one that the loss is of. pixel: for noise alone.
template <int variation, class A>
SEGUNC_DEVICE A adjusted(const Adjustment& adjustment, const Constants<A>& constants, A logit,
                         int c, int label, int64_t pixel = 0) {
  if constexpr (variation != kPlain) {
    if (!adjustment.offset) return logit;
    const A offset = load_read_only(static_cast<const A*>(adjustment.offset) + c);
    if (variation == kNoisy && adjustment.noise != NoiseKind::none) {
      return logit + offset * noise_at<A>(adjustment, pixel, c);
    }
    logit = constants.logit_scale * logit + (adjustment.on_target && c != label ? A(0) : offset);
  }
  return logit;
}

// Those of V pixels, as they are owned; without noise.
template <int variation, int K, int V, class A, class Owner>
SEGUNC_DEVICE void adjust_logits(const Adjustment& adjustment, const Constants<A>& constants,
                                 const Owner& owner, const int (&label)[V], A (&value)[K][V]) {
  if constexpr (variation != kPlain) {
    if (!adjustment.offset) return;
    // report: begin rare adjustment
    const A* const offsets = static_cast<const A*>(adjustment.offset);
    if (adjustment.on_target) {
      A of_label[V];
#pragma unroll
      for (int j = 0; j < V; j++)
        of_label[j] = load_read_only(offsets + (label[j] < 0 ? 0 : label[j]));
#pragma unroll
      for (int i = 0; i < K; i++) {
#pragma unroll
        for (int j = 0; j < V; j++) {
          const A offset = owner.class_of(i) == label[j] ? of_label[j] : A(0);
          value[i][j] = constants.logit_scale * value[i][j] + offset;
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < K; i++) {
        if (i >= owner.owned) continue;
        const A offset = load_read_only(offsets + owner.class_of(i));
#pragma unroll
        for (int j = 0; j < V; j++) value[i][j] = constants.logit_scale * value[i][j] + offset;
      }
    }
    // report: end
  }
}

// What is written for a pixel, and the factors of its logits' gradient
//   slope * exp d_c - on_target [c = y] - factor * b_c.
template <class A>
struct PixelTerms {
  A loss, weight_gradient;
  A slope, on_target, factor;
};

// Without branches on the label: neighbouring pixels are computed side by side.
template <int variation, class A>
SEGUNC_DEVICE PixelTerms<A> pixel_terms(const CrossEntropyParams& p, const Constants<A>& constants,
                                        int64_t image, int label, const SoftmaxTerms<A>& softmax,
                                        A pixel_weight, A upstream) {
  const bool valid = label >= 0;
  const A log_sum = log_of_sum(softmax.sum);
  A on_target = valid ? constants.on_target(label) : A(0);
  A loss = math::cross_entropy(on_target, softmax, log_sum);
  A spread = A(1);  // of what smoothing spreads
  if (variation != kPlain && p.modulation.used()) {
    // report: begin rare modulation
    const A log_p = -math::negative_log_probability(softmax.target_shifted, log_sum);
    const auto factors = math::modulated(p.modulation.kind, log_p, A(p.modulation.rate),
                                         A(p.modulation.peak), p.modulation.detached);
    const auto* const of_image = static_cast<const A*>(p.modulation.image_factor);
    A factor = A(1);
    if (of_image) {
      const int64_t row = product(int(image), unsigned(p.map.classes));
      factor = load_read_only(of_image + row + (valid ? label : 0));
    }
    const A pull = factor * math::modulation_pull(loss, factors.slope);
    spread = factor * factors.factor;
    on_target = spread * on_target - pull;
    loss *= spread;
    // report: end
  }
  const A total = constants.smooths() ? on_target + spread * softmax.smooth_total : on_target;
  const auto weighted = math::weighted(loss, pixel_weight, upstream * constants.scale);
  const A factor = variation == kPlain ? weighted.factor : weighted.factor * constants.logit_scale;
  const A slope = factor * total * inverse_of_sum(softmax.sum);
  const A nothing = label == kOutOfRange ? kNaN<A> : A(0);
  return {valid ? weighted.loss : nothing, valid ? weighted.weight_gradient : nothing,
          valid ? slope : nothing, valid ? factor * on_target : A(0),
          valid ? factor * spread : A(0)};
}

// The upstream gradient of each pixel; the scalar one is part of Constants::scale.
SEGUNC_DEVICE const void* upstream_map(const CrossEntropyParams& p) {
  return p.upstream_is_scalar ? nullptr : p.upstream;
}

// Logits, in place, to exponentials, with their terms. target_shifted is the labelled logit less
// the maximum, and becomes the logarithm of its exponential. Smoothing: Constants or
// BlockSmoothing.
template <int K, int V, class A, class Owner, class Smoothing>
SEGUNC_DEVICE void softmax_in_place(const Smoothing& labels, const Owner& owner, A (&maximum)[V],
                                    A (&value)[K][V], SoftmaxTerms<A> (&softmax)[V]) {
#pragma unroll
  for (int j = 0; j < V; j++) {
    softmax[j].sum = softmax[j].smooth_total = softmax[j].smooth_dot = A(0);
  }
  if (labels.smooths()) {
    // report: begin rare
#pragma unroll
    for (int i = 0; i < K; i++) {
      if (i < owner.owned) {
        const A b = labels.smoothing(owner.class_of(i));
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
  A moved[V];
  exponentials_in_place(value, maximum, moved);
#pragma unroll
  for (int j = 0; j < V; j++) {
    softmax[j].target_shifted += moved[j];
    if (labels.smooths()) softmax[j].smooth_dot += moved[j] * softmax[j].smooth_total;
#pragma unroll
    for (int i = 0; i < K; i++) softmax[j].sum += value[i][j];
    softmax[j].sum = owner.sum(softmax[j].sum);
  }
}

// The gradient of a class c, but for what the labelled one has beside.
template <class A, class Smoothing>
SEGUNC_DEVICE A logit_gradient(const Smoothing& labels, const PixelTerms<A>& terms, A exponential,
                               int c) {
  if (!labels.may_smooth()) return exponential * terms.slope;
  return math::cross_entropy_derivative(exponential, terms.slope,
                                        terms.factor * labels.smoothing(c));
}
// That of the labelled one, from its exponential.
template <class A, class Smoothing>
SEGUNC_DEVICE A target_gradient(const Smoothing& labels, const PixelTerms<A>& terms, A exponential,
                                int label) {
  return logit_gradient(labels, terms, exponential, label) - terms.on_target;
}

}  // namespace segunc::cuda
