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
template <class A, int K, int V>
struct Moments {
  A mean[K][V], squared_deviations[K][V];
  A entropy_sum[V];
};

// Takes the logits of one more sample. inverse_count: 1 / samples, this one included.
template <class A, int K, int V, class Owner>
SEGUNC_DEVICE void add_sample(const Owner& owner, A inverse_count, A (&value)[K][V],
                              Moments<A, K, V>& moments) {
  A maximum[V], sum[V], dot[V], inverse_sum[V];
  largest_logit(owner, value, maximum);
#pragma unroll
  for (int j = 0; j < V; j++) sum[j] = dot[j] = A(0);
#pragma unroll
  for (int i = 0; i < K; i++) {
#pragma unroll
    for (int j = 0; j < V; j++) {
      const A d = value[i][j] - maximum[j];
      value[i][j] = math::exp_nonpositive(d);
      sum[j] += value[i][j];
      dot[j] += math::weighted_exponent(value[i][j], d);
    }
  }
#pragma unroll
  for (int j = 0; j < V; j++) {
    sum[j] = owner.sum(sum[j]);
    dot[j] = owner.sum(dot[j]);
    inverse_sum[j] = inverse(sum[j]);
    moments.entropy_sum[j] +=
        math::softmax_entropy(math::log_positive(sum[j]), dot[j], inverse_sum[j]);
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

// variance: squared deviations by count - 1, which is 0 / 0 for one sample. entropy_sum has met
// every sample: where one is NaN, so is everything, while the entropy of NaN means is a sum of
// zeros.
template <class A>
SEGUNC_DEVICE PixelMaps<A> pixel_maps(A confidence, A squared_deviations, A entropy, A entropy_sum,
                                      A count) {
  const A expected = entropy_sum / count, information = entropy - expected;
  if (entropy_sum != entropy_sum) entropy = entropy_sum;
  return {confidence, std::sqrt(squared_deviations / (count - A(1))), entropy, expected,
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

// What the moments of pixel j come to; its prediction and maps are the same for the whole team.
template <class A, int K, int V, class Owner>
SEGUNC_DEVICE PixelMaps<A> finish_pixel(const Owner& owner, const Moments<A, K, V>& moments, int j,
                                        A count, int& label) {
  Prediction<A> best{moments.mean[0][j], moments.squared_deviations[0][j], owner.class_of(0)};
  A entropy = math::entropy_term(best.mean);
#pragma unroll
  for (int i = 1; i < K; i++) {
    if (i < owner.owned) {
      const A mean = moments.mean[i][j];
      entropy += math::entropy_term(mean);
      best.consider(mean, moments.squared_deviations[i][j], owner.class_of(i));
    }
  }
  entropy = owner.sum(entropy);
  owner.choose(best);
  label = best.label;
  return pixel_maps(best.mean, best.squared_deviations, entropy, moments.entropy_sum[j], count);
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

template <class A, int K, int V>
SEGUNC_DEVICE void clear(Moments<A, K, V>& moments) {
#pragma unroll
  for (int j = 0; j < V; j++) moments.entropy_sum[j] = A(0);
#pragma unroll
  for (int i = 0; i < K; i++) {
#pragma unroll
    for (int j = 0; j < V; j++) moments.mean[i][j] = moments.squared_deviations[i][j] = A(0);
  }
}

// The logits of V pixels of a planar map; classes beyond the last have no mass.
template <int K, int V, class T, class A>
SEGUNC_DEVICE void load_logits(const T* pixel, int64_t class_stride, int classes,
                               A (&value)[K][V]) {
  Vector<T, V> absent, raw[K];
#pragma unroll
  for (int j = 0; j < V; j++) absent[j] = from_accumulate<T>(-kInfinity<A>);
#pragma unroll
  for (int c = 0; c < K; c++) {
    raw[c] = c < classes ? load_vector<V>(pixel + c * class_stride) : absent;
  }
#pragma unroll
  for (int c = 0; c < K; c++) {
#pragma unroll
    for (int j = 0; j < V; j++) value[c][j] = to_accumulate(raw[c][j]);
  }
}

}  // namespace segunc::cuda::statistics
