// The gradient of Dice and binary cross-entropy of regions: one read of the logits and one write.
#include "regions.h"
#include "slopes.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace dice;

// Of region c: the gradient of a row of logits, which is 0 at pixels that do not count. With
// kWeights adds its cross-entropies to loss.
template <bool kSquared, bool kWeights, class A, int T, class S>
SEGUNC_HD void row_to_gradient(const Slopes<A>& slopes, int c, int n, const A* row, A* gradient,
                               A pos_weight, const RegionPixels<A, T>& px, const Ahead<S>& ahead,
                               A* loss) {
  const Pack<A> a = Pack<A>{} + slopes.by_predicted()[c], b = Pack<A>{} + slopes.by_common()[c];
  for (int j = 0; j < n; j += kLanes<A>) {
    ahead.template fetch<kLanes<A>>(c, j);
    const Region<A> region = region_of(row, px, j);
    const auto sigmoids = region.sigmoids();
    Pack<A> by_probability = math::dice_slope(kSquared, a, sigmoids.of(region.logit));
    by_probability += region.labelled ? b : Pack<A>{};
    const Pack<A> towards = region.towards_target();
    const Pack<A> wrong = sigmoids.of(-towards);
    const Pack<A> of_surprise = region.labelled ? -pos_weight * wrong : wrong;
    store_pack(gradient + j,
               keep_pack<A>(px.valid + j, by_probability * sigmoids.derivative() +
                                              load_pack(px.weight + j) * of_surprise));
    if constexpr (kWeights)
      store_pack(loss + j, load_pack(loss + j) + region.cross_entropy(sigmoids, pos_weight));
  }
}

template <bool kSquared, bool kWeights, class S, int T>
void run_units(const DiceBceParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<S>;
  const int C = int(p.map.classes);
  const A* const pos_weight = static_cast<const A*>(p.pos_weight);
  Slopes<A> slopes(p);
  const bool last = p.grad_map.layout == Layout::channels_last;
  RegionRows<S, T> rows(p);
  Scratch<A> tile_room(int64_t(C) * T);
  Scratch<S> row_room(last ? int64_t(C) * T : T);
  const WriteBuffer<S> buffer{row_room.get(), streams_gradient<S>(p)};
  A* const tile = tile_room.get();
  RegionPixels<A, T> px;
  alignas(kAlignment) A loss[T];

  const auto run_tile = [&](int64_t image, int64_t pixel, auto n) __attribute__((always_inline)) {
    const int64_t at = image * p.map.pixels + pixel;
    slopes.choose_image(image);
    read_pixels(p, at, n, px);
    rows.read(image, pixel, n);
    for (int j = 0; j < n; ++j) px.weight[j] *= slopes.factor();
    if constexpr (kWeights) std::fill_n(loss, T, A(0));
    const auto ahead = rows.ahead(image, pixel);
    for (int c = 0; c < C; ++c) {
      read_targets(p, image, c, pixel, n, px);
      row_to_gradient<kSquared, kWeights>(slopes, c, n, rows.row(c, n), tile + c * T,
                                          pos_weight_of(pos_weight, c), px, ahead, loss);
    }
    if constexpr (kWeights) {
      A* const grad_weight = static_cast<A*>(p.grad_pixel_weight) + at;
      for (int j = 0; j < n; ++j) grad_weight[j] = keep(px.valid[j], loss[j] * slopes.factor());
    }
    if (p.grad_input)
      write_tile<T>(p.grad_map, static_cast<S*>(p.grad_input), image, pixel, n, tile, buffer,
                    [](int, int, A v) __attribute__((always_inline)) { return v; });
  };
  for (int64_t unit = begin; unit < end; ++unit) for_tiles<T>(unit, p.map.pixels, run_tile);
  if (p.grad_input && buffer.stream) stream_fence();
}

template <class S, int T>
void run_width(const DiceBceParams& p, int64_t begin, int64_t end) {
  const auto run = [&](auto squared) {
    if (p.grad_pixel_weight)
      run_units<squared(), true, S, T>(p, begin, end);
    else
      run_units<squared(), false, S, T>(p, begin, end);
  };
  if (p.squared)
    run(std::true_type());
  else
    run(std::false_type());
}

}  // namespace

void dice_bce_gradient(const DiceBceParams& p, int64_t begin, int64_t end) {
  with_tile(p.dtype, p.map.classes,
            [&](auto s, auto pixels) { run_width<decltype(s), pixels()>(p, begin, end); });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
