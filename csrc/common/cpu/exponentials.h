// Logits of a tile to exponentials, with what is summed up over the classes on the way.
#pragma once
#include "../../math/exp_log.h"
#include "../../math/moments.h"
#include "pack.h"
#include "tile.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace tiles {

// tile[c * T + j] = e = exp(d), where d = tile[c * T + j] - maximum[j], for n <= T pixels;
// meanwhile the tile that is read next is fetched. Sums: add(e, d) takes the packs of one class,
// and store(j) gets their pixels.
template <int T, class Sums, class A, class S>
SEGUNC_HD void exponentials(int C, int n, A* __restrict tile, const A* __restrict maximum,
                            const Ahead<S>& ahead, Sums sums) {
  static_assert(T % kStep<A> == 0);
  for (int j = 0; j < n; j += kStep<A>) {
    Pack<A> largest[kPacks];
    Sums under_way[kPacks] = {sums, sums};
    for (int k = 0; k < kPacks; ++k) largest[k] = load_pack(maximum + j + k * kLanes<A>);
    for (int c = 0; c < C; ++c) {
      ahead.template fetch<kStep<A>>(c, j);
#pragma GCC unroll 2
      for (int k = 0; k < kPacks; ++k) {
        A* logits = tile + c * T + j + k * kLanes<A>;
        const Pack<A> d = load_pack(logits) - largest[k], e = math::exp_nonpositive(d);
        store_pack(logits, e);
        under_way[k].add(e, d);
      }
    }
    for (int k = 0; k < kPacks; ++k) under_way[k].store(j + k * kLanes<A>);
  }
}

// Sums of which the entropy of a softmax is made.
template <class A>
struct SumAndDot {
  A *sums, *dots;  // [T]: of e, and of e d
  Pack<A> sum = {}, dot = {};

  SEGUNC_HD void add(Pack<A> e, Pack<A> d) {
    sum += e;
    dot += math::weighted_exponent(e, d);
  }
  SEGUNC_HD void store(int j) const {
    store_pack(sums + j, sum);
    store_pack(dots + j, dot);
  }
};

}  // namespace tiles
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
