// What a pixel adds to the counts behind metrics. Sums are integers in units of 2^-24, the last bit
// of a float32 significand: any order of addition gives the same bits.
#pragma once
#include "exp_log.h"

namespace segunc {
// The histogram of uncertainties: 128 bins an octave from 2^-24 to 2^8, less falls into the first.
constexpr int kUncertaintyBins = 4096;

inline namespace SEGUNC_VARIANT {
namespace math {

constexpr int kFixedBits = 24;

// v in units of 2^-24, to the nearest, ties to even; |v| < 2^27, and below 2^7 if the result has 32
// bits.
template <class Integer = int64_t, class A>
SEGUNC_HD Integer to_fixed(A v) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(A) == sizeof(float) && sizeof(Integer) == sizeof(int32_t)) {
    return __float2int_rn(v * 0x1p24f);
  } else if constexpr (sizeof(A) == sizeof(float)) {
    return __float2ll_rn(v * 0x1p24f);
  } else {
    return Integer(__double2ll_rn(v * 0x1p24));
  }
#else
  constexpr double kRound = 0x1.8p52;  // adding it leaves the integer in the low bits
  return Integer(bit_cast<int64_t>(double(v) * 0x1p24 + kRound) - bit_cast<int64_t>(kRound));
#endif
}

// A probability up to rounding, that of bfloat16 included. NaN is none.
template <class A>
SEGUNC_HD bool is_confidence(A v) {
  return v >= A(0) && v <= A(1.0078125);
}

// Of `bins` equal bins (a, b] of [0, 1], the one that a confidence of `fixed` * 2^-24 falls into.
SEGUNC_HD uint32_t calibration_bin(uint32_t fixed, uint32_t bins) {
  constexpr uint32_t kBelowOne = (1u << kFixedBits) - 1;
  const uint32_t end = uint32_t((uint64_t(fixed) * bins + kBelowOne) >> kFixedBits);
  return (end < 1 ? 1 : end < bins ? end : bins) - 1;
}

// What can be summed: its fixed point has 32 bits. NaN cannot.
template <class A>
SEGUNC_HD bool is_uncertainty(A v) {
  return v >= A(0) && v <= A(256 - 0x1p-16);
}

// The leading bits of a float32, so that bins grow with their values.
SEGUNC_HD int uncertainty_bin(float v) {
  constexpr int kFirst = (127 - 24) << 23, kShift = 23 - 7;
  const int bin = (bit_cast<int32_t>(v + 0.f) - kFirst) >> kShift;  // -0 becomes 0
  return bin < 0 ? 0 : bin;
}

// -log p for any p >= 0, normal or not; infinite at 0, NaN below.
SEGUNC_HD float negative_log(float p) {
#ifdef __CUDA_ARCH__
  return -logf(p);
#else
  const bool tiny = p < 0x1p-126f;
  const float log = log_polynomial(tiny ? p * 0x1p32f : p) - (tiny ? 22.18070978f : 0.f);
  return p > 0.f ? -log : p == 0.f ? __builtin_inff() : __builtin_nanf("");
#endif
}
SEGUNC_HD double negative_log(double p) { return -::log(p); }

// What a pixel is judged by. NaN anywhere among its values gives NaN.
template <class A>
struct PixelScores {
  A confidence;    // the largest probability
  A brier;         // sum_c (p_c - [c = y])^2
  A negative_log;  // -log p_y
};

// Of p = softmax(z), from d_c = z_c - m with any m near max z: `others` = sum_{c != y} exp d_c,
// `squares` that of (exp d_c)^2, `shifted` = d_y, the sum of all exponentials as its inverse and
// its logarithm, and the largest of them. Nothing cancels where p_y is near 1.
template <class A>
SEGUNC_HD PixelScores<A> scores_of_logits(A others, A squares, A shifted, A largest, A inverse_sum,
                                          A log_sum) {
  return {largest * inverse_sum, (others * others + squares) * (inverse_sum * inverse_sum),
          log_sum - shifted};
}

// Of probabilities: `others` = sum_{c != y} p_c, `squares` that of p_c^2.
template <class A>
SEGUNC_HD PixelScores<A> scores_of_probabilities(A others, A squares, A target, A maximum) {
  const A nothing = (others + target) - (others + target), missing = A(1) - target;
  return {maximum + nothing, squares + missing * missing + nothing, negative_log(target) + nothing};
}

// Whether a pixel's scores can be summed: not those of NaN, nor of what is far from probabilities.
template <class A>
SEGUNC_HD bool has_scores(const PixelScores<A>& pixel) {
  return pixel.brier <= A(4) && pixel.negative_log >= A(-1);
}

// Beyond this a probability is 0 in every float type, and its pixel is counted apart.
template <class A>
SEGUNC_HD bool is_finite_likelihood(A negative_log) {
  return negative_log <= A(1024);
}

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
