// The sums over pixels that Dice is made of, and that of their cross-entropies, in one read of the
// logits, stored or interpolated.
//
// A tile's probabilities are added up over its pixels as packs of the accumulate type, and tiles as
// doubles; each unit has its own sums.
#include "../../common/cpu/interpolation.h"
#include "pixels.h"
#include "unit_sums.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace dice;

template <class A>
struct Sum {
  A* sums;  // [T]
  Pack<A> sum = {};

  SEGUNC_HD void add(Pack<A> e, Pack<A>) { sum += e; }
  SEGUNC_HD void store(int j) const { store_pack(sums + j, sum); }
};

// Adds a tile of exponentials, whose px.inverse is ready.
template <bool kFew, class A, int T>
SEGUNC_HD void add_overlaps(bool squared, int C, int n, const A* __restrict tile,
                            const Pixels<A, T>& px, UnitSums<A>& sums) {
  for (int c = 0; c < C; ++c) {
    Pack<A> predicted = {}, labelled = {}, common = {};
    for (int j = 0; j < n; j += kLanes<A>) {
      const Pack<A> p =
          keep_pack<A>(px.valid + j, load_pack(tile + c * T + j) * load_pack(px.inverse + j));
      predicted += math::dice_mass(squared, p);
      if constexpr (kFew) {
        const auto is_label = load_indices<A>(px.label + j) == c;
        const Pack<A> one = keep_pack<A>(px.valid + j, Pack<A>{} + A(1));
        labelled += is_label ? one : Pack<A>{};
        common += is_label ? p : Pack<A>{};
      }
    }
    sums.add(kPredicted, c, predicted);
    if constexpr (kFew) {
      sums.add(kLabelled, c, labelled);
      sums.add(kCommon, c, common);
    }
  }
  if constexpr (!kFew)
    for (int j = 0; j < n; ++j) {
      const int y = px.label[j];
      sums.add_one(kLabelled, y, double(px.valid[j] & 1));
      sums.add_one(kCommon, y, double(keep(px.valid[j], tile[y * T + j] * px.inverse[j])));
    }
}

template <class Tiles>
void run_units(const DiceParams& p, Tiles& source, int64_t begin, int64_t end) {
  using A = typename Tiles::Number;
  constexpr int T = Tiles::kWidth;
  const int C = int(p.map.classes);
  const int64_t P = result_pixels(p.map, p.interpolation);
  const Shares<A> shares(p);
  Scratch<A> tile_room(int64_t(C) * T);
  UnitSums<A> sums(C);
  A* tile = tile_room.get();
  Pixels<A, T> px;
  alignas(kAlignment) double lane[T];

  const auto run_tile = [&](int64_t image, int64_t pixel, auto n) __attribute__((always_inline)) {
    const int64_t at = image * P + pixel;
    read_pixels(p, shares, at, n, px);
    source.read(0, image, pixel, n, tile, px.maximum);
    if (p.cross_entropy) read_logits(shares, C, n, tile, px);
    exponentials<T>(C, n, tile, px.maximum, source.ahead(0, image, pixel), Sum<A>{px.sum});
    for (int j = 0; j < n; ++j) px.inverse[j] = A(1) / px.sum[j];
    if (p.cross_entropy)
      for (int j = 0; j < n; ++j)
        lane[j] += double(keep(px.valid[j], px.weight[j] * cross_entropy_of(shares, px, j)));
    if (C <= kFewClasses)
      add_overlaps<true>(p.squared, C, n, tile, px, sums);
    else
      add_overlaps<false>(p.squared, C, n, tile, px, sums);
  };
  const int64_t row = kDiceSums * C + 1;
  for (int64_t unit = begin; unit < end; ++unit) {
    std::fill_n(lane, T, 0.0);
    sums.clear();
    source.for_tiles(unit, run_tile);
    double* const partial = p.partial + unit * row;
    sums.store(partial);
    partial[row - 1] = 0;
    for (const double l : lane) partial[row - 1] += l;
  }
}

template <class S, int T>
void run_width(const DiceParams& p, int64_t begin, int64_t end) {
  with_tiles<S, T>(p.map, p.interpolation, &p.input, 1,
                   [&](auto& source) { run_units(p, source, begin, end); });
}

}  // namespace

void dice_sums(const DiceParams& p, int64_t begin, int64_t end) {
  with_tile(p.dtype, p.map.classes,
            [&](auto s, auto pixels) { run_width<decltype(s), pixels()>(p, begin, end); });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
