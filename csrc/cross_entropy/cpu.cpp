// Weighted cross-entropy on a CPU: loss and gradient in one read of the logits.
//
// A tile's exponentials stay in the L1 cache between the sum over classes and the gradient:
//   value     l = a (log s - d_y) + sum_c b_c (log s - d_c),   d = z - max z,  s = sum_c exp d_c
//   gradient  k (total / s * exp d_c - t_c),   t_c = a [c = y] + b_c,  total = sum_c t_c
// The target's term is taken off the tile beforehand, as a / total * s of its exponential.
#include "../common/cpu/exponentials.h"
#include "../math/cross_entropy.h"
#include "params.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace tiles;

// What a tile of pixels holds beside its exponentials.
template <class A, int T>
struct Pixels {
  alignas(kAlignment) int32_t label[T];  // 0 where ignored
  alignas(kAlignment) int32_t valid[T];  // all bits where the pixel counts, else 0
  alignas(kAlignment) A on_target[T];    // a, as above
  alignas(kAlignment) A weight[T];       // the pixel weight
  alignas(kAlignment) A upstream[T];     // upstream gradient times the call's scale
  alignas(kAlignment) A maximum[T], sum[T], target_shifted[T], smooth[T], slope[T];
};

template <class A>
SEGUNC_HD A where_valid(int32_t valid, A v) {
  return valid ? v : A(0);
}

// NaN at an ignored pixel must not survive, so the bits are cleared instead of multiplied.
SEGUNC_HD float clear_unless(int32_t valid, float v) {
  return bit_cast<float>(bit_cast<int32_t>(v) & valid);
}
SEGUNC_HD double clear_unless(int32_t valid, double v) {
  return bit_cast<double>(bit_cast<int64_t>(v) & int64_t(valid));
}

// Returns whether every valid target is a class.
template <class Y, class A, int T>
SEGUNC_HD bool read_targets(const CrossEntropyParams& p, int64_t at, int n, A keep,
                            Pixels<A, T>& px) {
  const Y* __restrict target = static_cast<const Y*>(p.target) + at;
  const A* __restrict weight = static_cast<const A*>(p.weight);
  const int64_t classes = p.map.classes;
  int32_t outside = 0;
  for (int j = 0; j < n; ++j) {
    const int64_t y = int64_t(target[j]);
    const int32_t valid = -int32_t(y != p.ignore_index);
    const int32_t inside = -int32_t(y >= 0 && y < classes);
    outside |= valid & ~inside;
    px.valid[j] = valid;
    px.label[j] = int32_t(y) & valid & inside;
  }
  if (weight)
    for (int j = 0; j < n; ++j) px.on_target[j] = keep * weight[px.label[j]];
  else
    for (int j = 0; j < n; ++j) px.on_target[j] = keep;
  return outside == 0;
}

template <class A, int T>
SEGUNC_HD void read_factors(const CrossEntropyParams& p, int64_t at, int n, A scale,
                            Pixels<A, T>& px) {
  const A* __restrict weight = static_cast<const A*>(p.pixel_weight);
  const A* __restrict upstream = static_cast<const A*>(p.upstream);
  for (int j = 0; j < n; ++j) px.weight[j] = weight ? weight[at + j] : A(1);
  if (upstream && !p.upstream_is_scalar)
    for (int j = 0; j < n; ++j) px.upstream[j] = upstream[at + j] * scale;
  else
    for (int j = 0; j < n; ++j) px.upstream[j] = scale;
}

template <class A>
struct Sum {
  A* sums;  // [T]
  Pack<A> sum = {};

  SEGUNC_HD void add(Pack<A> e, Pack<A>) { sum += e; }
  SEGUNC_HD void store(int j) const { store_pack(sums + j, sum); }
};

// What is needed of the logits of a tile before they become exponentials: the target's and, where
// labels are smoothed, sum_c b_c d_c.
template <class A, int T>
SEGUNC_HD void read_logits(int C, int n, const A* class_weight, A spread, const A* __restrict tile,
                           Pixels<A, T>& px) {
  for (int j = 0; j < n; ++j) {
    px.target_shifted[j] = tile[px.label[j] * T + j] - px.maximum[j];
    px.smooth[j] = A(0);
  }
  if (spread > A(0))
    for (int c = 0; c < C; ++c) {
      const A b = class_weight ? spread * class_weight[c] : spread;
      for (int j = 0; j < n; ++j) px.smooth[j] += b * (tile[c * T + j] - px.maximum[j]);
    }
}

void record_bad_target(int64_t* first, int64_t pixel) {
  int64_t seen = __atomic_load_n(first, __ATOMIC_RELAXED);
  while (pixel < seen && !__atomic_compare_exchange_n(first, &seen, pixel, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
}

template <class Y>
void find_bad_target(const CrossEntropyParams& p, int64_t at, int n) {
  const Y* target = static_cast<const Y*>(p.target) + at;
  for (int j = 0; j < n; ++j) {
    const int64_t y = int64_t(target[j]);
    if (y != p.ignore_index && (y < 0 || y >= p.map.classes))
      return record_bad_target(p.bad_target, at + j);
  }
}

template <class S, int T>
void run_units(const CrossEntropyParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<S>;
  const int C = int(p.map.classes);
  const A* class_weight = static_cast<const A*>(p.weight);
  const A keep = A(1 - p.label_smoothing), spread = A(p.label_smoothing / double(C));
  A spread_total = 0;
  if (spread > A(0))
    for (int c = 0; c < C; ++c) spread_total += class_weight ? spread * class_weight[c] : spread;
  double scale = p.normalizer ? 1 / *p.normalizer : 1;
  if (p.upstream && p.upstream_is_scalar) scale *= double(*static_cast<const A*>(p.upstream));

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
    with_index_type(p.target_type, [&](auto y) __attribute__((always_inline)) {
      using Y = decltype(y);
      if (!read_targets<Y>(p, at, n, keep, px)) find_bad_target<Y>(p, at, n);
    });
    read_factors(p, at, n, A(scale), px);
    read_tile<T>(p.map, static_cast<const S*>(p.input), image, pixel, n, tile, px.maximum);
    read_logits(C, n, class_weight, spread, tile, px);
    exponentials<T>(C, n, tile, px.maximum,
                    ahead_of(p.map, static_cast<const S*>(p.input), image, pixel + T),
                    Sum<A>{px.sum});

    A* __restrict loss = static_cast<A*>(p.loss);
    A* __restrict grad_weight = static_cast<A*>(p.grad_pixel_weight);
    for (int j = 0; j < n; ++j) {
      const A log_sum = math::log_positive(px.sum[j]);
      const A smooth = spread_total * log_sum - px.smooth[j];
      const A value = math::cross_entropy(px.on_target[j], smooth, px.target_shifted[j], log_sum);
      const A weighted = where_valid(px.valid[j], px.weight[j] * value);
      lane[j] += weighted;
      px.slope[j] = px.weight[j] * px.upstream[j];
      if (loss) loss[at + j] = weighted;
      if (grad_weight) grad_weight[at + j] = where_valid(px.valid[j], value * px.upstream[j]);
    }
    if (!p.grad_input) return;

    for (int j = 0; j < n; ++j) {
      const A total = px.on_target[j] + spread_total;
      px.maximum[j] = total != A(0) ? px.on_target[j] / total * px.sum[j] : A(0);
      px.sum[j] = px.slope[j] * (total / px.sum[j]);
    }
    for (int j = 0; j < n; ++j) tile[px.label[j] * T + j] -= px.maximum[j];
    S* grad = static_cast<S*>(p.grad_input);
    if (spread > A(0))
      write_tile<T>(p.grad_map, grad, image, pixel, n, tile, buffer,
                    [&](int c, int j, A e) __attribute__((always_inline)) {
                      const A b = class_weight ? spread * class_weight[c] : spread;
                      return clear_unless(px.valid[j], e * px.sum[j] - px.slope[j] * b);
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
