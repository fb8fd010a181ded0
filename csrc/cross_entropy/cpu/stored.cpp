// Weighted cross-entropy on a CPU: loss and gradient in one read of the logits. A tile's
// exponentials stay in the L1 cache between the sum over classes and the gradient.
#include "pixels.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace tiles;

template <class S, int T>
void run_units(const CrossEntropyParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<S>;
  const int C = int(p.map.classes);
  const Targets<A> targets(p);
  const bool last = p.grad_map.layout == Layout::channels_last;
  Scratch<A> tile_room(int64_t(C) * T);
  Scratch<S> row_room(last ? int64_t(C) * T : T);
  const WriteBuffer<S> buffer{row_room.get(), streams_gradient<S>(p)};
  A* tile = tile_room.get();
  Pixels<A, T> px;
  alignas(kAlignment) A lane[T];

  const auto run_tile = [&](int64_t image, int64_t pixel, auto n) __attribute__((always_inline)) {
    const int64_t at = image * p.map.pixels + pixel;
    read_pixels(p, targets, at, n, px);
    read_tile<T>(p.map, static_cast<const S*>(p.input), image, pixel, n, tile, px.maximum);
    if (targets.offset) adjust_logits(targets, at, C, n, tile, px);
    read_logits(targets, C, n, tile, px);
    exponentials<T>(C, n, tile, px.maximum,
                    ahead_of(p.map, static_cast<const S*>(p.input), image, pixel + T),
                    Sum<A>{px.sum});
    write_losses(p, targets, image, at, n, px, lane);
    if (!p.grad_input) return;

    take_targets_off(targets, C, n, tile, px);
    S* grad = static_cast<S*>(p.grad_input);
    if (targets.shares.smooths())
      write_tile<T>(p.grad_map, grad, image, pixel, n, tile, buffer,
                    [&](int c, int j, A e) __attribute__((always_inline)) {
                      return clear_unless(
                          px.valid[j], math::cross_entropy_derivative(e, px.slope[j], px.factor[j],
                                                                      targets.smoothing(c)));
                    });
    else
      write_tile<T>(p.grad_map, grad, image, pixel, n, tile, buffer,
                    [&](int, int j, A e) __attribute__((always_inline)) {
                      return clear_unless(px.valid[j],
                                          math::cross_entropy_derivative(e, px.slope[j], A(0)));
                    });
  };
  for (int64_t unit = begin; unit < end; ++unit) {
    for (A& l : lane) l = 0;
    for_tiles<T>(unit, p.map.pixels, run_tile);
    double sum = 0;
    for (const A l : lane) sum += double(l);
    if (p.partial) p.partial[unit] = sum;
  }
  if (p.grad_input && buffer.stream) stream_fence();
}

}  // namespace

void cross_entropy_stored(const CrossEntropyParams& p, int64_t begin, int64_t end) {
  with_tile(p.dtype, p.map.classes,
            [&](auto s, auto pixels) { run_units<decltype(s), pixels()>(p, begin, end); });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
