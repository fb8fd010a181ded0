// The entropy of a pixel's softmax from one pass over its classes, a few at a time, so that any
// number of classes takes the same registers.
//
// With m = max_c z_c, s = sum_c e^(z_c - m) and t = sum_c (z_c - m) e^(z_c - m)
//   H = log s - t / s.
// As m grows to n, s becomes f s and t becomes f (t + (m - n) s), where f = e^(m - n).
//
// Exponentials are powers of two of d = (z - m) log2 e, rounded twice; t is in units of ln 2.
#pragma once
#include "../../common/device/softmax.h"
#include "../../math/moments.h"

namespace segunc::cuda::blocks {

using namespace device;

// How numbers of a type are raised. `bounded`: where the power is 0 anyway, so that 0 times minus
// infinity is 0.
template <class A>
struct Powers;
template <>
struct Powers<float> {
  static constexpr float kLowest = -__FLT_MAX__, kUnit = kLn2;
  SEGUNC_DEVICE static float exponent(float z, float m) { return (z - m) * kLog2E; }
  SEGUNC_DEVICE static float power(float d) { return power_of_two(d); }
  SEGUNC_DEVICE static float bounded(float d) { return larger(d, -150.f); }
  SEGUNC_DEVICE static float logarithm(float sum) { return binary_logarithm(sum); }
  SEGUNC_DEVICE static float inverse(float sum, float) { return inverse_of_sum(sum); }
};
template <>
struct Powers<double> {
  static constexpr double kLowest = -__DBL_MAX__, kUnit = 1;
  SEGUNC_DEVICE static double exponent(double z, double m) { return z - m; }
  SEGUNC_DEVICE static double power(double d) { return math::exp_nonpositive(d); }
  SEGUNC_DEVICE static double bounded(double d) { return larger(d, -800.0); }
  SEGUNC_DEVICE static double logarithm(double sum) { return math::log_positive(sum); }
  // A division has a call, around which registers are saved to memory.
  SEGUNC_DEVICE static double inverse(double, double logarithm) {
    return math::exp_nonpositive(-logarithm);
  }
};

// Of the classes added so far. A NaN and positive infinity make it NaN, as do no classes with mass.
template <class A>
struct OnlineEntropy {
  using Of = Powers<A>;
  A maximum = Of::kLowest, sum = 0, dot = 0;

  // Of pixel j.
  template <int K, int V>
  SEGUNC_DEVICE void add(const A (&logit)[K][V], int j) {
    A largest = maximum;
#pragma unroll
    for (int i = 0; i < K; i++) largest = larger(largest, logit[i][j]);
    move_to(largest);
#pragma unroll
    for (int i = 0; i < K; i++) {
      const A d = Of::exponent(logit[i][j], largest), e = Of::power(d);
      sum += e;
      dot += e * Of::bounded(d);
    }
  }
  // Of the same pixel's other classes.
  SEGUNC_DEVICE void add(OnlineEntropy other) {
    const A largest = larger(maximum, other.maximum);
    move_to(largest);
    other.move_to(largest);
    sum += other.sum;
    dot += other.dot;
  }
  // In nats.
  SEGUNC_DEVICE A value() const {
    const A logarithm = Of::logarithm(sum);
    return Of::kUnit * math::softmax_entropy(logarithm, dot, Of::inverse(sum, logarithm));
  }

 private:
  SEGUNC_DEVICE void move_to(A largest) {
    const A distance = Of::bounded(Of::exponent(maximum, largest)), factor = Of::power(distance);
    dot = (dot + distance * sum) * factor;
    sum *= factor;
    maximum = largest;
  }
};

}  // namespace segunc::cuda::blocks
