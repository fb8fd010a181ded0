// The gradient of Dice and cross-entropy on a CPU, of logits of the target's size: one read of the
// logits and one write.
#include "gradient.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace dice;

template <bool kSquared, class S, int T>
void run_units(const DiceParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<S>;
  const int C = int(p.map.classes);
  const Shares<A> shares(p);
  Slopes<A> slopes(p);
  const bool last = p.grad_map.layout == Layout::channels_last;
  Scratch<A> tile_room(int64_t(C) * T);
  Scratch<S> row_room(last ? int64_t(C) * T : T);
  const WriteBuffer<S> buffer{row_room.get(), streams_gradient<S>(p)};
  A* tile = tile_room.get();
  Pixels<A, T> px;

  const auto run_tile = [&](int64_t image, int64_t pixel, auto n) __attribute__((always_inline)) {
    const int64_t at = image * p.map.pixels + pixel;
    slopes.choose_image(image);
    read_pixels(p, shares, at, n, px);
    read_tile<T>(p.map, static_cast<const S*>(p.input), image, pixel, n, tile, px.maximum);
    logits_to_gradients<kSquared>(p, shares, slopes, C, at, n, tile,
                                  ahead_of(p.map, static_cast<const S*>(p.input), image, pixel + T),
                                  px);
    if (p.grad_input)
      write_tile<T>(p.grad_map, static_cast<S*>(p.grad_input), image, pixel, n, tile, buffer,
                    [](int, int, A v) __attribute__((always_inline)) { return v; });
  };
  for (int64_t unit = begin; unit < end; ++unit) for_tiles<T>(unit, p.map.pixels, run_tile);
  if (p.grad_input && buffer.stream) stream_fence();
}

template <class S, int T>
void run_width(const DiceParams& p, int64_t begin, int64_t end) {
  if (p.squared)
    run_units<true, S, T>(p, begin, end);
  else
    run_units<false, S, T>(p, begin, end);
}

}  // namespace

void dice_gradient_stored(const DiceParams& p, int64_t begin, int64_t end) {
  with_tile(p.dtype, p.map.classes,
            [&](auto s, auto pixels) { run_width<decltype(s), pixels()>(p, begin, end); });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
