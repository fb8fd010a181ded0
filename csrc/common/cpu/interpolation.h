// Tiles of logits that are interpolated on the fly: the large logits never exist.
//
// All rows of the result between two source rows blend these two. So a source row is enlarged to
// the result's columns once, and result rows blend enlarged rows. In volumes rows come from two
// planes, and result rows blend up to four. This is done strip by strip: few enough columns that
// enlarged rows and tiles stay in the cache.
#pragma once
#include <vector>

#include "../../math/interpolate.h"
#include "pack.h"
#include "tile.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace tiles {

// Of the spatial axis `i`.
template <class A>
SEGUNC_HD math::InterpolatedAxis<A> axis_of(const ClassMap& map, const Interpolation& to, int i) {
  return math::interpolated_axis<A>(int(map.size[i]), int(to.size[i]), to.align_corners);
}

// Positions of the result by their lower neighbour in the source.
template <class A>
class Axis {
 public:
  explicit Axis(const math::InterpolatedAxis<A>& axis) : axis_(axis), intervals_(axis.source) {
    for (int i = 0; i < axis.source; ++i)
      intervals_[i] = {math::first_position(axis, i), math::first_position(axis, i + 1)};
  }

  // Positions begin(i) .. end(i) - 1 have the lower neighbour i.
  int begin(int i) const { return intervals_[i].begin; }
  int end(int i) const { return intervals_[i].end; }
  bool empty(int i) const { return begin(i) == end(i); }

  int lower(int position) const { return math::neighbours_of(axis_, position).lower; }
  // Of the upper neighbour: it grows from begin to end, and is not read where it is 0.
  A weight(int position) const { return math::neighbours_of(axis_, position).weight; }
  bool has_upper(int i) const { return !empty(i) && weight(end(i) - 1) > A(0); }

 private:
  struct Interval {
    int begin, end;
  };
  math::InterpolatedAxis<A> axis_;
  std::vector<Interval> intervals_;
};

// A pack of neighbouring result columns: the source columns that each blends.
template <class A>
struct Columns {
  int base;  // the lower neighbour of the first
  alignas(kAlignment) int32_t lower[kLanes<A>], upper[kLanes<A>];  // counted from base
  alignas(kAlignment) A weight[kLanes<A>];
};

// A run of at most T result columns and the at most T source columns that they blend.
template <class A, int T>
struct Strip {
  static constexpr int kWidth = kLanes<A>;

  int first, count = 0;     // result columns
  int source, sources = 0;  // source columns
  std::vector<Columns<A>> packs;
  // Whether the neighbours of a pack always fit a pack, which is then read as a whole.
  bool compact = true;

  Strip(const math::InterpolatedAxis<A>& axis, int first)
      : first(first), source(math::neighbours_of(axis, first).lower) {
    while (count < T && first + count < axis.size) {
      const auto neighbours = math::neighbours_of(axis, first + count);
      if (neighbours.upper - source >= T) break;
      append(neighbours.lower - source, neighbours.upper - source, neighbours.weight);
      ++count;
    }
    const int columns = count;
    for (int last = lower(columns - 1); count % kStep<A>; ++count) append(last, last, A(0));
    count = columns;
  }

  int lower(int j) const { return packs[j / kWidth].base + packs[j / kWidth].lower[j % kWidth]; }
  int upper(int j) const { return packs[j / kWidth].base + packs[j / kWidth].upper[j % kWidth]; }
  A weight(int j) const { return packs[j / kWidth].weight[j % kWidth]; }

 private:
  void append(int lower, int upper, A weight) {
    if (count % kWidth == 0) packs.push_back({lower, {}, {}, {}});
    Columns<A>& pack = packs.back();
    pack.lower[count % kWidth] = lower - pack.base;
    pack.upper[count % kWidth] = upper - pack.base;
    pack.weight[count % kWidth] = weight;
    compact = compact && upper - pack.base < kWidth;
    sources = std::max(sources, upper + 1);
  }
};

template <class Strip, class A>
std::vector<Strip> strips_of(const math::InterpolatedAxis<A>& axis) {
  std::vector<Strip> strips;
  for (int first = 0; first < axis.size; first += strips.back().count)
    strips.emplace_back(axis, first);
  return strips;
}

// Room beyond the T columns of a row, for packs that begin within it.
template <class A>
constexpr int kBeyond = 2 * kLanes<A>;

// One row of source columns, at[c * T + i], to the strip's result columns. What has no share is
// left out: times 0, an infinite logit would be NaN.
template <class A, int T>
SEGUNC_HD void enlarge(const Strip<A, T>& strip, int C, const A* __restrict at,
                       A* __restrict enlarged) {
  if constexpr (kLanes<A> > 1) {
    if (strip.compact) {
      for (const Columns<A>& columns : strip.packs) {
        const auto lower = load_indices<A>(columns.lower), upper = load_indices<A>(columns.upper);
        const auto weight = load_pack(columns.weight);
        for (int c = 0; c < C; ++c) {
          const auto v = load_anywhere(at + c * T + columns.base);
          const auto below = __builtin_shuffle(v, lower);
          const auto blend = math::interpolate(below, __builtin_shuffle(v, upper), weight);
          store_pack(enlarged + c * T, weight > Pack<A>{} ? blend : below);
        }
        enlarged += kLanes<A>;
      }
      return;
    }
  }
  for (int j = 0; j < int(strip.packs.size()) * kLanes<A>; ++j)
    for (int c = 0; c < C; ++c) {
      const A below = at[c * T + strip.lower(j)], above = at[c * T + strip.upper(j)];
      const A weight = strip.weight(j);
      enlarged[c * T + j] = weight > A(0) ? math::interpolate(below, above, weight) : below;
    }
}

// Reads `count` neighbouring source columns of [N, C, Q], from `pixel` on, into rows at[c * T + i].
template <class A>
using Read = void (*)(const ClassMap& map, const void* data, int64_t image, int64_t pixel,
                      int count, A* at);

template <class S, int T>
void read_source(const ClassMap& map, const void* data, int64_t image, int64_t pixel, int count,
                 accumulate_t<S>* at) {
  alignas(kAlignment) accumulate_t<S> maximum[T];
  read_tile<T>(map, static_cast<const S*>(data), image, pixel, count, at, maximum);
}

// Source rows to enlarged ones.
template <class A, int T>
class Enlarger {
 public:
  Enlarger(const ClassMap& map, Read<A> read)
      : map_(map), read_(read), source_(map.classes * T + kBeyond<A>) {}

  void run(const Strip<A, T>& strip, const void* data, int64_t image, int plane, int row,
           A* enlarged) const {
    const int64_t line = plane * map_.size[1] + row;
    read_(map_, data, image, line * map_.size[2] + strip.source, strip.sources, source_.get());
    enlarge(strip, int(map_.classes), source_.get(), enlarged);
  }

 private:
  const ClassMap& map_;
  const Read<A> read_;
  const Scratch<A> source_;  // [C][T] and what is beyond
};

// The R enlarged rows that a result row blends, of those around it: the lower plane's lower and
// upper one, then the upper plane's.
constexpr int kAround = 4;
SEGUNC_HD int enlarged_rows(const ClassMap& map) { return map.size[0] > 1 ? kAround : kAround / 2; }

template <class A, int R>
struct Blend {
  int row[R];
  A share[R];
};

// Calls run(blend) with the rows that have a share. `plane` and `row` are the weights of the upper
// neighbours.
template <class A, class Run>
SEGUNC_HD void with_blend(A plane, A row, Run&& run) {
  const A rest = A(1) - row, other = A(1) - plane;
  if (plane > A(0) && row > A(0))
    run(Blend<A, 4>{{0, 1, 2, 3}, {other * rest, other * row, plane * rest, plane * row}});
  else if (plane > A(0))
    run(Blend<A, 2>{{0, 2}, {other, plane}});
  else if (row > A(0))
    run(Blend<A, 2>{{0, 1}, {rest, row}});
  else
    run(Blend<A, 1>{{0}, {A(1)}});
}

// The logits of n columns of a result row, and their maximum over the classes.
template <int T, class A, int R>
SEGUNC_HD void blend_rows(const Blend<A, R>& blend, const A* const (&around)[kAround], int C, int n,
                          A* __restrict tile, A* __restrict maximum) {
  const A* rows[R];
  A share[R];
  for (int r = 0; r < R; ++r) rows[r] = around[blend.row[r]], share[r] = blend.share[r];
  for (int j = 0; j < n; j += kStep<A>) {
    Pack<A> most[kPacks];
    for (Pack<A>& m : most) m = Pack<A>{} - std::numeric_limits<A>::infinity();
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 2
      for (int k = 0; k < kPacks; ++k) {
        const int at = c * T + j + k * kLanes<A>;
        Pack<A> v = share[0] * load_pack(rows[0] + at);
        for (int r = 1; r < R; ++r) v += share[r] * load_pack(rows[r] + at);
        store_pack(tile + at, v);
        most[k] = v > most[k] ? v : most[k];
      }
    for (int k = 0; k < kPacks; ++k) store_pack(maximum + j + k * kLanes<A>, most[k]);
  }
}

// Interpolated counterpart of StoredTiles, with units as in ResultBands.
template <class A, int T>
class InterpolatedTiles {
 public:
  using Number = A;
  static constexpr int kWidth = T;

  InterpolatedTiles(const ClassMap& map, const Interpolation& to, const void* const* samples,
                    int64_t count, Read<A> read)
      : map_(map),
        to_(to),
        samples_(samples),
        count_(count),
        bands_(map, to),
        planes_(axis_of<A>(map, to, 0)),
        rows_(axis_of<A>(map, to, 1)),
        strips_(strips_of<Strip<A, T>>(axis_of<A>(map, to, 2))),
        enlarger_(map, read),
        enlarged_(kAround * count * map.classes * T) {
    for (int i = 0; i < kAround; ++i) around_[i] = enlarged_.get() + i * count * map.classes * T;
  }

  template <class Body>
  SEGUNC_HD void for_tiles(int64_t unit, Body&& body) {
    const ResultBands::Unit at = bands_.unit(unit);
    const int plane = int(at.plane);
    if (planes_.empty(plane)) return;
    for (const Strip<A, T>& strip : strips_) {
      held_[0] = held_[1] = kNone;
      for (int row = int(at.first), next = row; row < at.end; row = next) {
        const int lower = rows_.lower(row);
        next = int(std::min<int64_t>(rows_.end(lower), at.end));
        hold(strip, at.image, plane, lower, rows_.weight(next - 1) > A(0));
        for (int o = planes_.begin(plane); o < planes_.end(plane); ++o)
          for (int i = row; i < next; ++i) {
            plane_weight_ = planes_.weight(o);
            row_weight_ = rows_.weight(i);
            const int64_t pixel = (o * to_.size[1] + i) * to_.size[2] + strip.first;
            if (strip.count == T)
              body(at.image, pixel, std::integral_constant<int, T>{});
            else
              body(at.image, pixel, strip.count);
          }
      }
    }
  }

  // The tile that for_tiles is at.
  void read(int64_t sample, int64_t, int64_t, int n, A* tile, A* maximum) const {
    const int C = int(map_.classes);
    const int64_t offset = sample * C * T;
    const A* const around[kAround] = {around_[0] + offset, around_[1] + offset, around_[2] + offset,
                                      around_[3] + offset};
    with_blend(plane_weight_, row_weight_, [&](const auto& blend) __attribute__((always_inline)) {
      blend_rows<T>(blend, around, C, n, tile, maximum);
    });
  }
  // Enlarged rows are in the cache.
  SEGUNC_HD Ahead<A> ahead(int64_t, int64_t, int64_t) const { return {enlarged_.get(), 0}; }
  SEGUNC_HD int64_t next(int64_t pixel) const { return pixel + to_.size[2]; }

 private:
  static constexpr int kNone = -1;

  // Makes around_ the enlarged rows of all samples around result rows with the lower neighbour row.
  void hold(const Strip<A, T>& strip, int64_t image, int plane, int row, bool upper) {
    if (held_[1] == row) {
      std::swap(held_[0], held_[1]);
      for (int i = 0; i < kAround; i += 2) std::swap(around_[i], around_[i + 1]);
    }
    for (int i = 0; i <= int(upper); ++i) {
      if (held_[i] == row + i) continue;
      held_[i] = row + i;
      for (int above = 0; above <= int(planes_.has_upper(plane)); ++above)
        for (int64_t s = 0; s < count_; ++s)
          enlarger_.run(strip, samples_[s], image, plane + above, row + i,
                        around_[2 * above + i] + s * map_.classes * T);
    }
  }

  const ClassMap& map_;
  const Interpolation& to_;
  const void* const* samples_;
  const int64_t count_;
  const ResultBands bands_;
  const Axis<A> planes_, rows_;
  const std::vector<Strip<A, T>> strips_;
  const Enlarger<A, T> enlarger_;
  const Scratch<A> enlarged_;            // [kAround][count][C][T]
  A* around_[kAround] = {};              // of all samples
  int held_[2] = {kNone, kNone};         // the source rows there
  A plane_weight_ = 0, row_weight_ = 0;  // of the upper neighbours of the tile's row
};

// Calls run(tiles) with the tiles of samples, interpolated or as they are.
template <class S, int T, class Run>
SEGUNC_HD void with_tiles(const ClassMap& map, const Interpolation& to, const void* const* samples,
                          int64_t count, Run&& run) {
  if (to.used) {
    InterpolatedTiles<accumulate_t<S>, T> tiles(map, to, samples, count, read_source<S, T>);
    run(tiles);
  } else {
    StoredTiles<S, T> tiles(map, samples, count);
    run(tiles);
  }
}

}  // namespace tiles
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
