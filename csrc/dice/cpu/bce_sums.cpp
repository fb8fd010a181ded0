// The sums over pixels that Dice of regions is made of, and that of their binary cross-entropies,
// in one read of the logits.
//
// A row of a tile is added up as packs of the accumulate type, and rows as doubles; each unit has
// its own sums. Where nothing weighs the cross-entropies, their logarithms are taken of products:
// one for a hundred logits.
#include "regions.h"
#include "unit_sums.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace dice;

enum class Surprise { none, plain, weighted };

// The cross-entropies of a unit, of which some come as logarithms of factors in [1, 2].
template <class A, int T>
class Surprises {
 public:
  void clear() {
    sums_.clear();
    restart();
  }
  // Of a row of a tile: what is no logarithm, and the product of its factors.
  SEGUNC_HD void add(Pack<A> terms, Pack<A> factors) {
    sums_.add(0, terms);
    product_ *= factors;
    if (++rows_ < kRows) return;
    sums_.add(0, math::log_positive(product_));
    restart();
  }
  double sum() {
    sums_.add(0, math::log_positive(product_));
    return sums_.sum(0);
  }

 private:
  // Of a float, too, up to 2^127.
  static constexpr int kRows = 120 / (T / kLanes<A>);
  static_assert(kRows > 0);

  void restart() {
    product_ = Pack<A>{} + A(1);
    rows_ = 0;
  }

  LaneSums<A> sums_{1};
  Pack<A> product_ = {};
  int rows_ = 0;
};

// Adds a row of a tile.
template <Surprise kSurprise, class A, int T, class S>
SEGUNC_HD void add_row(bool squared, int c, int n, const A* row, A pos_weight,
                       const RegionPixels<A, T>& px, const Ahead<S>& ahead, UnitSums<A>& sums,
                       Surprises<A, T>& surprises) {
  Pack<A> predicted = {}, labelled = {}, common = {}, surprise = {};
  Pack<A> product = Pack<A>{} + A(1);
  for (int j = 0; j < n; j += kLanes<A>) {
    ahead.template fetch<kLanes<A>>(c, j);
    const Region<A> region = region_of(row, px, j);
    const auto sigmoids = region.sigmoids();
    const Pack<A> p = keep_pack<A>(px.valid + j, sigmoids.of(region.logit));
    const Pack<A> one = keep_pack<A>(px.valid + j, Pack<A>{} + A(1));
    predicted += math::dice_mass(squared, p);
    labelled += region.labelled ? one : Pack<A>{};
    common += region.labelled ? p : Pack<A>{};
    if constexpr (kSurprise == Surprise::plain) {
      const Pack<A> sum = sigmoids.exponential + 1.f;
      surprise += keep_pack<A>(px.valid + j,
                               math::surprise_without_log(sigmoids, sum, region.towards_target()));
      product *= keep_pack<A>(px.valid + j, sigmoids.exponential) + 1.f;
    } else if constexpr (kSurprise == Surprise::weighted) {
      surprise += keep_pack<A>(
          px.valid + j, load_pack(px.weight + j) * region.cross_entropy(sigmoids, pos_weight));
    }
  }
  sums.add(kPredicted, c, predicted);
  sums.add(kLabelled, c, labelled);
  sums.add(kCommon, c, common);
  if constexpr (kSurprise != Surprise::none) surprises.add(surprise, product);
}

template <Surprise kSurprise, class S, int T>
void run_units(const DiceBceParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<S>;
  const int C = int(p.map.classes);
  const A* const pos_weight = static_cast<const A*>(p.pos_weight);
  RegionRows<S, T> rows(p);
  UnitSums<A> sums(C);
  Surprises<A, T> surprises;
  RegionPixels<A, T> px;

  const auto run_tile = [&](int64_t image, int64_t pixel, auto n) __attribute__((always_inline)) {
    read_pixels(p, image * p.map.pixels + pixel, n, px);
    rows.read(image, pixel, n);
    const auto ahead = rows.ahead(image, pixel);
    for (int c = 0; c < C; ++c) {
      read_targets(p, image, c, pixel, n, px);
      add_row<kSurprise>(p.squared, c, n, rows.row(c, n), pos_weight_of(pos_weight, c), px, ahead,
                         sums, surprises);
    }
  };
  const int64_t row = kDiceSums * C + 1;
  for (int64_t unit = begin; unit < end; ++unit) {
    surprises.clear();
    sums.clear();
    for_tiles<T>(unit, p.map.pixels, run_tile);
    sums.store(p.partial + unit * row);
    p.partial[unit * row + row - 1] = surprises.sum();
  }
}

template <class S, int T>
void run_width(const DiceBceParams& p, int64_t begin, int64_t end) {
  if (!p.cross_entropy)
    run_units<Surprise::none, S, T>(p, begin, end);
  else if (p.pixel_weight || p.pos_weight)
    run_units<Surprise::weighted, S, T>(p, begin, end);
  else
    run_units<Surprise::plain, S, T>(p, begin, end);
}

}  // namespace

void dice_bce_sums(const DiceBceParams& p, int64_t begin, int64_t end) {
  with_tile(p.dtype, p.map.classes,
            [&](auto s, auto pixels) { run_width<decltype(s), pixels()>(p, begin, end); });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
