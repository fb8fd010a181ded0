// The words of math/philox.h for neighbouring pixels, in packs.
#pragma once
#include "../../math/philox.h"
#include "pack.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace tiles {

typedef uint32_t WordPack __attribute__((vector_size(kPackBytes)));
constexpr int kWordLanes = kPackBytes / int(sizeof(uint32_t));

typedef uint64_t LongPack __attribute__((vector_size(kPackBytes)));

// Products of the lower halves. Written as such compilers multiply all 64 bits, which takes several
// instructions of most processors.
SEGUNC_HD LongPack long_products(LongPack a, LongPack b) {
#if defined(__AVX512F__)
  // Masked, as GCC 12 warns of what the product without a mask leaves undefined.
  return LongPack(_mm512_maskz_mul_epu32(0xff, __m512i(a), __m512i(b)));
#elif defined(__AVX2__)
  return LongPack(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#elif defined(__SSE2__) && !defined(__AVX__)
  return LongPack(_mm_mul_epu32(__m128i(a), __m128i(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// The upper halves of products of words.
SEGUNC_HD WordPack high_product(uint32_t a, WordPack b) {
  const LongPack factor = LongPack{} + a;
  const LongPack even = long_products(LongPack(b), factor);
  const LongPack odd = long_products(LongPack(b) >> 32, factor);
  return WordPack(even >> 32) | WordPack(odd & ~uint64_t(0xffffffffu));
}

// A word each of kPacks packs of pixels: a round waits for the one before, and the packs do not
// wait for one another.
struct Words {
  WordPack packs[kPacks];
};
constexpr int kWordStep = kPacks * kWordLanes;

template <class Operation>
SEGUNC_HD Words each_pack(Operation operation) {
  Words words;
  for (int i = 0; i < kPacks; ++i) words.packs[i] = operation(i);
  return words;
}
SEGUNC_HD Words operator^(const Words& a, const Words& b) {
  return each_pack([&](int i) { return a.packs[i] ^ b.packs[i]; });
}
SEGUNC_HD Words operator^(const Words& a, uint32_t b) {
  return each_pack([&](int i) { return a.packs[i] ^ b; });
}
SEGUNC_HD Words operator*(uint32_t a, const Words& b) {
  return each_pack([&](int i) { return a * b.packs[i]; });
}
SEGUNC_HD Words high_product(uint32_t a, const Words& b) {
  return each_pack([&](int i) { return high_product(a, b.packs[i]); });
}

// math::words_of for kWordStep pixels, words[k] the k-th of each.
SEGUNC_HD void words_of(int64_t pixel, int group, uint64_t seed, Words (&words)[4]) {
  WordPack lane;
  for (int i = 0; i < kWordLanes; ++i) lane[i] = uint32_t(i);
  for (int i = 0; i < kPacks; ++i) {
    const uint64_t first = uint64_t(pixel) + uint64_t(i * kWordLanes);
    const WordPack low = lane + uint32_t(first);
    words[0].packs[i] = low;
    words[1].packs[i] = uint32_t(first >> 32) - WordPack(low < uint32_t(first));
    words[2].packs[i] = WordPack{} + uint32_t(group);
    words[3].packs[i] = WordPack{};
  }
  math::philox(words, seed);
}

}  // namespace tiles
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
