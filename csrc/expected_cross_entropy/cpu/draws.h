// Draws of the logits of a tile of pixels, four normal numbers at a time: what they make of the
// loss, and of its gradients. Nothing is kept of a group of draws when the next one comes but two
// numbers of each pixel and the gradients' sums, which are scaled by what the next one adds.
#pragma once
#include <limits>

#include "../../common/cpu/class_indices.h"
#include "../../common/cpu/philox.h"
#include "../../common/cpu/tile.h"
#include "../../math/expected.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace expected {

using namespace tiles;

// Normal numbers of a group, which are that many draws, or twice as many if they are antithetic.
constexpr int kNumbers = 4;

// Rows of T pixels.
template <class A, int T>
struct Tile {
  int classes;
  A *mean, *scale;            // [C], [K]
  A* normal;                  // [C, kNumbers]
  A* exponential;             // [C, draws of a group], logits at first
  A *grad_mean, *grad_scale;  // [C], [K], without the factor of the pixel
};

// What a tile of pixels holds beside that, and of each draw of a group.
template <class A, int T>
struct Pixels {
  static constexpr int kMost = 2 * kNumbers;
  alignas(kAlignment) int32_t label[T];        // 0 where ignored
  alignas(kAlignment) int32_t valid[T];        // all bits where the pixel counts, else 0
  alignas(kAlignment) A largest[T], total[T];  // of the draws so far: see math/expected.h
  alignas(kAlignment) A kept[T];               // what the sums so far are multiplied by
  alignas(kAlignment) A maximum[kMost][T], sum[kMost][T];
  alignas(kAlignment) A log_p[kMost][T];  // of the labelled class
  alignas(kAlignment) A slope[kMost][T];  // exp(l_s - m) by the sum of exponentials
};

template <class A, int T>
SEGUNC_HD void draw_normals(const Tile<A, T>& tile, int64_t at, uint32_t group, uint64_t seed) {
  alignas(kAlignment) uint32_t words[kNumbers][T];
  for (int c = 0; c < tile.classes; ++c) {
    draw_words(at, uint32_t(c), group, seed, words);
    A* __restrict rows = tile.normal + c * kNumbers * T;
    for (int k = 0; k < kNumbers; k += 2)
      for (int j = 0; j < T; ++j) {
        const auto pair = math::normals_of<A>(words[k][j], words[k + 1][j]);
        rows[k * T + j] = pair.first, rows[(k + 1) * T + j] = pair.second;
      }
  }
}

// What the numbers of a group add to the means of class c, for the pixels of a pack.
template <bool kTriangular, class A, int T>
SEGUNC_HD void offsets_of(const Tile<A, T>& tile, int c, int j, Pack<A> (&offset)[kNumbers]) {
  const int first = kTriangular ? 0 : c;
  const A* row = tile.scale + (kTriangular ? c * (c + 1) / 2 : c) * T + j;
  for (Pack<A>& o : offset) o = Pack<A>{};
  for (int i = first; i <= c; ++i, row += T) {
    const Pack<A> scale = load_pack(row);
    const A* normal = tile.normal + i * kNumbers * T + j;
#pragma GCC unroll 4
    for (int k = 0; k < kNumbers; ++k) offset[k] += scale * load_pack(normal + k * T);
  }
}

// Logits of D draws, and the largest of each.
template <bool kTriangular, int D, class A, int T>
SEGUNC_HD void make_logits(const Tile<A, T>& tile, Pixels<A, T>& px) {
  for (int j = 0; j < T; j += kLanes<A>) {
    Pack<A> maximum[D];
    for (Pack<A>& m : maximum) m = Pack<A>{} - std::numeric_limits<A>::infinity();
    for (int c = 0; c < tile.classes; ++c) {
      Pack<A> offset[kNumbers];
      offsets_of<kTriangular>(tile, c, j, offset);
      const Pack<A> mean = load_pack(tile.mean + c * T + j);
      A* const logits = tile.exponential + c * D * T + j;
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        const bool paired = D > kNumbers;
        const Pack<A> o = offset[paired ? d / 2 : d], z = paired && d % 2 ? mean - o : mean + o;
        store_pack(logits + d * T, z);
        maximum[d] = z > maximum[d] ? z : maximum[d];
      }
    }
    for (int d = 0; d < D; ++d) store_pack(px.maximum[d] + j, maximum[d]);
  }
}

// Logits to exponentials relative to the largest, and their sums.
template <int D, class A, int T>
SEGUNC_HD void make_exponentials(const Tile<A, T>& tile, Pixels<A, T>& px) {
  for (int d = 0; d < D; ++d)
    for (int j = 0; j < T; ++j)
      px.log_p[d][j] = tile.exponential[(px.label[j] * D + d) * T + j] - px.maximum[d][j];
  for (int j = 0; j < T; j += kLanes<A>) {
    Pack<A> maximum[D], sum[D] = {};
    for (int d = 0; d < D; ++d) maximum[d] = load_pack(px.maximum[d] + j);
    for (int c = 0; c < tile.classes; ++c)
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        A* const logit = tile.exponential + (c * D + d) * T + j;
        const Pack<A> e = math::exp_nonpositive(load_pack(logit) - maximum[d]);
        store_pack(logit, e);
        sum[d] += e;
      }
    for (int d = 0; d < D; ++d) store_pack(px.sum[d] + j, sum[d]);
  }
}

// Adds D draws to those so far, of which the first `count` are any, and readies px.kept and
// px.slope.
template <int D, class A, int T>
SEGUNC_HD void add_log_means(int count, Pixels<A, T>& px) {
  alignas(kAlignment) A largest[T];
  for (int j = 0; j < T; ++j) largest[j] = px.largest[j];
  for (int d = 0; d < count; ++d)
    for (int j = 0; j < T; ++j) {
      px.log_p[d][j] -= math::log_positive(px.sum[d][j]);
      largest[j] = maximum_of(largest[j], px.log_p[d][j]);
    }
  for (int j = 0; j < T; ++j) {
    px.kept[j] = math::exp_nonpositive(px.largest[j] - largest[j]);
    px.total[j] *= px.kept[j];
    px.largest[j] = largest[j];
  }
  for (int d = 0; d < count; ++d)
    for (int j = 0; j < T; ++j) {
      const A share = math::exp_nonpositive(px.log_p[d][j] - largest[j]);
      px.total[j] += share;
      px.slope[d][j] = share / px.sum[d][j];
    }
  for (int d = count; d < D; ++d)
    for (int j = 0; j < T; ++j) px.slope[d][j] = A(0);
}

// Adds what D draws give to the gradients.
template <bool kTriangular, int D, class A, int T>
SEGUNC_HD void add_gradients(const Tile<A, T>& tile, Pixels<A, T>& px) {
  for (int d = 0; d < D; ++d)
    for (int j = 0; j < T; ++j) tile.exponential[(px.label[j] * D + d) * T + j] -= px.sum[d][j];
  for (int j = 0; j < T; j += kLanes<A>) {
    const Pack<A> kept = load_pack(px.kept + j);
    Pack<A> slope[D];
    for (int d = 0; d < D; ++d) slope[d] = load_pack(px.slope[d] + j);
    for (int c = 0; c < tile.classes; ++c) {
      A* const of_mean = tile.grad_mean + c * T + j;
      Pack<A> mean = load_pack(of_mean) * kept, offset[kNumbers];
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        const bool paired = D > kNumbers;
        const Pack<A> share = slope[d] * load_pack(tile.exponential + (c * D + d) * T + j);
        mean += share;
        if (!paired)
          offset[d] = share;
        else if (d % 2 == 0)
          offset[d / 2] = share;
        else
          offset[d / 2] -= share;
      }
      store_pack(of_mean, mean);
      A* of_scale = tile.grad_scale + (kTriangular ? c * (c + 1) / 2 : c) * T + j;
      for (int i = kTriangular ? 0 : c; i <= c; ++i, of_scale += T) {
        const A* normal = tile.normal + i * kNumbers * T + j;
        Pack<A> scale = load_pack(of_scale) * kept;
#pragma GCC unroll 4
        for (int k = 0; k < kNumbers; ++k) scale += offset[k] * load_pack(normal + k * T);
        store_pack(of_scale, scale);
      }
    }
  }
}

// All draws of a tile's pixels, of which `at` is the first. D: of a group. Out of line, as it is
// the same for every type of the logits that is computed in A.
template <bool kTriangular, int D, class A, int T>
[[gnu::noinline]] void draw_all(const Tile<A, T>& tile, int64_t at, int64_t draws, uint64_t seed,
                                bool gradients, Pixels<A, T>& px) {
  for (int j = 0; j < T; ++j) {
    px.largest[j] = math::kNoLogProbability<A>;
    px.total[j] = A(0);
  }
  if (gradients) {
    const int channels = kTriangular ? tile.classes * (tile.classes + 1) / 2 : tile.classes;
    std::fill_n(tile.grad_mean, tile.classes * T, A(0));
    std::fill_n(tile.grad_scale, channels * T, A(0));
  }
  uint32_t group = 0;
  for (int64_t done = 0; done < draws; done += D, ++group) {
    draw_normals(tile, at, group, seed);
    make_logits<kTriangular, D>(tile, px);
    make_exponentials<D>(tile, px);
    add_log_means<D>(int(std::min<int64_t>(D, draws - done)), px);
    if (gradients) add_gradients<kTriangular, D>(tile, px);
  }
}

}  // namespace expected
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
