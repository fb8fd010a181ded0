// Random numbers that follow from where they are used: Philox4x32-7 (Salmon et al. 2011), so that
// a backward pass draws again what the forward pass has drawn, whoever computes which pixel.
#pragma once
#include <cmath>

#include "exp_log.h"

namespace segunc {

// delta of a normal distribution, or of a uniform one on [-sigma, sigma]; both within [-1, 1].
enum class NoiseKind : int { none, normal, uniform };

inline namespace SEGUNC_VARIANT {
namespace math {

SEGUNC_HD uint32_t high_product(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  return __umulhi(a, b);
#else
  return uint32_t((uint64_t(a) * b) >> 32);
#endif
}

// Scalars, because kernels on a GPU do not know arrays of a namespace.
constexpr uint32_t kMultiplier0 = 0xd2511f53u, kMultiplier1 = 0xcd9e8d57u;
constexpr uint32_t kWeyl0 = 0x9e3779b9u, kWeyl1 = 0xbb67ae85u;
// The fewest whose numbers pass all of BigCrush, by the paper.
constexpr int kPhiloxRounds = 7;

// Four words of a counter and a key. kUnrolled: rounds in a row on a GPU.
template <int kUnrolled = 2>
SEGUNC_HD void philox(uint32_t (&counter)[4], uint64_t key) {
  uint32_t low = uint32_t(key), high = uint32_t(key >> 32);
  // report: trips 5
#if defined(__CUDA_ARCH__)
#pragma unroll kUnrolled
#elif !defined(__CUDACC__)
#pragma GCC unroll 7
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint32_t h0 = high_product(kMultiplier0, counter[0]), l0 = kMultiplier0 * counter[0];
    const uint32_t h1 = high_product(kMultiplier1, counter[2]), l1 = kMultiplier1 * counter[2];
    counter[0] = h1 ^ counter[1] ^ low;
    counter[1] = l1;
    counter[2] = h0 ^ counter[3] ^ high;
    counter[3] = l0;
    low += kWeyl0;
    high += kWeyl1;
  }
}

// The words of a pixel and two numbers. Of four classes from 4 group on: (group, 0). Of four draws
// of a class from 4 group on: (class, group).
template <int kUnrolled = 2>
SEGUNC_HD void words_of(int64_t pixel, uint32_t third, uint32_t fourth, uint64_t seed,
                        uint32_t (&words)[4]) {
  words[0] = uint32_t(pixel);
  words[1] = uint32_t(uint64_t(pixel) >> 32);
  words[2] = third;
  words[3] = fourth;
  philox<kUnrolled>(words, seed);
}

// In [0, 1), in steps of 2^-24.
template <class A>
SEGUNC_HD A uniform(uint32_t word) {
  return A(float(int32_t(word >> 8)) * 0x1p-24f);
}

// cos and sin of v quarters of a turn, 0 <= v <= 1, within 3e-7.
SEGUNC_HD float quarter_cos(float v) {
  const float w = v * v;
  float p = 4.7108749e-07f;
  p = p * w - 2.5202042e-05f;
  p = p * w + 9.1926027e-04f;
  p = p * w - 2.0863481e-02f;
  p = p * w + 2.5366951e-01f;
  p = p * w - 1.2337005f;
  return p * w + 1.f;
}
SEGUNC_HD float quarter_sin(float v) {
  const float w = v * v;
  float p = -3.5988432e-06f;
  p = p * w + 1.6044118e-04f;
  p = p * w - 4.6817541e-03f;
  p = p * w + 7.9692626e-02f;
  p = p * w - 6.4596410e-01f;
  return (p * w + 1.5707963f) * v;
}
#ifdef __CUDA_ARCH__
// Those of any angle keep its multiples of pi in local memory.
SEGUNC_HD double quarter_cos(double v) { return ::cospi(0.5 * v); }
SEGUNC_HD double quarter_sin(double v) { return ::sinpi(0.5 * v); }
#else
SEGUNC_HD double quarter_cos(double v) { return ::cos(1.5707963267948966 * v); }
SEGUNC_HD double quarter_sin(double v) { return ::sin(1.5707963267948966 * v); }
#endif

#ifdef __CUDA_ARCH__
// Within 2^-23 of it: the exact one is a call.
SEGUNC_HD float root(float x) {
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}
#else
SEGUNC_HD float root(float x) { return sqrtf(x); }
#endif
SEGUNC_HD double root(double x) { return ::sqrt(x); }

template <class A>
struct NumberPair {
  A first, second;
};

// Sizes of two normal numbers by Box and Muller's way, from a quarter of the turn.
template <class A>
SEGUNC_HD NumberPair<A> half_normals_of(uint32_t word, uint32_t next) {
  const A u = uniform<A>(word), v = uniform<A>(next);
  const A logarithm = log_positive(A(1) - u);
  const A radius = root(logarithm < A(0) ? A(-2) * logarithm : A(0));
  return {radius * quarter_cos(v), radius * quarter_sin(v)};
}

// A number that is not below 0, with the sign of a word's last bit, which `uniform` leaves over.
SEGUNC_HD float with_sign_of(uint32_t word, float size) {
  return bit_cast<float>(bit_cast<uint32_t>(size) | word << 31);
}
SEGUNC_HD double with_sign_of(uint32_t word, double size) {
  return bit_cast<double>(bit_cast<uint64_t>(size) | uint64_t(word) << 63);
}

// Two normal numbers.
template <class A>
SEGUNC_HD NumberPair<A> normals_of(uint32_t word, uint32_t next) {
  const auto sizes = half_normals_of<A>(word, next);
  return {with_sign_of(word, sizes.first), with_sign_of(next, sizes.second)};
}

// |delta| of two classes by two words.
template <class A>
SEGUNC_HD NumberPair<A> noise_of(NoiseKind kind, A sigma, uint32_t word, uint32_t next) {
  A first = uniform<A>(word), second = uniform<A>(next);
  if (kind == NoiseKind::normal) {
    const auto sizes = half_normals_of<A>(word, next);
    first = sizes.first, second = sizes.second;
  }
  first *= sigma, second *= sigma;
  return {first < A(1) ? first : A(1), second < A(1) ? second : A(1)};
}

}  // namespace math
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
