// A logit's part of Dice and binary cross-entropy of regions (math/binary.h).
#pragma once
#include "../../common/bad_target.h"
#include "../../common/device/labels.h"
#include "../../common/device/softmax.h"
#include "../../common/device/work.h"
#include "../../math/binary.h"
#include "../../math/dice.h"
#include "policy.h"

namespace segunc::cuda {

template <class Y>
SEGUNC_DEVICE int binary_label(Y y) {
  return y == Y(1) ? 1 : y == Y(0) ? 0 : kOutOfRange;
}

// What compares as the number that is stored.
template <class Y>
SEGUNC_DEVICE auto to_number(Y y) {
  if constexpr (std::is_same_v<Y, bfloat16> || std::is_same_v<Y, float16>) {
    return to_accumulate(y);
  } else {
    return y;
  }
}

// Calls run(Y()) with the type of the targets.
template <class Run>
SEGUNC_DEVICE auto with_binary_type(BinaryType type, Run run) {
  switch (type) {
    case BinaryType::i64:
      return run(int64_t());
    case BinaryType::i32:
      return run(int32_t());
    case BinaryType::i16:
      return run(int16_t());
    case BinaryType::f64:
      return run(double());
    case BinaryType::f32:
      return run(float());
    case BinaryType::bf16:
      return run(bfloat16());
    case BinaryType::f16:
      return run(float16());
    default:
      return run(uint8_t());
  }
}

// Element i of the targets: 0, 1 or kOutOfRange.
SEGUNC_DEVICE int load_binary_label(const void* data, BinaryType type, int64_t i) {
  return with_binary_type(type, [&](auto y) {
    return binary_label(to_number(static_cast<const decltype(y)*>(data)[i]));
  });
}

// The targets of a pixel.
struct RegionTargets {
  const void* data;
  BinaryType type;
  int64_t first, stride;  // of region 0, from one region to the next

  SEGUNC_DEVICE RegionTargets(const DiceBceParams& p, int64_t image, int64_t pixel)
      : data(p.target),
        type(p.target_type),
        first(image * p.target_stride + pixel),
        stride(p.map.pixels) {}
  SEGUNC_DEVICE int of(int64_t c) const {
    return load_binary_label(data, type, first + c * stride);
  }
};

// index: of a pixel among all.
SEGUNC_DEVICE bool counts_pixel(const DiceBceParams& p, int64_t index) {
  return !p.mask || p.mask[index];
}

template <class A>
SEGUNC_DEVICE math::Sigmoids<A> sigmoids_of(A logit) {
  const A e = math::exp_nonpositive(math::minus_magnitude(logit));
  return {e, inverse(A(1) + e)};
}

template <class A>
SEGUNC_DEVICE A label_weight(const DiceBceParams& p, int64_t c, int label) {
  const A* const weight = static_cast<const A*>(p.pos_weight);
  return weight && label == 1 ? load_read_only(weight + c) : A(1);
}

// Without the pixel's weight.
template <class A>
SEGUNC_DEVICE A cross_entropy_of(const math::Sigmoids<A>& sigmoids, A logit, int label, A weight) {
  const A sum = A(1) + sigmoids.exponential;
  const A t = label == 1 ? logit : -logit;
  return weight * (math::surprise_without_log(sigmoids, sum, t) + log_of_sum(sum));
}

}  // namespace segunc::cuda
