// Means over components on a CPU.
//
// Sums are in double, in raster order within a slab, a long run's in lanes counted from its first
// pixel, and over slabs in the order of the joins. None of it follows from the threads.
#include "slabs.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace slabs;

// In lanes, element i of each sixteen in lane i, which are then folded in halves.
template <class S>
[[gnu::noinline]] double sum_long(const S* values, int64_t n) {
  constexpr int kLanes = 16;
  double lane[kLanes] = {};
  for (; n >= kLanes; n -= kLanes, values += kLanes)
    for (int i = 0; i < kLanes; ++i) lane[i] += to_accumulate(values[i]);
  for (int i = 0; i < n; ++i) lane[i] += to_accumulate(values[i]);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

template <class S>
SEGUNC_HD double sum_of(const S* values, int64_t n) {
  if (n >= 8) return sum_long(values, n);
  double sum = to_accumulate(values[0]);
  for (int64_t i = 1; i < n; ++i) sum += to_accumulate(values[i]);
  return sum;
}

// NaN if the total is not finite.
template <class S>
SEGUNC_HD S mean_of(double total, int32_t size) {
  return from_accumulate<S>(accumulate_t<S>(total / size + (total - total)));
}

// Sums of a slab's parts; results: [parts], the mean of each that is not at the border.
template <class S>
void sum_slab(const Group& g, int64_t s, const S* values, const Sums& sums, S* __restrict results) {
  const Slab& slab = g.slab(s);
  double* __restrict totals = sums.totals.get();
  int32_t* __restrict sizes = sums.sizes.get();
  std::fill_n(totals, slab.parts, 0.0);
  std::fill_n(sizes, slab.parts, 0);
  for (int64_t r = slab.first_row; r < slab.first_row + slab.rows; ++r) {
    const S* row = values + g.batch_pixel(r);
    const int32_t* part_of = g.parts_of_runs(slab) + g.run_at(r);
    for_pieces(
        g.row_starts(r), g.map.width,
        [&](int32_t run, int64_t begin, int64_t end) {
          const int32_t part = part_of[run];
          if (part < 0) return;
          totals[part] += sum_of(row + begin, end - begin);
          sizes[part] += int32_t(end - begin);
        },
        [&](int32_t run, int64_t begin, Bits bits) {
          for (int i = 0; i < kWord; ++i) {
            const int32_t part = part_of[run += bits >> i & 1];
            if (part < 0) continue;
            totals[part] += to_accumulate(row[begin + i]);
            ++sizes[part];
          }
        });
  }
  for (int32_t i = 0; i < slab.parts; ++i) results[i] = mean_of<S>(totals[i], sizes[i]);
  Border* border = g.borders_of(s);
  for (int32_t i = 0; i < slab.borders; ++i)
    border[i].sum = {totals[border[i].part], sizes[border[i].part]};
}

}  // namespace

void component_mean(const ComponentMeanParams& p, const Parallel& parallel) {
  tiles::with_dtype(p.dtype, [&](auto s) {
    using S = decltype(s);
    for_groups<S>(
        p.map, parallel,
        [&](const Group& g, int64_t s, const Sums& sums, S* means) {
          sum_slab(g, s, static_cast<const S*>(p.values), sums, means);
        },
        [&](const Group& g, S* means) {
          auto fill = [&](int64_t begin, int64_t end) {
            for (int64_t s = begin; s < end; ++s) {
              S* own = means + g.first_pixel(g.slab(s));
              const Border* border = g.borders_of(s);
              for (int32_t i = 0; i < g.slab(s).borders; ++i) {
                const int64_t root = root_of(g.borders.get(), border[i].root);
                const Sum& sum = g.borders.get()[root].sum;
                own[border[i].part] = mean_of<S>(sum.total, sum.size);
              }
              fill_slab(g, s, own, static_cast<S*>(p.means) + g.batch_pixel(0));
            }
          };
          parallel_for(parallel, g.slabs_of(g.images), fill);
        });
  });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
