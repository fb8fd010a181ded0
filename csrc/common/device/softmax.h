// The softmax over a pixel's classes, as kernels traverse it: all classes in one thread's
// registers, the classes spread over a team of threads, or one class at a time from memory.
#pragma once
#include "../../math/exp_log.h"
#include "../class_map.h"
#include "device.h"
#include "labels.h"

namespace segunc::device {

template <class A>
SEGUNC_DEVICE A larger(A a, A b) {
  return a > b ? a : b;
}
#ifdef __CUDA_ARCH__
// One instruction rather than two; it never takes a NaN.
SEGUNC_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
#endif
template <class A>
constexpr A kInfinity = A(__builtin_huge_val());
template <class A>
constexpr A kNaN = A(__builtin_nan(""));

// 1 / x. A division of floats has a call for rare cases, around which a GPU's compiler saves
// registers to memory; an estimate and a Newton step, which is not a number where the estimate is
// infinite, have none.
SEGUNC_DEVICE float inverse(float x) {
#ifdef __CUDA_ARCH__
  const float estimate = __fdividef(1.f, x);
  const float refined = fmaf(estimate, fmaf(-x, estimate, 1.f), estimate);
  return refined == refined ? refined : estimate;
#else
  return 1.f / x;
#endif
}
SEGUNC_DEVICE double inverse(double x) { return 1.0 / x; }

// A thread that holds every class of its pixels: register i is class i.
struct Alone {
  int owned;

  SEGUNC_DEVICE explicit Alone(int classes) : owned(classes) {}
  SEGUNC_DEVICE int class_of(int i) const { return i; }
  template <class A>
  SEGUNC_DEVICE A sum(A value) const {
    return value;
  }
  template <class A>
  SEGUNC_DEVICE A maximum(A value) const {
    return value;
  }
};

// log2 of the threads that share a pixel of so many classes, each with at most `most` of them.
SEGUNC_HD constexpr int team_shift_of(int64_t classes, int64_t most) {
  int shift = 0;
  while (classes > most << shift) shift++;
  return shift;
}

// `size` neighbouring threads of a warp, a power of two, share a pixel: register i of thread `part`
// is class part + i * size. The reductions need the whole warp and give every thread the same bits.
struct Team {
  int size, part, owned;

  SEGUNC_DEVICE Team(int classes, int size_log2, int part)
      : size(1 << size_log2), part(part), owned((classes - part + size - 1) >> size_log2) {}
  SEGUNC_DEVICE int class_of(int i) const { return part + i * size; }
  template <class A>
  SEGUNC_DEVICE A sum(A value) const {
    // report: trips log2(team)
    for (unsigned distance = unsigned(size) / 2; distance > 0; distance /= 2) {
      value += shuffle_xor(kFullMask, value, distance);
    }
    return value;
  }
  template <class A>
  SEGUNC_DEVICE A maximum(A value) const {
    // report: trips log2(team)
    for (unsigned distance = unsigned(size) / 2; distance > 0; distance /= 2) {
      value = larger(value, shuffle_xor(kFullMask, value, distance));
    }
    return value;
  }
};

// The largest logit of each of V pixels. A NaN may be passed over: it reaches the sum all the same.
template <int K, int V, class A, class Owner>
SEGUNC_DEVICE void largest_logit(const Owner& owner, const A (&logit)[K][V], A (&maximum)[V]) {
#pragma unroll
  for (int j = 0; j < V; j++) maximum[j] = -kInfinity<A>;
#pragma unroll
  for (int i = 0; i < K; i++) {
#pragma unroll
    for (int j = 0; j < V; j++) maximum[j] = larger(maximum[j], logit[i][j]);
  }
#pragma unroll
  for (int j = 0; j < V; j++) maximum[j] = owner.maximum(maximum[j]);
}

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// e^x for a logarithm that exponentials_in_place has corrected.
SEGUNC_DEVICE float exponential(float x) { return power_of_two(x * kLog2E); }

// Of a sum of exponentials, which is 1/2 at least: its inverse within 1 ulp, and its logarithm
// within 1.7e-7, or 2.4e-7 of it.
SEGUNC_DEVICE float inverse_of_sum(float sum) { return reciprocal(sum); }
SEGUNC_DEVICE double inverse_of_sum(double sum) { return 1.0 / sum; }
SEGUNC_DEVICE float log_of_sum(float sum) { return binary_logarithm(sum) * kLn2; }
SEGUNC_DEVICE double log_of_sum(double sum) { return math::log_positive(sum); }

// Where a maximum is so large that its rounded product with log2 e might move exponentials out of
// range, logits become their differences from it.
template <int K, int V>
SEGUNC_DEVICE void bound_maximum(float (&value)[K][V], float (&maximum)[V]) {
  constexpr float kLargest = 0x1p21f;
  bool large = false;
#pragma unroll
  for (int j = 0; j < V; j++) large |= !(fabsf(maximum[j]) < kLargest);
  if (!large) return;
  // report: begin rare
#pragma unroll
  for (int j = 0; j < V; j++) {
#pragma unroll
    for (int i = 0; i < K; i++) value[i][j] -= maximum[j];
    maximum[j] = 0;
  }
  // report: end
}

// Logits, in place, to exponentials relative to the largest: e^(z - m) as 2^(z log2 e - m log2 e),
// a multiply-add and an instruction of its own. Returns, for each pixel, what the rounding of
// m log2 e multiplies all of them by, as a logarithm: it does not change their ratios, and added to
// z - m it is log(exponential) as far as it counts. Within 2 ulp, and 2^-24 of |z - m|, of that.
template <int K, int V>
SEGUNC_DEVICE void exponentials_in_place(float (&value)[K][V], float (&maximum)[V],
                                         float (&moved)[V]) {
  bound_maximum(value, maximum);
#pragma unroll
  for (int j = 0; j < V; j++) {
    const float scaled = maximum[j] * kLog2E;
    moved[j] = fmaf(maximum[j], kLog2E, -scaled) * kLn2;
#pragma unroll
    for (int i = 0; i < K; i++) value[i][j] = power_of_two(fmaf(value[i][j], kLog2E, -scaled));
  }
}

// The factor of an ignored pixel's exponentials is 0. So is the product, once exponentials that are
// no numbers are 0. One branch that is rarely taken, so that other pixels pay next to nothing.
// softmax: whose sum is that of a pixel's exponentials.
template <int K, int V, class A, class Terms>
SEGUNC_DEVICE void clear_ignored(const int (&label)[V], const Terms (&softmax)[V],
                                 A (&exponential)[K][V]) {
  bool any = false;
#pragma unroll
  for (int j = 0; j < V; j++) any |= label[j] == kIgnored && !(softmax[j].sum < kInfinity<A>);
  if (!any) return;
  // report: begin rare
#pragma unroll
  for (int j = 0; j < V; j++) {
#pragma unroll
    for (int i = 0; i < K; i++) exponential[i][j] = label[j] == kIgnored ? A(0) : exponential[i][j];
  }
  // report: end
}

// The sum of exp(z_c - maximum) over the classes read so far.
template <class A>
struct OnlineSoftmax {
  A maximum = -kInfinity<A>;
  A sum = 0;

  SEGUNC_DEVICE void add(A logit) {
    if (logit > maximum) {
      sum = sum * math::exp_nonpositive(maximum - logit) + A(1);
      maximum = logit;
    } else {
      // Equal infinities have no difference.
      sum += logit == maximum ? A(1) : math::exp_nonpositive(logit - maximum);
    }
  }
};

// Of the logits that logit_of gives. An infinite maximum makes the sum NaN, as the subtraction
// would in one pass.
template <class A, class Logit>
SEGUNC_DEVICE OnlineSoftmax<A> online_softmax(int64_t classes, Logit logit_of) {
  OnlineSoftmax<A> softmax;
  // report: trips elements * sizeof(T) / accessed
#pragma unroll 4
  for (int64_t c = 0; c < classes; c++) softmax.add(logit_of(c));
  softmax.sum += softmax.maximum - softmax.maximum;
  return softmax;
}

}  // namespace segunc::device
