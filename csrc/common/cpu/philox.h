// Random words of neighbouring pixels at once: Philox (math/philox.h) on lanes of 64 bits, of which
// the lower half is a word and the upper one whatever products leave there. So a round's products
// need no shuffling.
#pragma once
#include <cstring>

#include "../../math/philox.h"
#include "pack.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace tiles {

typedef uint64_t WideWords __attribute__((vector_size(kPackBytes)));
constexpr int kWideLanes = int(sizeof(WideWords) / sizeof(uint64_t));

// Of the lower halves.
SEGUNC_HD WideWords products(WideWords a, WideWords b) {
#if defined(__AVX512F__)
  // Masked, as GCC 12 warns of what the product without a mask leaves undefined.
  return WideWords(_mm512_maskz_mul_epu32(0xff, __m512i(a), __m512i(b)));
#elif defined(__AVX2__)
  return WideWords(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#elif defined(__SSE2__) && !defined(__AVX__)
  return WideWords(_mm_mul_epu32(__m128i(a), __m128i(b)));
#else
  return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

// words[k][j]: word k of pixel first + j (math::words_of).
template <int T>
SEGUNC_HD void draw_words(int64_t first, uint32_t third, uint32_t fourth, uint64_t seed,
                          uint32_t (&words)[4][T]) {
  static_assert(T % (2 * kWideLanes) == 0);
  WideWords lane;
  for (int i = 0; i < kWideLanes; ++i) lane[i] = uint64_t(i);
  for (int j = 0; j < T; j += 2 * kWideLanes) {
    WideWords halves[2][4];  // of even pixels and of odd ones
    for (int odd = 0; odd < 2; ++odd) {
      auto& counter = halves[odd];
      counter[0] = uint64_t(first) + uint64_t(j + odd) + 2 * lane;
      counter[1] = counter[0] >> 32;
      counter[2] = WideWords{} + uint64_t(third);
      counter[3] = WideWords{} + uint64_t(fourth);
    }
    uint32_t low = uint32_t(seed), high = uint32_t(seed >> 32);
#pragma GCC unroll 7
    for (int round = 0; round < math::kPhiloxRounds; ++round) {
      for (auto& counter : halves) {
        const WideWords a = products(counter[0], WideWords{} + math::kMultiplier0);
        const WideWords b = products(counter[2], WideWords{} + math::kMultiplier1);
        counter[0] = (b >> 32) ^ counter[1] ^ uint64_t(low);
        counter[1] = b;
        counter[2] = (a >> 32) ^ counter[3] ^ uint64_t(high);
        counter[3] = a;
      }
      low += math::kWeyl0;
      high += math::kWeyl1;
    }
    for (int k = 0; k < 4; ++k) {
      const WideWords pair = (halves[0][k] & 0xffffffff) | halves[1][k] << 32;
      std::memcpy(&words[k][j], &pair, sizeof pair);
    }
  }
}

}  // namespace tiles
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
