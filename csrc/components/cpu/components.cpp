// Connected components and their means on a CPU: one bit a pixel, "a run starts here", and one
// integer a run, a run being a maximal stretch of one label in a row.
//
// Rows that touch are compared 64 pixels at a time (row_bits.h), and only runs are united. Images
// are cut into slabs of a few lines, a line being a row or, in volumes, a slice:
//   label    in parallel   start bits; runs to parts, the components of a slab; the parts' sums
//   join     in order      union of the parts that meet between two slabs
//   number   in parallel   ids for the parts that no earlier one took in
//   fill     in parallel   every run gets what its component got
//
// Sums are in double, in raster order within a slab, a long run's in lanes counted from its first
// pixel, and over slabs in the order of the joins. None of it follows from the threads.
#include <cmath>

#include "../../common/cpu/parallel.h"
#include "../../common/cpu/tile.h"
#include "../params.h"
#include "row_bits.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace rows;
using tiles::Scratch;

constexpr int64_t kSlabRows = 32, kSlabSlices = 8;
// Images are worked on in groups, so that scratch memory does not grow with the batch.
constexpr int64_t kGroupPixels = 1 << 24;

struct Sum {
  double total;
  int32_t size;  // in pixels
};

// Of the parts of a slab.
struct Sums {
  explicit Sums(int64_t most_parts) : totals(most_parts), sizes(most_parts) {}
  Scratch<double> totals;
  Scratch<int32_t> sizes;
};

// A part with pixels in the first or last line of its slab, which may go on in other slabs.
struct Border {
  Sum sum;       // with those of the parts that it took in
  int64_t root;  // the earlier border part that took it in, or itself
  int32_t part;
};

struct Slab {
  int64_t first_row, rows;  // counted through the group
  int32_t parts, borders;
  int32_t joined;    // parts that earlier slabs took in
  int32_t first_id;  // ids that earlier slabs of the image gave out
};

// Images of a map with the scratch memory of a pass over them. Where an array has room for every
// pixel's being a run of its own, only what is used gets touched and costs memory.
struct Group {
  explicit Group(const LabelMap& map)
      : map(map),
        line_rows(map.depth > 1 ? map.height : 1),
        slab_rows(map.depth > 1 ? kSlabSlices * map.height : kSlabRows),
        image_rows(map.depth * map.height),
        image_slabs((image_rows + slab_rows - 1) / slab_rows),
        most_images(std::clamp<int64_t>(kGroupPixels / (image_rows * map.width), 1, map.images)),
        words((map.width + kWord - 1) / kWord),
        line_pixels(line_rows * map.width),
        slabs(most_images * image_slabs),
        starts(most_images * image_rows * words),
        first_run(most_images * image_rows),
        part_of(most_images * image_rows * map.width),
        borders(slabs_of(most_images) * 2 * line_pixels),
        edge_border(slabs_of(most_images) * 2 * line_pixels) {}

  const LabelMap& map;
  const int64_t line_rows, slab_rows, image_rows, image_slabs, most_images, words, line_pixels;
  int64_t first_image = 0, images = 0;
  Scratch<Slab> slabs;
  Scratch<Bits> starts;          // [rows, words]
  Scratch<int32_t> first_run;    // [rows]: the number in its slab of a row's first run
  Scratch<int32_t> part_of;      // [pixels of slab] for each slab: a run's part, -1 if ignored
  Scratch<Border> borders;       // [2 * line_pixels] for each slab
  Scratch<int32_t> edge_border;  // [2, line_pixels] for each slab: the border part of each run of
                                 // its first and of its last line, -1 if ignored

  // Goes to the next images; false after the last.
  bool next() {
    first_image += images;
    images = std::min(most_images, map.images - first_image);
    for (int64_t s = 0; s < slabs_of(images); ++s) {
      const int64_t row = s % image_slabs * slab_rows;
      slab(s).first_row = s / image_slabs * image_rows + row;
      slab(s).rows = std::min(slab_rows, image_rows - row);
    }
    return images > 0;
  }

  int64_t slabs_of(int64_t n) const { return n * image_slabs; }
  Slab& slab(int64_t s) const { return slabs.get()[s]; }
  int64_t slab_pixels() const { return std::min(slab_rows, image_rows) * map.width; }
  int64_t first_pixel(const Slab& slab) const { return slab.first_row * map.width; }
  // In the whole batch.
  int64_t batch_pixel(int64_t row) const { return (first_image * image_rows + row) * map.width; }
  int32_t* parts_of_runs(const Slab& slab) const { return part_of.get() + first_pixel(slab); }
  Border* borders_of(int64_t s) const { return borders.get() + s * 2 * line_pixels; }
  int32_t* edge_borders(int64_t s, bool last) const {
    return edge_border.get() + (2 * s + last) * line_pixels;
  }
  int64_t border_id(int64_t s, int32_t i) const { return s * 2 * line_pixels + i; }
  int64_t slab_of_border(int64_t id) const { return id / (2 * line_pixels); }
  const Bits* row_starts(int64_t row) const { return starts.get() + row * words; }
  int32_t run_at(int64_t row) const { return first_run.get()[row]; }
  int64_t last_line(const Slab& slab) const { return slab.first_row + slab.rows - line_rows; }

  template <class L>
  const L* row_labels(int64_t row) const {
    return static_cast<const L*>(map.labels) + batch_pixel(row);
  }
  // Its runs are counted from the one at row `from`.
  template <class L>
  Row<L> row(int64_t row, int64_t from) const {
    return {row_labels<L>(row), row_starts(row), run_at(row) - run_at(from)};
  }
};

// Calls visit(other row) for the rows in [begin, end) that precede and touch a row.
template <class Visit>
SEGUNC_HD void for_touching_rows(const Group& g, int64_t row, int64_t begin, int64_t end,
                                 Visit&& visit) {
  const int64_t height = g.map.height, y = row % height;
  const auto within = [&](int64_t other) {
    if (begin <= other && other < end) visit(other);
  };
  if (y > 0) within(row - 1);
  if (g.map.depth == 1) return;
  within(row - height);
  if (!g.map.diagonal) return;
  if (y > 0) within(row - height - 1);
  if (y + 1 < height) within(row - height + 1);
}

// More runs than this in a word are met pixel by pixel: their lengths would be guessed wrong.
constexpr int kManyRuns = 16;

// Goes through a row with the number of the run: piece(run, begin, end) for pixels of one run,
// pixel by pixel with word(run before, begin, bits) where many runs start among kWord pixels.
template <class Piece, class Word>
SEGUNC_HD void for_pieces(const Bits* starts, int64_t width, Piece&& piece, Word&& word) {
  int64_t begin = 0;
  int32_t run = -1;
  for (int64_t x = 0; x < width; x += kWord) {
    Bits bits = *starts++;
    if (count(bits) > kManyRuns && x + kWord <= width) {
      if (begin < x) piece(run, begin, x);
      word(run, x, bits);
      run += count(bits);
      begin = x + kWord;
      continue;
    }
    for (; bits; bits &= bits - 1) {
      const int64_t end = x + lowest(bits);
      if (begin < end) piece(run, begin, end);
      begin = end;
      ++run;
    }
  }
  if (begin < width) piece(run, begin, width);
}

int32_t find(int32_t* parent, int32_t i) {
  while (parent[i] != i) i = parent[i] = parent[parent[i]];
  return i;
}

// Takes the parts of the ignored label away; returns how many are left.
template <class L>
int32_t drop_ignored(const Group& g, const Slab& slab, int32_t parts) {
  Scratch<int32_t> numbers(parts);
  int32_t* number = numbers.get();
  const L ignored = L(g.map.ignored);
  int32_t* part_of = g.parts_of_runs(slab);
  std::fill_n(number, parts, 0);
  int32_t runs = 0;
  for (int64_t r = slab.first_row; r < slab.first_row + slab.rows; ++r) {
    const L* labels = g.row_labels<L>(r);
    const Bits* starts = g.row_starts(r);
    for (int64_t x = 0; x < g.map.width; x += kWord)
      for (Bits bits = *starts++; bits; bits &= bits - 1)
        if (labels[x + lowest(bits)] == ignored)
          number[part_of[runs++]] = -1;
        else
          ++runs;
  }
  int32_t left = 0;
  for (int32_t i = 0; i < parts; ++i)
    if (number[i] == 0) number[i] = left++;
  for (int32_t i = 0; i < runs; ++i) part_of[i] = number[part_of[i]];
  return left;
}

// Which parts of a slab are at the border, with their numbers among these.
struct BorderParts {
  Bits* bits;       // [parts / kWord + 1]
  int32_t* before;  // likewise: border parts before the word

  int32_t number(int32_t part) const {
    const Bits below = (Bits(1) << part % kWord) - 1;
    return before[part / kWord] + count(bits[part / kWord] & below);
  }
};

// Start bits, parts in raster order of their first runs, and which of them are at the border.
template <class L>
void label_slab(const Group& g, int64_t s, const BorderParts& at_border) {
  Slab& slab = g.slab(s);
  const int64_t width = g.map.width, begin = slab.first_row, end = begin + slab.rows;
  int32_t runs = 0;
  for (int64_t r = begin; r < end; ++r) {
    g.first_run.get()[r] = runs;
    const L* labels = g.row_labels<L>(r);
    Bits* starts = g.starts.get() + r * g.words;
    for (int64_t x = 0; x < width; x += kWord) {
      const int n = int(std::min<int64_t>(kWord, width - x));
      const Bits bits = differ_from_left(labels, labels, x, n);
      *starts++ = bits;
      runs += count(bits);
    }
  }

  int32_t* part_of = g.parts_of_runs(slab);  // until parts are numbered, an earlier run or itself
  for (int32_t i = 0; i < runs; ++i) part_of[i] = i;
  const auto unite = [part_of](int32_t a, int32_t b) {
    a = find(part_of, a), b = find(part_of, b);
    part_of[std::max(a, b)] = std::min(a, b);
  };
  for (int64_t r = begin; r < end; ++r)
    for_touching_rows(g, r, begin, r, [&](int64_t other) {
      for_touching(g.row<L>(r, begin), g.row<L>(other, begin), width, g.map.diagonal, unite);
    });

  int32_t parts = 0;
  for (int32_t i = 0; i < runs; ++i) {  // an earlier run has its part's number by now
    const int32_t parent = part_of[i];
    const int32_t root = -int32_t(parent == i);  // a mask: as a branch it would be guessed wrong
    part_of[i] = part_of[parent] + (root & (parts - i));
    parts -= root;
  }
  if (g.map.ignores) parts = drop_ignored<L>(g, slab, parts);
  slab.parts = parts, slab.joined = 0;

  const int64_t last = g.last_line(slab);
  const int32_t first_runs = g.line_rows < slab.rows ? g.run_at(begin + g.line_rows) : runs;
  const int32_t last_runs = runs - g.run_at(last);
  const int64_t part_words = parts / kWord + 1;
  std::fill_n(at_border.bits, part_words, Bits(0));
  const auto mark = [&](const int32_t* part, int32_t n) {
    for (int32_t i = 0; i < n; ++i)
      if (part[i] >= 0) at_border.bits[part[i] / kWord] |= Bits(1) << part[i] % kWord;
  };
  mark(part_of, first_runs);
  mark(part_of + g.run_at(last), last_runs);
  slab.borders = 0;
  Border* border = g.borders_of(s);
  for (int64_t word = 0; word < part_words; ++word) {  // in raster order, like the parts
    at_border.before[word] = slab.borders;
    for (Bits bits = at_border.bits[word]; bits; bits &= bits - 1, ++slab.borders)
      border[slab.borders] = {
          {}, g.border_id(s, slab.borders), int32_t(word * kWord + lowest(bits))};
  }
  const auto list = [&](const int32_t* part, int32_t n, int32_t* edge) {
    for (int32_t i = 0; i < n; ++i) edge[i] = part[i] < 0 ? -1 : at_border.number(part[i]);
  };
  list(part_of, first_runs, g.edge_borders(s, false));
  list(part_of + g.run_at(last), last_runs, g.edge_borders(s, true));
}

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

int64_t root_of(const Border* borders, int64_t i) {
  while (borders[i].root != i) i = borders[i].root;
  return i;
}

// Union of the parts that meet between slabs, the later into the earlier.
template <class L>
void join_slabs(const Group& g) {
  Border* borders = g.borders.get();
  for (int64_t s = 0; s < g.slabs_of(g.images); ++s) {
    if (s % g.image_slabs == 0) continue;
    const int64_t first = g.slab(s).first_row, last = g.last_line(g.slab(s - 1));
    const int32_t *below = g.edge_borders(s, false), *above = g.edge_borders(s - 1, true);
    const auto unite = [&](int32_t run, int32_t run_above) {
      if (below[run] < 0) return;  // ignored, and so is the other
      int64_t a = g.border_id(s, below[run]), b = g.border_id(s - 1, above[run_above]);
      a = root_of(borders, a), b = root_of(borders, b);
      if (a == b) return;
      Border &from = borders[std::max(a, b)], &into = borders[std::min(a, b)];
      into.sum.total += from.sum.total;
      into.sum.size += from.sum.size;
      from.root = std::min(a, b);
      ++g.slab(g.slab_of_border(std::max(a, b))).joined;
    };
    for (int64_t r = first; r < first + g.line_rows; ++r)
      for_touching_rows(g, r, last, first, [&](int64_t other) {
        for_touching(g.row<L>(r, first), g.row<L>(other, last), g.map.width, g.map.diagonal, unite);
      });
  }
}

// ids: [parts], -1 for those that an earlier slab's part took in.
void number_slab(const Group& g, int64_t s, int32_t* ids) {
  const Slab& slab = g.slab(s);
  std::fill_n(ids, slab.parts, 0);
  const Border* border = g.borders_of(s);
  for (int32_t i = 0; i < slab.borders; ++i)
    if (border[i].root != g.border_id(s, i)) ids[border[i].part] = -1;
  int32_t id = slab.first_id;
  for (int32_t i = 0; i < slab.parts; ++i)
    if (ids[i] == 0) ids[i] = ++id;
}

// Whole vectors, which reach into what is filled next, but not past the end.
template <class R>
SEGUNC_HD void fill(R* out, int64_t n, R value, const R* end) {
  constexpr int kBytes = 32, kLanes = kBytes / int(sizeof(R));
  if (end - out < n + kLanes) {
    std::fill_n(out, n, value);
    return;
  }
  R vector[kLanes];
  for (int i = 0; i < kLanes; ++i) vector[i] = value;
  for (int64_t i = 0; i < n; i += kLanes) std::memcpy(out + i, vector, kBytes);
}

// results: [parts]; out: of the group.
template <class R>
void fill_slab(const Group& g, int64_t s, const R* __restrict results, R* __restrict out) {
  const Slab& slab = g.slab(s);
  const R* slab_end = out + (slab.first_row + slab.rows) * g.map.width;
  for (int64_t r = slab.first_row; r < slab.first_row + slab.rows; ++r) {
    R* row = out + r * g.map.width;
    const int32_t* part_of = g.parts_of_runs(slab) + g.run_at(r);
    const auto result = [&](int32_t run) { return part_of[run] < 0 ? R{} : results[part_of[run]]; };
    for_pieces(
        g.row_starts(r), g.map.width,
        [&](int32_t run, int64_t begin, int64_t end) {
          fill(row + begin, end - begin, result(run), slab_end);
        },
        [&](int32_t run, int64_t begin, Bits bits) {
          for (int i = 0; i < kWord; ++i) row[begin + i] = result(run += bits >> i & 1);
        });
  }
}

// Calls run(L{}) with an integer as wide as the labels.
template <class Run>
SEGUNC_HD void with_label_type(int bytes, Run&& run) {
  switch (bytes) {
    case 1:
      return run(uint8_t{});
    case 2:
      return run(uint16_t{});
    case 4:
      return run(uint32_t{});
    default:
      return run(uint64_t{});
  }
}

// What ids and means share. R: their type. labelled(group, slab, scratch for sums, the parts'
// results) and joined(group, all results) go on from there; ids and means are made for parts, then
// filled in.
template <class R, class Labelled, class Joined>
SEGUNC_HD void for_groups(const LabelMap& map, const Parallel& parallel, Labelled&& labelled,
                          Joined&& joined) {
  Group g(map);
  Scratch<R> results(g.most_images * g.image_rows * map.width);
  while (g.next()) {
    auto label = [&](int64_t begin, int64_t end) {
      const int64_t part_words = g.slab_pixels() / kWord + 1;
      Scratch<Bits> border_bits(part_words);
      Scratch<int32_t> borders_before(part_words);
      const BorderParts at_border{border_bits.get(), borders_before.get()};
      const Sums sums(g.slab_pixels());
      for (int64_t s = begin; s < end; ++s) {
        with_label_type(map.label_bytes, [&](auto l) { label_slab<decltype(l)>(g, s, at_border); });
        labelled(g, s, sums, results.get() + g.first_pixel(g.slab(s)));
      }
    };
    parallel_for(parallel, g.slabs_of(g.images), label);
    with_label_type(map.label_bytes, [&](auto l) { join_slabs<decltype(l)>(g); });
    joined(g, results.get());
  }
}

}  // namespace

void connected_components(const ComponentsParams& p, const Parallel& parallel) {
  for_groups<int32_t>(
      p.map, parallel, [](const Group&, int64_t, const Sums&, int32_t*) {},
      [&](const Group& g, int32_t* ids) {
        for (int64_t s = 0; s < g.slabs_of(g.images); ++s) {
          Slab& slab = g.slab(s);
          const bool first = s % g.image_slabs == 0;
          slab.first_id = first ? 0 : int32_t(p.counts[g.first_image + s / g.image_slabs]);
          p.counts[g.first_image + s / g.image_slabs] = slab.first_id + slab.parts - slab.joined;
        }
        auto number = [&](int64_t begin, int64_t end) {
          for (int64_t s = begin; s < end; ++s) number_slab(g, s, ids + g.first_pixel(g.slab(s)));
        };
        parallel_for(parallel, g.slabs_of(g.images), number);
        auto fill = [&](int64_t begin, int64_t end) {
          for (int64_t s = begin; s < end; ++s) {
            int32_t* own = ids + g.first_pixel(g.slab(s));
            const Border* border = g.borders_of(s);
            for (int32_t i = 0; i < g.slab(s).borders; ++i) {
              if (border[i].root == g.border_id(s, i)) continue;
              const int64_t root = root_of(g.borders.get(), border[i].root);
              const Slab& of_root = g.slab(g.slab_of_border(root));
              own[border[i].part] = ids[g.first_pixel(of_root) + g.borders.get()[root].part];
            }
            fill_slab(g, s, own, p.components + g.batch_pixel(0));
          }
        };
        parallel_for(parallel, g.slabs_of(g.images), fill);
      });
}

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
