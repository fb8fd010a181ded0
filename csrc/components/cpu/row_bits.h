// Rows of labels as bits, 64 pixels a word: which pixels differ, and where runs of one label start.
#pragma once
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../../common/host_device.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace rows {

using Bits = uint64_t;
constexpr int kWord = 64;

SEGUNC_HD int count(Bits bits) { return __builtin_popcountll(bits); }
SEGUNC_HD int lowest(Bits bits) { return __builtin_ctzll(bits); }

// Bit i says a[i] != b[i].
SEGUNC_HD Bits differ_bytes(const uint8_t* a, const uint8_t* b) {
#if defined(__AVX512BW__)
  return _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
#elif defined(__AVX2__)
  Bits equal = 0;
  for (int i = 0; i < kWord; i += 32) {
    const __m256i same =
        _mm256_cmpeq_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + i)),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + i)));
    equal |= Bits(uint32_t(_mm256_movemask_epi8(same))) << i;
  }
  return ~equal;
#elif defined(__SSE2__)
  Bits equal = 0;
  for (int i = 0; i < kWord; i += 16) {
    const __m128i same = _mm_cmpeq_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i)),
                                        _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)));
    equal |= Bits(uint32_t(_mm_movemask_epi8(same))) << i;
  }
  return ~equal;
#else
  Bits bits = 0;
  for (int i = 0; i < kWord; ++i) bits |= Bits(a[i] != b[i]) << i;
  return bits;
#endif
}

template <class L>
SEGUNC_HD Bits differ_word(const L* a, const L* b) {
  uint8_t different[kWord];
  for (int i = 0; i < kWord; ++i) different[i] = a[i] != b[i];
  static const uint8_t zero[kWord] = {};
  return differ_bytes(different, zero);
}
template <>
SEGUNC_HD Bits differ_word(const uint8_t* a, const uint8_t* b) {
  return differ_bytes(a, b);
}

// The same for the first n <= 64; the other bits are 0.
template <class L>
SEGUNC_HD Bits differ(const L* a, const L* b, int n) {
  if (n == kWord) return differ_word(a, b);
#if defined(__AVX512BW__)
  if constexpr (sizeof(L) == 1) {
    const Bits in = (Bits(1) << n) - 1;
    return _mm512_mask_cmpneq_epi8_mask(in, _mm512_maskz_loadu_epi8(in, a),
                                        _mm512_maskz_loadu_epi8(in, b));
  }
#endif
  L padded_a[kWord] = {}, padded_b[kWord] = {};
  std::memcpy(padded_a, a, n * sizeof(L));
  std::memcpy(padded_b, b, n * sizeof(L));
  return differ_word(padded_a, padded_b);
}

// Bit i says a[x + i] != b[x + i - 1]; what is left of the row differs from everything.
template <class L>
SEGUNC_HD Bits differ_from_left(const L* a, const L* b, int64_t x, int n) {
  return x ? differ(a + x, b + x - 1, n) : differ(a + 1, b, n - 1) << 1 | 1;
}

// The bits up to and including the lowest of `bits`.
SEGUNC_HD Bits up_to_lowest(Bits bits) { return bits ^ (bits - 1); }

// A row of labels, where its runs start, and the number of the first of them.
template <class L>
struct Row {
  const L* labels;
  const Bits* starts;
  int32_t first_run;
};

// Calls join(run of a, run of b) for runs of two rows that touch and have one label: a pair of
// neighbouring pixels that are equal, with a run starting at either, is enough for each pair of
// runs. diagonal: pixels that share a corner touch, too.
template <class L, class Join>
SEGUNC_HD void for_touching(const Row<L>& a, const Row<L>& b, int64_t width, bool diagonal,
                            Join&& join) {
  // The runs that a pixel before the word belongs to.
  int32_t run_a = a.first_run - 1, run_b = b.first_run - 1;
  for (int64_t x = 0, word = 0; x < width; x += kWord, ++word) {
    const int n = width - x < kWord ? int(width - x) : kWord;
    const Bits in = n < kWord ? (Bits(1) << n) - 1 : ~Bits(0);
    const Bits starts_a = a.starts[word], starts_b = b.starts[word];
    Bits touching = (starts_a | starts_b) & in & ~differ(a.labels + x, b.labels + x, n);
    for (; touching; touching &= touching - 1) {
      const Bits before = up_to_lowest(touching);
      join(run_a + count(starts_a & before), run_b + count(starts_b & before));
    }
    // At a corner where a run starts in one row alone, the pixels beside it are joined already.
    if (const Bits corners = diagonal ? starts_a & starts_b & in : 0) {
      Bits down = corners & ~differ_from_left(a.labels, b.labels, x, n);
      for (; down; down &= down - 1) {
        const Bits before = up_to_lowest(down);
        join(run_a + count(starts_a & before), run_b + count(starts_b & before) - 1);
      }
      Bits up = corners & ~differ_from_left(b.labels, a.labels, x, n);
      for (; up; up &= up - 1) {
        const Bits before = up_to_lowest(up);
        join(run_a + count(starts_a & before) - 1, run_b + count(starts_b & before));
      }
    }
    run_a += count(starts_a);
    run_b += count(starts_b);
  }
}

}  // namespace rows
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
