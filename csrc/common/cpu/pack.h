// Neighbouring pixels in one register. Loops that carry sums over the classes are written with
// packs, because compilers leave such sums in memory when they vectorise plain loops.
#pragma once
#include <cstring>

#include "../element.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace tiles {

#if defined(__AVX512F__)
constexpr int kPackBytes = 64;
#elif defined(__AVX__)
constexpr int kPackBytes = 32;
#else
constexpr int kPackBytes = 16;
#endif

// double, whose exp is the C library's, goes one by one.
template <class A>
struct PackOf {
  using type = A;
  using indices = int32_t;
};
template <>
struct PackOf<float> {
  typedef float type __attribute__((vector_size(kPackBytes)));
  typedef int32_t indices __attribute__((vector_size(kPackBytes)));
};
template <class A>
using Pack = typename PackOf<A>::type;
// Class indices, lanes and masks that go with a pack.
template <class A>
using IndexPack = typename PackOf<A>::indices;

template <class A>
constexpr int kLanes = int(sizeof(Pack<A>) / sizeof(A));
// Packs that a loop has under way: fewer leave the units waiting, more do not fit the registers.
constexpr int kPacks = 2;
template <class A>
constexpr int kStep = kLanes<A> * kPacks;

// Rows in scratch memory are aligned, and have room up to a multiple of kStep.
template <class A>
SEGUNC_HD Pack<A> load_pack(const A* p) {
  Pack<A> pack;
  std::memcpy(&pack, __builtin_assume_aligned(p, sizeof pack), sizeof pack);
  return pack;
}
template <class A>
SEGUNC_HD void store_pack(A* p, Pack<A> pack) {
  std::memcpy(__builtin_assume_aligned(p, sizeof pack), &pack, sizeof pack);
}
template <class A>
SEGUNC_HD IndexPack<A> load_indices(const int32_t* p) {
  IndexPack<A> pack;
  std::memcpy(&pack, __builtin_assume_aligned(p, sizeof pack), sizeof pack);
  return pack;
}
template <class A>
SEGUNC_HD void store_indices(int32_t* p, IndexPack<A> pack) {
  std::memcpy(__builtin_assume_aligned(p, sizeof pack), &pack, sizeof pack);
}

template <class A>
SEGUNC_HD Pack<A> load_anywhere(const A* p) {
  Pack<A> pack;
  std::memcpy(&pack, p, sizeof pack);
  return pack;
}

// Up to so many classes all of a pixel's are visited to find one: each as a pack, where reaching
// for it goes pixel by pixel.
constexpr int kFewClasses = 12;

// Of rows T apart those at the given indices.
template <int T, class A>
SEGUNC_HD Pack<A> choose(int C, const A* rows, IndexPack<A> index) {
  Pack<A> chosen = load_pack(rows);
  for (int c = 1; c < C; ++c) chosen = index == c ? load_pack(rows + c * T) : chosen;
  return chosen;
}

}  // namespace tiles
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
