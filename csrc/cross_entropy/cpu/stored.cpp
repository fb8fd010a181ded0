// Weighted cross-entropy on a CPU: loss and gradient in one read of the logits. A tile's
// exponentials stay in the L1 cache between the sum over classes and the gradient.
#include "../../common/cpu/cross_entropy_tile.h"
#include "../../common/reduction.h"
#include "../params.h"

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
  const int64_t grad_bytes = p.map.images * p.map.pixels * C * int64_t(sizeof(S));
  Scratch<A> tile_room(int64_t(C) * T);
  Scratch<S> row_room(last ? int64_t(C) * T : T);
  const WriteBuffer<S> buffer{row_room.get(), grad_bytes > kStreamBytes};
  A* tile = tile_room.get();
  Pixels<A, T> px;
  alignas(kAlignment) A lane[T];

  const auto run_tile = [&](int64_t image, int64_t pixel, auto n) __attribute__((always_inline)) {
    const int64_t at = image * p.map.pixels + pixel;
    read_pixels(p, targets, at, n, px);
    read_tile<T>(p.map, static_cast<const S*>(p.input), image, pixel, n, tile, px.maximum);
    read_logits(targets, C, n, tile, px);
    exponentials<T>(C, n, tile, px.maximum,
                    ahead_of(p.map, static_cast<const S*>(p.input), image, pixel + T),
                    Sum<A>{px.sum});
    write_losses(p, targets, at, n, px, lane);
    if (!p.grad_input) return;

    take_targets_off(targets, C, n, tile, px);
    S* grad = static_cast<S*>(p.grad_input);
    if (targets.spread > A(0))
      write_tile<T>(p.grad_map, grad, image, pixel, n, tile, buffer,
                    [&](int c, int j, A e) __attribute__((always_inline)) {
                      return clear_unless(px.valid[j],
                                          e * px.sum[j] - px.slope[j] * targets.spread_of(c));
                    });
    else
      write_tile<T>(p.grad_map, grad, image, pixel, n, tile, buffer,
                    [&](int, int j, A e) __attribute__((always_inline)) {
                      return clear_unless(px.valid[j], e * px.sum[j]);
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

// Sums per lane, so that the loop vectorises and its order is fixed.
template <class Y, class A>
double sum_weights(const NormalizerParams& p, int64_t begin, int64_t end) {
  constexpr int kLanes = 64;
  const Y* __restrict target = static_cast<const Y*>(p.target);
  const A* __restrict weight = static_cast<const A*>(p.weight);
  A lane[kLanes] = {};
  const auto add = [&](int64_t at, int n) __attribute__((always_inline)) {
    for (int j = 0; j < n; ++j) {
      const int64_t y = int64_t(target[at + j]);
      const bool counts = y != p.ignore_index && y >= 0 && y < p.classes;
      if (weight)
        lane[j] += counts ? weight[counts ? y : 0] : A(0);
      else
        lane[j] += A(counts);
    }
  };
  int64_t at = begin;
  for (; at + kLanes <= end; at += kLanes) add(at, kLanes);
  add(at, int(end - at));
  double sum = 0;
  for (const A l : lane) sum += double(l);
  return sum;
}

}  // namespace

void cross_entropy_units(const CrossEntropyParams& p, int64_t begin, int64_t end) {
  // The tile of many classes is narrower, so that it stays in the L1 cache.
  constexpr int64_t kWideClasses = 64;
  with_dtype(p.dtype, [&](auto s) {
    using S = decltype(s);
    if constexpr (!std::is_same_v<S, double>)
      if (p.map.classes <= kWideClasses) return run_units<S, 128>(p, begin, end);
    run_units<S, 32>(p, begin, end);
  });
}

void normalizer_units(const NormalizerParams& p, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * kUnitPixels, stop = std::min(p.count, first + kUnitPixels);
    with_index_type(p.target_type, [&](auto y) {
      using Y = decltype(y);
      p.partial[unit] = p.dtype == Dtype::f64 ? sum_weights<Y, double>(p, first, stop)
                                              : sum_weights<Y, float>(p, first, stop);
    });
  }
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
