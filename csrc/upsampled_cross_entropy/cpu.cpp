// Cross-entropy of interpolated logits on a CPU; neither the large logits nor their gradient exist.
//
// All target rows between two source rows blend these two. So a source row is enlarged to the
// target's columns once, target rows blend enlarged rows, and gradients gather at the enlarged
// width until a source row has met all its target rows; then they shrink to its columns. In volumes
// rows come from two planes, and target rows blend up to four. This is done strip by strip: few
// enough target columns that enlarged rows, their gradients and the tile of exponentials stay in
// the cache.
#include <vector>

#include "../common/cpu/cross_entropy_tile.h"
#include "../common/cpu/parallel.h"
#include "../math/interpolate.h"
#include "bands.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace tiles;

// Positions of the target by their lower neighbour in the source.
template <class A>
class Axis {
 public:
  Axis(int64_t source, int64_t size, bool align_corners)
      : axis_(math::interpolated_axis<A>(int(source), int(size), align_corners)),
        intervals_(source) {
    for (int i = 0; i < int(source); ++i)
      intervals_[i] = {math::first_position(axis_, i), math::first_position(axis_, i + 1)};
  }

  // Positions begin(i) .. end(i) - 1 have the lower neighbour i.
  int begin(int i) const { return intervals_[i].begin; }
  int end(int i) const { return intervals_[i].end; }
  bool empty(int i) const { return begin(i) == end(i); }
  // Of the upper neighbour.
  A weight(int position) const { return math::neighbours_of(axis_, position).weight; }
  // Whether upper neighbours are read: weights grow from begin to end.
  bool has_upper(int i) const { return !empty(i) && weight(end(i) - 1) > A(0); }

 private:
  struct Interval {
    int begin, end;
  };
  math::InterpolatedAxis<A> axis_;
  std::vector<Interval> intervals_;
};

typedef int32_t Integers __attribute__((vector_size(kPackBytes)));

template <class V, class T>
SEGUNC_HD V load_anywhere(const T* p) {
  V pack;
  std::memcpy(&pack, p, sizeof pack);
  return pack;
}
SEGUNC_HD void add_anywhere(float* p, Pack<float> v) {
  v += load_anywhere<Pack<float>>(p);
  std::memcpy(p, &v, sizeof v);
}
// Clears the numbers whose mask is 0, NaN too.
template <class A>
SEGUNC_HD Pack<A> keep(const int32_t* mask, Pack<A> v) {
  if constexpr (kLanes<A> > 1)
    return bit_cast<Pack<A>>(bit_cast<Integers>(v) & load_anywhere<Integers>(mask));
  else
    return clear_unless(*mask, v);
}

// A pack of neighbouring target columns: the source columns that each blends.
template <class A>
struct Columns {
  int base;  // the lower neighbour of the first
  alignas(kAlignment) int32_t lower[kLanes<A>], upper[kLanes<A>];  // counted from base
  alignas(kAlignment) A weight[kLanes<A>];
};

// The way back from a pack: lane i is for source column base + i. A pack has as many turns as one
// of its source columns is the lower neighbour of target columns, and takes one of these in each.
template <class A>
struct Turn {
  alignas(kAlignment) int32_t column[kLanes<A>];
  // All bits, or 0 where there is no column, or, for upper neighbours, no weight.
  alignas(kAlignment) int32_t to_lower[kLanes<A>], to_upper[kLanes<A>];
  alignas(kAlignment) A lower_share[kLanes<A>], upper_share[kLanes<A>];
};

// A run of at most T target columns and the at most T source columns that they blend.
template <class A, int T>
struct Strip {
  static constexpr int kWidth = kLanes<A>;

  int first, count = 0;     // target columns
  int source, sources = 0;  // source columns
  std::vector<Columns<A>> packs;
  // Whether the neighbours of a pack always fit a pack, which is then read as a whole.
  bool compact = true;
  int turns = 0;              // of a pack, at most
  std::vector<Turn<A>> back;  // [packs][turns] if compact

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
    if constexpr (kWidth > 1) plan_turns();
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

  // Of column j, among those of its pack and lower neighbour.
  int turn_of(int j) const {
    int turn = 0;
    while ((j - turn) % kWidth && lower(j - turn - 1) == lower(j)) ++turn;
    return turn;
  }

  void plan_turns() {
    for (int j = 0; j < count; ++j) turns = std::max(turns, turn_of(j) + 1);
    if (compact) back.resize(packs.size() * turns);
    for (int j = 0; j < count && compact; ++j) {
      Turn<A>& turn = back[j / kWidth * turns + turn_of(j)];
      const int lane = packs[j / kWidth].lower[j % kWidth];
      turn.column[lane] = j % kWidth;
      turn.to_lower[lane] = -1, turn.lower_share[lane] = A(1) - weight(j);
      turn.to_upper[lane] = -int32_t(weight(j) > A(0)), turn.upper_share[lane] = weight(j);
    }
  }
};

// Room beyond the T columns of a row, for packs that begin within it.
template <class A>
constexpr int kBeyond = 2 * kLanes<A>;

// One row of source columns, at[c * T + i], to the strip's target columns.
template <class A, int T>
SEGUNC_HD void enlarge(const Strip<A, T>& strip, int C, const A* __restrict at,
                       A* __restrict enlarged) {
  if constexpr (kLanes<A> > 1) {
    if (strip.compact) {
      for (const Columns<A>& columns : strip.packs) {
        const auto lower = load_anywhere<Integers>(columns.lower);
        const auto upper = load_anywhere<Integers>(columns.upper);
        const auto weight = load_pack(columns.weight);
        for (int c = 0; c < C; ++c) {
          const auto v = load_anywhere<Pack<A>>(at + c * T + columns.base);
          store_pack(enlarged + c * T, math::interpolate(__builtin_shuffle(v, lower),
                                                         __builtin_shuffle(v, upper), weight));
        }
        enlarged += kLanes<A>;
      }
      return;
    }
  }
  for (int j = 0; j < int(strip.packs.size()) * kLanes<A>; ++j)
    for (int c = 0; c < C; ++c)
      enlarged[c * T + j] = math::interpolate(at[c * T + strip.lower(j)],
                                              at[c * T + strip.upper(j)], strip.weight(j));
}

// The way back: gradients of target columns, g[c * T + j], to sums over the source columns.
template <class A, int T>
SEGUNC_HD void shrink(const Strip<A, T>& strip, int C, const A* __restrict g, A* __restrict sums) {
  constexpr int kPitch = T + kBeyond<A>;
  std::fill_n(sums, C * kPitch, A(0));
  if constexpr (kLanes<A> > 1) {
    if (strip.compact) {
      const Turn<A>* turns = strip.back.data();
      for (const Columns<A>& columns : strip.packs) {
        for (int c = 0; c < C; ++c) {
          const Pack<A> v = load_pack(g + c * T);
          Pack<A> to_lower = {}, to_upper = {};
          for (int i = 0; i < strip.turns; ++i) {
            const Turn<A>& turn = turns[i];
            const auto taken = __builtin_shuffle(v, load_anywhere<Integers>(turn.column));
            to_lower += keep<A>(turn.to_lower, taken * load_pack(turn.lower_share));
            to_upper += keep<A>(turn.to_upper, taken * load_pack(turn.upper_share));
          }
          add_anywhere(sums + c * kPitch + columns.base, to_lower);
          add_anywhere(sums + c * kPitch + columns.base + 1, to_upper);
        }
        turns += strip.turns;
        g += kLanes<A>;
      }
      return;
    }
  }
  for (int j = 0; j < strip.count; ++j) {
    const int lower = strip.lower(j), upper = strip.upper(j);
    const A weight = strip.weight(j);
    for (int c = 0; c < C; ++c) {
      const A v = g[c * T + j];
      sums[c * kPitch + lower] += (A(1) - weight) * v;
      if (weight > A(0)) sums[c * kPitch + upper] += weight * v;
    }
  }
}

// R enlarged rows, their gradients, and the shares they have in a target row.
template <class A, int R>
struct Rows {
  const A* value[R];
  A* grad[R];
  A share[R];
};

// The logits of n columns of a target row, and their maximum over the classes.
template <int T, class A, int R>
SEGUNC_HD void blend(const Rows<A, R>& rows, int C, int n, A* __restrict tile,
                     A* __restrict maximum) {
  for (int j = 0; j < n; j += kStep<A>) {
    Pack<A> most[kPacks];
    for (Pack<A>& m : most) m = Pack<A>{} - std::numeric_limits<A>::infinity();
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 2
      for (int k = 0; k < kPacks; ++k) {
        const int at = c * T + j + k * kLanes<A>;
        Pack<A> v = rows.share[0] * load_pack(rows.value[0] + at);
        for (int r = 1; r < R; ++r) v += rows.share[r] * load_pack(rows.value[r] + at);
        store_pack(tile + at, v);
        most[k] = v > most[k] ? v : most[k];
      }
    for (int k = 0; k < kPacks; ++k) store_pack(maximum + j + k * kLanes<A>, most[k]);
  }
}

// The way back: a tile whose targets are taken off to the gradients of the enlarged rows.
template <bool kSmooth, int T, class A, int R>
SEGUNC_HD void unblend(const Rows<A, R>& rows, const Targets<A>& targets, int C, int n,
                       const A* __restrict tile, const Pixels<A, T>& px) {
  for (int j = 0; j < n; j += kLanes<A>) {
    const Pack<A> factor = load_pack(px.sum + j), slope = load_pack(px.slope + j);
    for (int c = 0; c < C; ++c) {
      const int at = c * T + j;
      Pack<A> v = load_pack(tile + at) * factor;
      if (kSmooth) v -= slope * targets.spread_of(c);
      v = keep<A>(px.valid + j, v);
      for (int r = 0; r < R; ++r)
        store_pack(rows.grad[r] + at, load_pack(rows.grad[r] + at) + rows.share[r] * v);
    }
  }
}

// Where the gradient of a source row gathers.
template <class A>
struct Row {
  A* data;
  int64_t class_stride;
};

// What all threads share. A: the accumulate type.
template <class A, int T>
struct Plan {
  const UpsampledCrossEntropyParams& p;
  Bands bands;
  Axis<A> planes, rows;
  std::vector<Strip<A, T>> strips;
  A *own = nullptr, *next = nullptr, *below = nullptr;  // in scratch memory

  explicit Plan(const UpsampledCrossEntropyParams& p)
      : p(p),
        bands(p),
        planes(p.map.size[0], p.interpolation.size[0], p.interpolation.align_corners),
        rows(p.map.size[1], p.interpolation.size[1], p.interpolation.align_corners) {
    const auto axis = math::interpolated_axis<A>(int(p.map.size[2]), int(p.interpolation.size[2]),
                                                 p.interpolation.align_corners);
    for (int first = 0; first < axis.size; first += strips.back().count)
      strips.emplace_back(axis, first);
    if (!p.grad_input) return;
    own = static_cast<A*>(p.scratch);
    next = own + bands.own_elements();
    below = next + bands.next_elements();
  }

  int64_t row_index(int64_t image, int64_t plane, int64_t row) const {
    return (image * bands.depth + plane) * bands.height + row;
  }
  // Of a plane's own rows, of the rows of the plane after it, of the row below a unit's band.
  Row<A> own_row(int64_t image, int64_t plane, int64_t row) const {
    const ClassMap& map = p.grad_map;
    if (bands.buffered) return {own + row_index(image, plane, row) * bands.row, map.size[2]};
    return {static_cast<A*>(p.grad_input) + image * map.image_stride + plane * map.stride[0] +
                row * map.stride[1],
            map.class_stride};
  }
  Row<A> next_row(int64_t image, int64_t plane, int64_t row) const {
    return {next + row_index(image, plane, row) * bands.row, p.map.size[2]};
  }
  Row<A> row_below(int64_t unit, int64_t plane) const {
    return {below + (unit * bands.planes() + plane) * bands.row, p.map.size[2]};
  }
};

// Reads `count` neighbouring source columns from `pixel` on into rows at[c * T + i].
template <class A>
using Read = void (*)(const UpsampledCrossEntropyParams& p, int64_t image, int64_t pixel, int count,
                      A* at);

template <class S, int T>
void read_source(const UpsampledCrossEntropyParams& p, int64_t image, int64_t pixel, int count,
                 accumulate_t<S>* at) {
  alignas(kAlignment) accumulate_t<S> maximum[T];
  read_tile<T>(p.map, static_cast<const S*>(p.input), image, pixel, count, at, maximum);
}

// A source row of one or two planes, enlarged to a strip, and the gradients it has gathered.
template <class A>
struct Slot {
  int row = -1;  // none
  A *value[2], *grad[2];
};

template <class A, int T>
class UnitRunner {
 public:
  UnitRunner(const Plan<A, T>& plan, Read<A> read)
      : plan_(plan),
        p_(plan.p),
        read_(read),
        C_(int(plan.p.map.classes)),
        targets_(plan.p),
        source_(int64_t(C_) * T + kBeyond<A>),
        tile_(int64_t(C_) * T),
        sums_(int64_t(C_) * (T + kBeyond<A>)),
        enlarged_(8 * int64_t(C_) * T) {
    A* room = enlarged_.get();
    for (Slot<A>& slot : slots_)
      for (int plane = 0; plane < 2; ++plane) {
        slot.value[plane] = room, room += int64_t(C_) * T;
        slot.grad[plane] = room, room += int64_t(C_) * T;
      }
  }

  void run(int64_t unit) {
    const Bands& bands = plan_.bands;
    unit_ = unit;
    image_ = unit / bands.per_plane / bands.depth;
    plane_ = int(unit / bands.per_plane % bands.depth);
    first_ = int(unit % bands.per_plane * bands.rows);
    end_ = int(std::min(first_ + bands.rows, bands.height));
    planes_ = plan_.planes.has_upper(plane_) ? 2 : 1;
    for (double& l : lane_) l = 0;
    if (p_.grad_input) clear();
    if (!plan_.planes.empty(plane_))
      for (const Strip<A, T>& strip : plan_.strips) run_strip(strip);
    double sum = 0;
    for (const double l : lane_) sum += l;
    if (p_.partial) p_.partial[unit] = sum;
  }

 private:
  // Where the gradient of a row of this unit gathers, `plane` planes on.
  Row<A> gradient_row(int plane, int row) const {
    if (row == end_) return plan_.row_below(unit_, plane);
    return plane ? plan_.next_row(image_, plane_, row) : plan_.own_row(image_, plane_, row);
  }

  void clear() {
    for (int plane = 0; plane < plan_.bands.planes(); ++plane)
      for (int row = first_; row <= end_; ++row) {
        const Row<A> to = gradient_row(plane, row);
        for (int c = 0; c < C_; ++c)
          std::fill_n(to.data + c * to.class_stride, p_.map.size[2], A(0));
      }
  }

  void run_strip(const Strip<A, T>& strip) {
    Slot<A>*lower = &slots_[0], *upper = &slots_[1];
    for (int row = first_; row < end_; ++row) {
      if (plan_.rows.empty(row)) continue;
      if (upper->row == row) std::swap(lower, upper);
      load(strip, *lower, row);
      if (plan_.rows.has_upper(row)) load(strip, *upper, row + 1);
      for (int o = plan_.planes.begin(plane_); o < plan_.planes.end(plane_); ++o)
        for (int i = plan_.rows.begin(row); i < plan_.rows.end(row); ++i) {
          const int64_t at =
              ((image_ * p_.interpolation.size[0] + o) * p_.interpolation.size[1] + i) *
                  p_.interpolation.size[2] +
              strip.first;
          const A by_plane = plan_.planes.weight(o), by_row = plan_.rows.weight(i);
          if (strip.count == T)
            run_row(*lower, *upper, by_plane, by_row, at, std::integral_constant<int, T>{});
          else
            run_row(*lower, *upper, by_plane, by_row, at, strip.count);
        }
    }
    for (Slot<A>& slot : slots_) release(strip, slot);
  }

  // Puts a source row into a slot, unless it is there.
  void load(const Strip<A, T>& strip, Slot<A>& slot, int row) {
    if (slot.row == row) return;
    release(strip, slot);
    slot.row = row;
    for (int plane = 0; plane < planes_; ++plane) {
      const int64_t line = int64_t(plane_ + plane) * p_.map.size[1] + row;
      read_(p_, image_, line * p_.map.size[2] + strip.source, strip.sources, source_.get());
      enlarge(strip, C_, source_.get(), slot.value[plane]);
      if (p_.grad_input) std::fill_n(slot.grad[plane], C_ * T, A(0));
    }
  }

  // Hands on the gradients that a slot's row has gathered.
  void release(const Strip<A, T>& strip, Slot<A>& slot) {
    if (slot.row >= 0 && p_.grad_input)
      for (int plane = 0; plane < planes_; ++plane) {
        shrink(strip, C_, slot.grad[plane], sums_.get());
        const Row<A> to = gradient_row(plane, slot.row);
        for (int c = 0; c < C_; ++c) {
          A* __restrict out = to.data + c * to.class_stride + strip.source;
          const A* __restrict sum = sums_.get() + c * (T + kBeyond<A>);
          for (int i = 0; i < strip.sources; ++i) out[i] += sum[i];
        }
      }
    slot.row = -1;
  }

  // The n columns of a target row. `plane` and `row` are the weights of the upper neighbours.
  template <class N>
  SEGUNC_HD void run_row(const Slot<A>& lower, const Slot<A>& upper, A plane, A row, int64_t at,
                         N n) {
    const A rest = A(1) - row, other = A(1) - plane;
    if (plane > A(0) && row > A(0))
      run_tile(Rows<A, 4>{{lower.value[0], upper.value[0], lower.value[1], upper.value[1]},
                          {lower.grad[0], upper.grad[0], lower.grad[1], upper.grad[1]},
                          {other * rest, other * row, plane * rest, plane * row}},
               at, n);
    else if (plane > A(0))
      run_tile(
          Rows<A, 2>{
              {lower.value[0], lower.value[1]}, {lower.grad[0], lower.grad[1]}, {other, plane}},
          at, n);
    else if (row > A(0))
      run_tile(
          Rows<A, 2>{{lower.value[0], upper.value[0]}, {lower.grad[0], upper.grad[0]}, {rest, row}},
          at, n);
    else
      run_tile(Rows<A, 1>{{lower.value[0]}, {lower.grad[0]}, {A(1)}}, at, n);
  }

  template <int R, class N>
  void run_tile(const Rows<A, R>& rows, int64_t at, N n) {
    A* tile = tile_.get();
    read_pixels(p_, targets_, at, n, px_);
    for (int j = n; j % kLanes<A>; ++j) px_.valid[j] = 0;
    blend<T>(rows, C_, n, tile, px_.maximum);
    read_logits(targets_, C_, n, tile, px_);
    exponentials<T>(C_, n, tile, px_.maximum, Ahead<A>{tile, 0}, Sum<A>{px_.sum});
    write_losses(p_, targets_, at, n, px_, lane_);
    if (!p_.grad_input) return;
    take_targets_off(targets_, C_, n, tile, px_);
    if (targets_.spread > A(0))
      unblend<true>(rows, targets_, C_, n, tile, px_);
    else
      unblend<false>(rows, targets_, C_, n, tile, px_);
  }

  const Plan<A, T>& plan_;
  const UpsampledCrossEntropyParams& p_;
  const Read<A> read_;
  const int C_;
  const Targets<A> targets_;
  // [C][T] of source columns, of exponentials, of sums over source columns, of the slots.
  Scratch<A> source_, tile_, sums_, enlarged_;
  Slot<A> slots_[2];
  Pixels<A, T> px_;
  alignas(kAlignment) double lane_[T];
  int64_t unit_ = 0, image_ = 0;
  int plane_ = 0, first_ = 0, end_ = 0, planes_ = 1;
};

// Adds up what waits in scratch memory for source rows [begin, end) of all images, and writes what
// has gathered there.
template <class S, int T>
void finish_rows(const Plan<accumulate_t<S>, T>& plan, int64_t begin, int64_t end) {
  using A = accumulate_t<S>;
  const UpsampledCrossEntropyParams& p = plan.p;
  const Bands& bands = plan.bands;
  const int C = int(p.map.classes);
  const int64_t width = p.map.size[2];
  Scratch<A> tile_room(bands.buffered ? int64_t(C) * T : 0);
  Scratch<S> row_room(bands.buffered ? int64_t(C) * T : 0);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t row = index % bands.height, plane = index / bands.height % bands.depth;
    const int64_t image = index / bands.height / bands.depth;
    const int64_t band = row / bands.rows, unit = (index / bands.height) * bands.per_plane + band;
    const bool below = row > 0 && row % bands.rows == 0;
    const Row<A> own = plan.own_row(image, plane, row);
    const auto add = [&](const Row<A>& from) {
      for (int c = 0; c < C; ++c) {
        A* __restrict to = own.data + c * own.class_stride;
        const A* __restrict more = from.data + c * from.class_stride;
        for (int64_t i = 0; i < width; ++i) to[i] += more[i];
      }
    };
    if (below) add(plan.row_below(unit - 1, 0));
    if (plane > 0) add(plan.next_row(image, plane - 1, row));
    if (plane > 0 && below) add(plan.row_below(unit - 1 - bands.per_plane, 1));
    if (!bands.buffered) continue;
    for (int64_t column = 0; column < width; column += T) {
      const int n = int(std::min<int64_t>(T, width - column));
      A* tile = tile_room.get();
      for (int c = 0; c < C; ++c)
        std::copy_n(own.data + c * own.class_stride + column, n, tile + c * T);
      write_tile<T>(p.grad_map, static_cast<S*>(p.grad_input), image,
                    (plane * bands.height + row) * width + column, n, tile,
                    WriteBuffer<S>{row_room.get(), false}, [](int, int, A v) { return v; });
    }
  }
}

template <class S, int T>
void run(const UpsampledCrossEntropyParams& p, const Parallel& parallel) {
  using A = accumulate_t<S>;
  const Plan<A, T> plan(p);
  auto run_units = [&](int64_t begin, int64_t end) {
    UnitRunner<A, T> runner(plan, read_source<S, T>);
    for (int64_t unit = begin; unit < end; ++unit) runner.run(unit);
  };
  parallel_for(parallel, plan.bands.units(), run_units);
  if (!p.grad_input) return;
  auto finish = [&](int64_t begin, int64_t end) { finish_rows<S, T>(plan, begin, end); };
  parallel_for(parallel, plan.row_index(plan.bands.images, 0, 0), finish);
}

}  // namespace

void upsampled_cross_entropy(const UpsampledCrossEntropyParams& p, const Parallel& parallel) {
  // Strips of many classes are narrower, so that a thread's rows stay in its L2 cache.
  constexpr int64_t kWideClasses = 32;
  with_dtype(p.dtype, [&](auto s) {
    using S = decltype(s);
    if constexpr (std::is_same_v<S, double>)
      run<S, 32>(p, parallel);
    else if (p.map.classes <= kWideClasses)
      run<S, 128>(p, parallel);
    else
      run<S, 64>(p, parallel);
  });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
