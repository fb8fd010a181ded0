// Connected components and their means on a CPU: one bit a pixel, "a run starts here", and one
// integer a run, a run being a maximal stretch of one label in a row.
//
// Rows that touch are compared 64 pixels at a time (row_bits.h), and only runs are united. Images
// are cut into slabs of a few lines, a line being a row or, in volumes, a slice:
//   label    in parallel   start bits; runs to parts, the components of a slab; the parts' sums
//   join     in order      union of the parts that meet between two slabs
//   number   in parallel   ids for the parts that no earlier one took in
//   fill     in parallel   every run gets what its component got
// Means, and the sums for them, are in means.cpp, ids in ids.cpp.
#pragma once
#include <algorithm>
#include <cstring>

#include "../../common/cpu/parallel.h"
#include "../../common/cpu/tile.h"
#include "../params.h"
#include "row_bits.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace slabs {

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
        image_slabs(divide_up(image_rows, slab_rows)),
        most_images(std::clamp<int64_t>(kGroupPixels / (image_rows * map.width), 1, map.images)),
        words(divide_up(map.width, kWord)),
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
void label_slab(const Group& g, int64_t s, const BorderParts& at_border);

// Union of the parts that meet between slabs, the later into the earlier.
void join_slabs(const Group& g);

inline int64_t root_of(const Border* borders, int64_t i) {
  while (borders[i].root != i) i = borders[i].root;
  return i;
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
        label_slab(g, s, at_border);
        labelled(g, s, sums, results.get() + g.first_pixel(g.slab(s)));
      }
    };
    parallel_for(parallel, g.slabs_of(g.images), label);
    join_slabs(g);
    joined(g, results.get());
  }
}

}  // namespace slabs
}  // namespace SEGUNC_VARIANT
}  // namespace segunc
