// The sums that Dice is made of, of a unit of pixels.
#pragma once
#include <algorithm>
#include <cstring>

#include "../../common/cpu/pack.h"
#include "../../common/cpu/tile.h"
#include "../params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace dice {

using namespace tiles;

// Sums whose terms come as packs, each with the lanes of one.
template <class A>
class LaneSums {
 public:
  explicit LaneSums(int64_t count) : count_(count), lanes_(count * kLanes<A>) {}

  void clear() { std::fill_n(lanes_.get(), count_ * kLanes<A>, 0.0); }
  SEGUNC_HD void add(int64_t i, Pack<A> terms) {
    double* const lanes = lanes_.get() + i * kLanes<A>;
    if constexpr (kLanes<A> == 1) {
      *lanes += terms;
    } else {
      typedef double Wide __attribute__((vector_size(2 * kPackBytes)));
      Wide sums;
      std::memcpy(&sums, lanes, sizeof sums);
      sums += __builtin_convertvector(terms, Wide);
      std::memcpy(lanes, &sums, sizeof sums);
    }
  }
  double sum(int64_t i) const {
    double sum = 0;
    for (int l = 0; l < kLanes<A>; ++l) sum += lanes_.get()[i * kLanes<A> + l];
    return sum;
  }

 private:
  const int64_t count_;
  Scratch<double> lanes_;
};

// Sums [kDiceSums][C] of a unit, of packs and of what scattered pixels add.
template <class A>
class UnitSums {
 public:
  explicit UnitSums(int C)
      : classes_(C), of_packs_(int64_t(kDiceSums) * C), scattered_(int64_t(kDiceSums) * C) {}

  void clear() {
    of_packs_.clear();
    std::fill_n(scattered_.get(), kDiceSums * classes_, 0.0);
  }
  SEGUNC_HD void add(DiceSum which, int c, Pack<A> pack) {
    of_packs_.add(which * classes_ + c, pack);
  }
  SEGUNC_HD void add_one(DiceSum which, int c, double value) {
    scattered_.get()[which * classes_ + c] += value;
  }
  void store(double* sums) const {
    for (int i = 0; i < kDiceSums * classes_; ++i) sums[i] = scattered_.get()[i] + of_packs_.sum(i);
  }

 private:
  const int classes_;
  LaneSums<A> of_packs_;
  Scratch<double> scattered_;
};

}  // namespace dice
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
