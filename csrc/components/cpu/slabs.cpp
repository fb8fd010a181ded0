// Slabs are labelled and joined: what does not depend on what is made of the components.
#include "slabs.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace slabs {
namespace {

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

// Start bits, parts in raster order of their first runs, and which of them are at the border.
template <class L>
void label_slab_of(const Group& g, int64_t s, const BorderParts& at_border) {
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

// Union of the parts that meet between slabs, the later into the earlier.
template <class L>
void join_slabs_of(const Group& g) {
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

}  // namespace

void label_slab(const Group& g, int64_t s, const BorderParts& at_border) {
  with_label_type(g.map.label_bytes, [&](auto l) { label_slab_of<decltype(l)>(g, s, at_border); });
}

void join_slabs(const Group& g) {
  with_label_type(g.map.label_bytes, [&](auto l) { join_slabs_of<decltype(l)>(g); });
}

}  // namespace slabs
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
