// Cross-entropy of interpolated logits on a CPU; neither the large logits nor their gradient exist.
//
// Logits are interpolated as in common/cpu/interpolation.h. Gradients gather at the width of
// enlarged rows until a source row has met all its target rows; then they shrink to its columns.
#include "../../common/cpu/gradient_bands.h"
#include "../../common/cpu/interpolation.h"
#include "../../common/cpu/parallel.h"
#include "pixels.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace tiles;

SEGUNC_HD void add_anywhere(float* p, Pack<float> v) {
  v += load_anywhere(p);
  std::memcpy(p, &v, sizeof v);
}
// Clears the numbers whose mask is 0, NaN too.
template <class A>
SEGUNC_HD Pack<A> keep(const int32_t* mask, Pack<A> v) {
  if constexpr (kLanes<A> > 1)
    return bit_cast<Pack<A>>(bit_cast<IndexPack<A>>(v) & load_indices<A>(mask));
  else
    return clear_unless(*mask, v);
}

// The way back from a pack: lane i is for source column base + i. A pack has as many turns as one
// of its source columns is the lower neighbour of target columns, and takes one of these in each.
template <class A>
struct Turn {
  alignas(kAlignment) int32_t column[kLanes<A>];
  // All bits, or 0 where there is no column, or, for upper neighbours, no weight.
  alignas(kAlignment) int32_t to_lower[kLanes<A>], to_upper[kLanes<A>];
  alignas(kAlignment) A lower_share[kLanes<A>], upper_share[kLanes<A>];
};

// A strip with its way back.
template <class A, int T>
struct TwoWayStrip : Strip<A, T> {
  int turns = 0;              // of a pack, at most
  std::vector<Turn<A>> back;  // [packs][turns] if compact

  TwoWayStrip(const math::InterpolatedAxis<A>& axis, int first) : Strip<A, T>(axis, first) {
    if constexpr (kLanes<A> > 1) plan_turns();
  }

 private:
  // Of column j, among those of its pack and lower neighbour.
  int turn_of(int j) const {
    int turn = 0;
    while ((j - turn) % kLanes<A> && this->lower(j - turn - 1) == this->lower(j)) ++turn;
    return turn;
  }

  void plan_turns() {
    for (int j = 0; j < this->count; ++j) turns = std::max(turns, turn_of(j) + 1);
    if (!this->compact) return;
    back.resize(this->packs.size() * turns);
    for (int j = 0; j < this->count; ++j) {
      Turn<A>& turn = back[j / kLanes<A> * turns + turn_of(j)];
      const int lane = this->packs[j / kLanes<A>].lower[j % kLanes<A>];
      const A weight = this->weight(j);
      turn.column[lane] = j % kLanes<A>;
      turn.to_lower[lane] = -1, turn.lower_share[lane] = A(1) - weight;
      turn.to_upper[lane] = -int32_t(weight > A(0)), turn.upper_share[lane] = weight;
    }
  }
};

// The way back: gradients of target columns, g[c * T + j], to sums over the source columns.
template <class A, int T>
SEGUNC_HD void shrink(const TwoWayStrip<A, T>& strip, int C, const A* __restrict g,
                      A* __restrict sums) {
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
            const auto taken = __builtin_shuffle(v, load_indices<A>(turn.column));
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

// The way back: a tile whose targets are taken off to the gradients of the enlarged rows.
template <bool kSmooth, int T, class A, int R>
SEGUNC_HD void unblend(const Blend<A, R>& blend, A* const (&around)[kAround],
                       const Targets<A>& targets, int C, int n, const A* __restrict tile,
                       const Pixels<A, T>& px) {
  A *rows[R], share[R];
  for (int r = 0; r < R; ++r) rows[r] = around[blend.row[r]], share[r] = blend.share[r];
  for (int j = 0; j < n; j += kLanes<A>) {
    const Pack<A> slope = load_pack(px.slope + j), factor = load_pack(px.factor + j);
    for (int c = 0; c < C; ++c) {
      const int at = c * T + j;
      Pack<A> v = math::cross_entropy_derivative(load_pack(tile + at), slope, Pack<A>{});
      if (kSmooth) v -= factor * targets.smoothing(c);
      v = keep<A>(px.valid + j, v);
      for (int r = 0; r < R; ++r) store_pack(rows[r] + at, load_pack(rows[r] + at) + share[r] * v);
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
struct Shared {
  const CrossEntropyParams& p;
  const GradientBands& bands;
  Axis<A> planes, rows;
  std::vector<TwoWayStrip<A, T>> strips;
  A *own = nullptr, *next = nullptr, *below = nullptr;  // in scratch memory

  Shared(const CrossEntropyParams& p, const GradientBands& bands)
      : p(p),
        bands(bands),
        planes(axis_of<A>(p.map, p.interpolation, 0)),
        rows(axis_of<A>(p.map, p.interpolation, 1)),
        strips(strips_of<TwoWayStrip<A, T>>(axis_of<A>(p.map, p.interpolation, 2))) {
    if (!p.grad_input) return;
    own = static_cast<A*>(p.scratch);
    next = own + bands.own_elements;
    below = next + bands.next_elements;
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
    return {below + (unit * bands.planes + plane) * bands.row, p.map.size[2]};
  }
};

// A source row of one or two planes, enlarged to a strip, and the gradients it has gathered.
template <class A>
struct Slot {
  int row = -1;  // none
  A *value[2], *grad[2];
};

template <class A, int T>
class UnitRunner {
 public:
  UnitRunner(const Shared<A, T>& shared, Read<A> read)
      : shared_(shared),
        p_(shared.p),
        C_(int(shared.p.map.classes)),
        targets_(shared.p),
        enlarger_(shared.p.map, read),
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
    const GradientBands& bands = shared_.bands;
    unit_ = unit;
    image_ = unit / bands.per_plane / bands.depth;
    plane_ = int(unit / bands.per_plane % bands.depth);
    first_ = int(unit % bands.per_plane * bands.rows);
    end_ = int(std::min(first_ + bands.rows, bands.height));
    planes_ = shared_.planes.has_upper(plane_) ? 2 : 1;
    for (double& l : lane_) l = 0;
    if (p_.grad_input) clear();
    if (!shared_.planes.empty(plane_))
      for (const TwoWayStrip<A, T>& strip : shared_.strips) run_strip(strip);
    double sum = 0;
    for (const double l : lane_) sum += l;
    if (p_.partial) p_.partial[unit] = sum;
  }

 private:
  // Where the gradient of a row of this unit gathers, `plane` planes on.
  Row<A> gradient_row(int plane, int row) const {
    if (row == end_) return shared_.row_below(unit_, plane);
    return plane ? shared_.next_row(image_, plane_, row) : shared_.own_row(image_, plane_, row);
  }

  void clear() {
    for (int plane = 0; plane < shared_.bands.planes; ++plane)
      for (int row = first_; row <= end_; ++row) {
        const Row<A> to = gradient_row(plane, row);
        for (int c = 0; c < C_; ++c)
          std::fill_n(to.data + c * to.class_stride, p_.map.size[2], A(0));
      }
  }

  void run_strip(const TwoWayStrip<A, T>& strip) {
    Slot<A>*lower = &slots_[0], *upper = &slots_[1];
    for (int row = first_; row < end_; ++row) {
      if (shared_.rows.empty(row)) continue;
      if (upper->row == row) std::swap(lower, upper);
      load(strip, *lower, row);
      if (shared_.rows.has_upper(row)) load(strip, *upper, row + 1);
      for (int o = shared_.planes.begin(plane_); o < shared_.planes.end(plane_); ++o)
        for (int i = shared_.rows.begin(row); i < shared_.rows.end(row); ++i) {
          const int64_t at =
              ((image_ * p_.interpolation.size[0] + o) * p_.interpolation.size[1] + i) *
                  p_.interpolation.size[2] +
              strip.first;
          const A by_plane = shared_.planes.weight(o), by_row = shared_.rows.weight(i);
          if (strip.count == T)
            run_row(*lower, *upper, by_plane, by_row, at, std::integral_constant<int, T>{});
          else
            run_row(*lower, *upper, by_plane, by_row, at, strip.count);
        }
    }
    for (Slot<A>& slot : slots_) release(strip, slot);
  }

  // Puts a source row into a slot, unless it is there.
  void load(const TwoWayStrip<A, T>& strip, Slot<A>& slot, int row) {
    if (slot.row == row) return;
    release(strip, slot);
    slot.row = row;
    for (int plane = 0; plane < planes_; ++plane) {
      enlarger_.run(strip, p_.input, image_, plane_ + plane, row, slot.value[plane]);
      if (p_.grad_input) std::fill_n(slot.grad[plane], C_ * T, A(0));
    }
  }

  // Hands on the gradients that a slot's row has gathered.
  void release(const TwoWayStrip<A, T>& strip, Slot<A>& slot) {
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
    const A* const values[kAround] = {lower.value[0], upper.value[0], lower.value[1],
                                      upper.value[1]};
    A* const grads[kAround] = {lower.grad[0], upper.grad[0], lower.grad[1], upper.grad[1]};
    with_blend(plane, row, [&](const auto& blend) __attribute__((always_inline)) {
      run_tile(blend, values, grads, at, n);
    });
  }

  template <int R, class N>
  void run_tile(const Blend<A, R>& blend, const A* const (&values)[kAround],
                A* const (&grads)[kAround], int64_t at, N n) {
    A* tile = tile_.get();
    read_pixels(p_, targets_, at, n, px_);
    for (int j = n; j % kLanes<A>; ++j) px_.valid[j] = 0;
    blend_rows<T>(blend, values, C_, n, tile, px_.maximum);
    if (targets_.offset) adjust_logits(targets_, at, C_, n, tile, px_);
    read_logits(targets_, C_, n, tile, px_);
    exponentials<T>(C_, n, tile, px_.maximum, Ahead<A>{tile, 0}, Sum<A>{px_.sum});
    write_losses(p_, targets_, image_, at, n, px_, lane_);
    if (!p_.grad_input) return;
    take_targets_off(targets_, C_, n, tile, px_);
    if (targets_.shares.smooths())
      unblend<true>(blend, grads, targets_, C_, n, tile, px_);
    else
      unblend<false>(blend, grads, targets_, C_, n, tile, px_);
  }

  const Shared<A, T>& shared_;
  const CrossEntropyParams& p_;
  const int C_;
  const Targets<A> targets_;
  const Enlarger<A, T> enlarger_;
  // [C][T] of exponentials, of sums over source columns, of the slots.
  Scratch<A> tile_, sums_, enlarged_;
  Slot<A> slots_[2];
  Pixels<A, T> px_;
  alignas(kAlignment) double lane_[T];
  int64_t unit_ = 0, image_ = 0;
  int plane_ = 0, first_ = 0, end_ = 0, planes_ = 1;
};

// Adds up what waits in scratch memory for source rows [begin, end) of all images, and writes what
// has gathered there.
template <class S, int T>
void finish_rows(const Shared<accumulate_t<S>, T>& shared, int64_t begin, int64_t end) {
  using A = accumulate_t<S>;
  const CrossEntropyParams& p = shared.p;
  const GradientBands& bands = shared.bands;
  const int C = int(p.map.classes);
  const int64_t width = p.map.size[2];
  Scratch<A> tile_room(bands.buffered ? int64_t(C) * T : 0);
  Scratch<S> row_room(bands.buffered ? int64_t(C) * T : 0);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t row = index % bands.height, plane = index / bands.height % bands.depth;
    const int64_t image = index / bands.height / bands.depth;
    const int64_t band = row / bands.rows, unit = (index / bands.height) * bands.per_plane + band;
    const bool below = row > 0 && row % bands.rows == 0;
    const Row<A> own = shared.own_row(image, plane, row);
    const auto add = [&](const Row<A>& from) {
      for (int c = 0; c < C; ++c) {
        A* __restrict to = own.data + c * own.class_stride;
        const A* __restrict more = from.data + c * from.class_stride;
        for (int64_t i = 0; i < width; ++i) to[i] += more[i];
      }
    };
    if (below) add(shared.row_below(unit - 1, 0));
    if (plane > 0) add(shared.next_row(image, plane - 1, row));
    if (plane > 0 && below) add(shared.row_below(unit - 1 - bands.per_plane, 1));
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
void run(const CrossEntropyParams& p, const GradientBands& bands, const Parallel& parallel) {
  using A = accumulate_t<S>;
  const Shared<A, T> shared(p, bands);
  auto run_units = [&](int64_t begin, int64_t end) {
    UnitRunner<A, T> runner(shared, read_source<S, T>);
    for (int64_t unit = begin; unit < end; ++unit) runner.run(unit);
  };
  parallel_for(parallel, bands.units, run_units);
  if (!p.grad_input) return;
  auto finish = [&](int64_t begin, int64_t end) { finish_rows<S, T>(shared, begin, end); };
  parallel_for(parallel, shared.row_index(bands.images, 0, 0), finish);
}

}  // namespace

void cross_entropy_interpolated(const CrossEntropyParams& p, const GradientBands& bands,
                                const Parallel& parallel) {
  // Strips of many classes are narrower, so that a thread's rows stay in its L2 cache.
  constexpr int64_t kWideClasses = 32;
  with_dtype(p.dtype, [&](auto s) {
    using S = decltype(s);
    if constexpr (std::is_same_v<S, double>)
      run<S, 32>(p, bands, parallel);
    else if (p.map.classes <= kWideClasses)
      run<S, 128>(p, bands, parallel);
    else
      run<S, 64>(p, bands, parallel);
  });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
