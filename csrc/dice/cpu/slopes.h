// The coefficients of the gradient in the type that is computed in.
#pragma once
#include "../../common/cpu/tile.h"
#include "../params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace dice {

using namespace tiles;

// What all pixels of an image share: the coefficients, times the upstream gradient.
template <class A>
class Slopes {
 public:
  explicit Slopes(const OverlapParams& p)
      : p_(p),
        upstream_(double(*static_cast<const A*>(p.upstream))),
        factor_(A(*p.factor * upstream_)),
        values_(kDiceSlopes * p.map.classes) {}

  void choose_image(int64_t image) {
    const int64_t table = p_.by_image ? image : 0, count = kDiceSlopes * p_.map.classes;
    if (table == table_) return;
    table_ = table;
    const double* coefficients = p_.coefficients + table * count;
    for (int64_t i = 0; i < count; ++i) values_.get()[i] = A(coefficients[i] * upstream_);
  }
  SEGUNC_HD const A* by_predicted() const { return values_.get() + kByPredicted * p_.map.classes; }
  SEGUNC_HD const A* by_common() const { return values_.get() + kByCommon * p_.map.classes; }
  SEGUNC_HD A upstream() const { return A(upstream_); }
  // Of the cross-entropies.
  SEGUNC_HD A factor() const { return factor_; }

 private:
  const OverlapParams& p_;
  const double upstream_;
  const A factor_;
  int64_t table_ = -1;
  Scratch<A> values_;  // [kDiceSlopes][C]
};

}  // namespace dice
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
