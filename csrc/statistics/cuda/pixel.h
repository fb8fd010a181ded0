// A pixel's statistics, held by the threads that own its classes.
#pragma once
#include <cmath>

#include "../../common/device/warp_team.h"
#include "../../math/moments.h"
#include "../params.h"

namespace segunc::cuda::statistics {

using namespace device;

// 1 / sum times an exponential, rounded: fused into the sums of squares below, it would leave a
// residue of its rounding there, and equal samples would have a deviation.
SEGUNC_DEVICE float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
SEGUNC_DEVICE double rounded_product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// What a thread keeps of V pixels over the samples.
template <int K, int V>
struct Moments {
  float mean[K][V], squared_deviations[K][V];
  float entropy_sum[V];
};

// 1 / n, exactly 1 of the first sample: else its deviation from its own mean would not be 0.
SEGUNC_DEVICE float inverse_of_count(int n) {
  const float x = float(n), estimate = reciprocal(x);
  return fmaf(estimate, fmaf(-x, estimate, 1.f), estimate);
}

// Takes the logits of one more sample. inverse_count: 1 / samples, this one included. Registers
// without a class have a logit of -infinity.
//
// Exponentials are powers of two, d = z log2 e - m log2 e, all of which the rounding of m log2 e
// multiplies by the same: neither a probability nor
//   H[p] = ln 2 (log2 sum_c 2^d_c - sum_c d_c 2^d_c / sum_c 2^d_c)
// changes with it. Beside the rounding of sums, a probability p is within 4 ulp, and 2^-23 |log2 p|
// of itself, and H within 2e-7, and 5e-7 of the larger of its two terms.
template <int K, int V, class Owner>
SEGUNC_DEVICE void add_sample(const Owner& owner, float inverse_count, float (&value)[K][V],
                              Moments<K, V>& moments) {
  constexpr float kNoMass = -150;  // the power is 0
  float maximum[V], inverse_sum[V];
  largest_logit(owner, value, maximum);
  bound_maximum(value, maximum);
#pragma unroll
  for (int j = 0; j < V; j++) {
    const float scaled = maximum[j] * kLog2E;
    float sum = 0, dot = 0;
#pragma unroll
    for (int i = 0; i < K; i++) {
      const float d = fmaf(value[i][j], kLog2E, -scaled);
      value[i][j] = power_of_two(d);
      sum += value[i][j];
      dot += value[i][j] * larger(d, kNoMass);  // 0 rather than 0 times infinity
    }
    sum = owner.sum(sum);
    dot = owner.sum(dot);
    inverse_sum[j] = inverse_of_sum(sum);
    moments.entropy_sum[j] +=
        kLn2 * math::softmax_entropy(binary_logarithm(sum), dot, inverse_sum[j]);
  }
#pragma unroll
  for (int i = 0; i < K; i++) {
#pragma unroll
    for (int j = 0; j < V; j++) {
      math::accumulate_moments(rounded_product(value[i][j], inverse_sum[j]), inverse_count,
                               moments.mean[i][j], moments.squared_deviations[i][j]);
    }
  }
}

// The most probable class, the lowest one of equals; class 0 where the means are NaN.
template <class A>
struct Prediction {
  A mean, squared_deviations;
  int label;

  // Of a higher class than those before.
  SEGUNC_DEVICE void consider_next(A other_mean, A other_squared_deviations, int other_label) {
    if (other_mean > mean) {
      mean = other_mean;
      squared_deviations = other_squared_deviations;
      label = other_label;
    }
  }
  SEGUNC_DEVICE void consider(A other_mean, A other_squared_deviations, int other_label) {
    if (other_mean > mean || (other_mean == mean && other_label < label)) {
      mean = other_mean;
      squared_deviations = other_squared_deviations;
      label = other_label;
    }
  }
};

template <class A>
struct PixelMaps {
  A confidence, std, entropy, expected_entropy, mutual_information;
};

// 1 / samples and 1 / (samples - 1), which is infinite for one sample. Divided on the host: a
// division has a call for rare cases.
template <class A>
struct InverseCounts {
  A all, all_but_one;

  explicit InverseCounts(int64_t count)
      : all(A(1.0 / double(count))), all_but_one(A(1.0 / double(count - 1))) {}
};

SEGUNC_DEVICE double square_root(double x) { return std::sqrt(x); }
using device::square_root;

// The variance of one sample is 0 times infinity. entropy_sum has met every sample: where one is
// NaN, so is everything, while the entropy of NaN means may be a sum of zeros.
template <class A>
SEGUNC_DEVICE PixelMaps<A> pixel_maps(A confidence, A squared_deviations, A entropy, A entropy_sum,
                                      const InverseCounts<A>& inverse) {
  const A expected = entropy_sum * inverse.all, information = entropy - expected;
  if (entropy_sum != entropy_sum) entropy = entropy_sum;
  return {confidence, square_root(squared_deviations * inverse.all_but_one), entropy, expected,
          information < A(0) ? A(0) : information};
}

template <class A>
SEGUNC_DEVICE void store_maps(const StatisticsMaps& maps, int64_t index, int64_t label,
                              const PixelMaps<A>& pixel) {
  maps.prediction[index] = label;
  static_cast<A*>(maps.confidence)[index] = pixel.confidence;
  static_cast<A*>(maps.std)[index] = pixel.std;
  static_cast<A*>(maps.entropy)[index] = pixel.entropy;
  static_cast<A*>(maps.expected_entropy)[index] = pixel.expected_entropy;
  static_cast<A*>(maps.mutual_information)[index] = pixel.mutual_information;
}

// p log2 p, 0 at p = 0.
SEGUNC_DEVICE float binary_entropy_term(float p) {
  return p * binary_logarithm(larger(p, 0x1p-126f));
}

// What the moments of pixel j come to; its prediction and maps are the same for the whole team.
// Registers without a class have a mean of 0, or NaN as the others.
template <int K, int V, class Owner>
SEGUNC_DEVICE PixelMaps<float> finish_pixel(const Owner& owner, const Moments<K, V>& moments, int j,
                                            const InverseCounts<float>& inverse, int& label) {
  Prediction<float> best{moments.mean[0][j], moments.squared_deviations[0][j], owner.class_of(0)};
  float bits = binary_entropy_term(best.mean);
#pragma unroll
  for (int i = 1; i < K; i++) {
    const float mean = moments.mean[i][j];
    bits += binary_entropy_term(mean);
    best.consider_next(mean, moments.squared_deviations[i][j], owner.class_of(i));
  }
  const float entropy = -kLn2 * owner.sum(bits);
  owner.choose(best);
  label = best.label;
  return pixel_maps(best.mean, best.squared_deviations, entropy, moments.entropy_sum[j], inverse);
}

// Owners that can also agree on a prediction.
struct Pixel : Alone {
  using Alone::Alone;
  SEGUNC_DEVICE bool leads() const { return true; }
  template <class A>
  SEGUNC_DEVICE void choose(Prediction<A>&) const {}
};
struct PixelWarps : WarpTeam {
  using WarpTeam::WarpTeam;
  template <class A>
  SEGUNC_DEVICE void choose(Prediction<A>& best) const {
    if (size == 1) return;
    tell(best.mean);
    int winner = 0;
    best.mean = of<A>(0);
    for (int i = 1; i < size; i++) {  // labels increase with parts
      const A mean = of<A>(i);
      if (mean > best.mean) {
        best.mean = mean;
        winner = i;
      }
    }
    tell(best.squared_deviations);
    best.squared_deviations = of<A>(winner);
    tell(best.label);
    best.label = of<int>(winner);
  }
};
struct PixelTeam : Team {
  using Team::Team;
  template <class A>
  SEGUNC_DEVICE void choose(Prediction<A>& best) const {
    // report: trips log2(team)
    for (int distance = size / 2; distance > 0; distance /= 2) {
      const A mean = shuffle_xor(kFullMask, best.mean, distance);
      const A squared_deviations = shuffle_xor(kFullMask, best.squared_deviations, distance);
      const int label = shuffle_xor(kFullMask, best.label, distance);
      best.consider(mean, squared_deviations, label);
    }
  }
};

template <int K, int V>
SEGUNC_DEVICE void clear(Moments<K, V>& moments) {
#pragma unroll
  for (int j = 0; j < V; j++) moments.entropy_sum[j] = 0;
#pragma unroll
  for (int i = 0; i < K; i++) {
#pragma unroll
    for (int j = 0; j < V; j++) moments.mean[i][j] = moments.squared_deviations[i][j] = 0;
  }
}

// The logits of V neighbouring pixels of a planar map, the first Least classes of which there
// always are; classes beyond the last have no mass.
template <int Least, int K, int V, class T>
SEGUNC_DEVICE void load_logits(const T* pixel, unsigned class_stride, int classes,
                               float (&value)[K][V]) {
  Vector<T, V> absent, raw[K];
#pragma unroll
  for (int j = 0; j < V; j++) absent[j] = from_accumulate<T>(-kInfinity<float>);
#pragma unroll
  for (int c = 0; c < K; c++) {
    const bool present = c < Least || c < classes;
    raw[c] = present ? load_vector<V>(pixel + product(c, class_stride)) : absent;
  }
#pragma unroll
  for (int c = 0; c < K; c++) {
#pragma unroll
    for (int j = 0; j < V; j++) value[c][j] = to_accumulate(raw[c][j]);
  }
}

}  // namespace segunc::cuda::statistics
