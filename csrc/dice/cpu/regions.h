// Dice and binary cross-entropy of a row of pixels of one region: the algebra of math/binary.h and
// math/dice.h.
#pragma once
#include <type_traits>

#include "../../common/cpu/class_indices.h"
#include "../../common/cpu/tile.h"
#include "../../math/binary.h"
#include "../../math/dice.h"
#include "../params.h"
#include "masks.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace dice {

using namespace tiles;

// What a tile of pixels holds beside its logits; of the lanes beyond them, of the last packs, only
// that they do not count.
template <class A, int T>
struct RegionPixels {
  alignas(kAlignment) int32_t valid[T];  // all bits where the pixel counts, else 0
  alignas(kAlignment) A target[T];       // of a region
  alignas(kAlignment) A weight[T];       // of the cross-entropy
};

// Calls run(Y{}) with the type of the targets.
template <class Run>
SEGUNC_HD void with_binary_type(BinaryType type, Run&& run) {
  switch (type) {
    case BinaryType::i64:
      return run(int64_t{});
    case BinaryType::i32:
      return run(int32_t{});
    case BinaryType::i16:
      return run(int16_t{});
    case BinaryType::u8:
      return run(uint8_t{});
    case BinaryType::f64:
      return run(double{});
    case BinaryType::f32:
      return run(float{});
    case BinaryType::bf16:
      return run(bfloat16{});
    case BinaryType::f16:
      return run(float16{});
  }
}

// As it is compared.
template <class Y>
SEGUNC_HD auto number_of(Y y) {
  if constexpr (std::is_integral_v<Y>)
    return y;
  else
    return to_accumulate(y);
}

// at: the index of the tile's first pixel among all.
template <class A, int T>
SEGUNC_HD void read_pixels(const DiceBceParams& p, int64_t at, int n, RegionPixels<A, T>& px) {
  const bool* __restrict mask = p.mask;
  for (int j = 0; j < n; ++j) px.valid[j] = mask ? -int32_t(mask[at + j]) : -1;
  for (int j = n; j % kStep<A>; ++j) px.valid[j] = 0;
  const A* __restrict weight = static_cast<const A*>(p.pixel_weight);
  for (int j = 0; j < n; ++j) px.weight[j] = weight ? weight[at + j] : A(1);
}

// The targets of region c.
template <class A, int T>
void read_targets(const DiceBceParams& p, int64_t image, int c, int64_t pixel, int n,
                  RegionPixels<A, T>& px) {
  const int64_t row = c * p.map.pixels + pixel;
  with_binary_type(p.target_type, [&](auto y) __attribute__((always_inline)) {
    using Y = decltype(y);
    const Y* __restrict target = static_cast<const Y*>(p.target) + image * p.target_stride + row;
    int32_t outside = 0;
    for (int j = 0; j < n; ++j) {
      const auto v = number_of(target[j]);
      px.target[j] = v == 1 ? A(1) : A(0);
      outside |= v == 0 || v == 1 ? 0 : px.valid[j];
    }
    if (outside)
      for (int j = 0; j < n; ++j) {
        const auto v = number_of(target[j]);
        if (px.valid[j] && !(v == 0 || v == 1)) {
          record_lowest(image * p.map.classes * p.map.pixels + row + j, p.bad_target);
          return;
        }
      }
    prefetch(target + T, T * int(sizeof(Y)));
  });
}

// The logits of a tile as rows, a region each. Of full tiles in memory that needs no conversion a
// row is where it lies.
template <class S, int T>
class RegionRows {
 public:
  using A = accumulate_t<S>;

  explicit RegionRows(const DiceBceParams& p)
      : map_(p.map),
        data_(static_cast<const S*>(p.input)),
        is_planar_(map_.layout == Layout::planar),
        tile_(is_planar_ ? T : map_.classes * T) {}

  SEGUNC_HD void read(int64_t image, int64_t pixel, int n) {
    start_ = data_ + image * map_.image_stride + pixel;
    alignas(kAlignment) A unused[T];
    if (!is_planar_) read_tile<T>(map_, data_, image, pixel, n, tile_.get(), unused);
  }
  // n: as of for_tiles. Until the next row is asked for.
  template <class N>
  SEGUNC_HD const A* row(int c, N n) const {
    A* __restrict copy = tile_.get();
    if (!is_planar_) return copy + c * T;
    const S* __restrict from = start_ + c * map_.class_stride;
    if constexpr (std::is_same_v<S, A> && !std::is_same_v<N, int>) {
      return from;
    } else {
      for (int j = 0; j < n; ++j) copy[j] = to_accumulate(from[j]);
      return copy;
    }
  }
  // Of the tile that follows.
  SEGUNC_HD Ahead<S> ahead(int64_t image, int64_t pixel) const {
    return ahead_of(map_, data_, image, pixel + T);
  }

 private:
  const ClassMap& map_;
  const S* const data_;
  const bool is_planar_;
  const S* start_ = nullptr;
  Scratch<A> tile_;
};

// A pack of logits with their targets.
template <class A>
struct Region {
  Pack<A> logit;
  IndexPack<A> labelled;  // where the target is 1

  using Sigmoids = math::Sigmoids<Pack<A>>;

  SEGUNC_HD Sigmoids sigmoids() const {
    const Pack<A> e = math::exp_nonpositive(math::minus_magnitude(logit));
    return {e, 1.f / (e + 1.f)};
  }
  SEGUNC_HD Pack<A> towards_target() const { return labelled ? logit : -logit; }  // t
  // pos_weight: a number.
  SEGUNC_HD Pack<A> weight(A pos_weight) const {
    return labelled ? Pack<A>{} + pos_weight : Pack<A>{} + A(1);
  }
  SEGUNC_HD Pack<A> cross_entropy(const Sigmoids& sigmoids, A pos_weight) const {
    const Pack<A> sum = sigmoids.exponential + 1.f;
    const Pack<A> rest = math::surprise_without_log(sigmoids, sum, towards_target());
    return weight(pos_weight) * (rest + math::log_positive(sum));
  }
};
template <class A, int T>
SEGUNC_HD Region<A> region_of(const A* row, const RegionPixels<A, T>& px, int j) {
  return {load_anywhere(row + j), load_pack(px.target + j) > Pack<A>{}};
}

SEGUNC_HD float pos_weight_of(const float* weight, int c) { return weight ? weight[c] : 1.f; }
SEGUNC_HD double pos_weight_of(const double* weight, int c) { return weight ? weight[c] : 1.0; }

}  // namespace dice
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
