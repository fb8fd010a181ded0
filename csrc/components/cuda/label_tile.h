// The components of a tile, found in shared memory.
#pragma once
#include "forest.h"
#include "tiles.h"

namespace segunc::cuda::components {

SEGUNC_DEVICE int inclusive_warp_sum(int value) {
#pragma unroll
  for (unsigned delta = 1; delta < kWarpSize; delta *= 2) {
    const int before = shuffle_up(kFullMask, value, delta);
    if (lane() >= delta) value += before;
  }
  return value;
}

// ---- The labels of a span ----

template <class Label>
struct SpanLabels {
  Vector<Label, kSpan> label;

  SEGUNC_DEVICE SpanLabels(const Label* p, int inside, bool wide)
      : label(load_span(p, inside, wide)) {}  // report: vector min(16, 8 * sizeof(Label))
  SEGUNC_DEVICE explicit SpanLabels(const Vector<Label, kSpan>& label) : label(label) {}

  // Bit i is whether the i-th ones differ.
  SEGUNC_DEVICE unsigned differences(const SpanLabels& other) const {
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < kSpan; i++) bits |= label[i] != other.label[i] ? 1u << i : 0;
    return bits;
  }
  // Each pixel's neighbour to the left; arbitrary at the tile's first column. A warp calls it as a
  // whole.
  SEGUNC_DEVICE SpanLabels to_the_left() const {
    Vector<Label, kSpan> left;
    left[0] = shuffle_up(kFullMask, label[kSpan - 1], 1);
#pragma unroll
    for (int i = 1; i < kSpan; i++) left[i] = label[i - 1];
    return SpanLabels(left);
  }
};

// The same of bytes, four at a time.
template <>
struct SpanLabels<uint8_t> {
  static constexpr int kWords = kSpan / 4;
  static_assert(kPiece == 8);
  uint32_t word[kWords];

  SEGUNC_DEVICE SpanLabels(const uint8_t* p, int inside, bool wide) : word{} {
    if (wide) {
#pragma unroll
      for (int i = 0; i < kWords; i += 2) {
        if (4 * i >= inside) continue;
        const uint32_t* words = reinterpret_cast<const uint32_t*>(p);
        const Vector<uint32_t, 2> piece = load_vector<2>(words + i);  // report: vector 8
        word[i] = piece[0];
        word[i + 1] = piece[1];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kSpan; i++) {
        if (i < inside) word[i / 4] |= uint32_t(p[i]) << i % 4 * 8;  // report: rare
      }
    }
  }

  SEGUNC_DEVICE unsigned differences(const SpanLabels& other) const {
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < kWords; i += 2) {
      const uint32_t bytes = different_bytes(word[i], other.word[i]) >> 7 |
                             different_bytes(word[i + 1], other.word[i + 1]) >> 3;
      // Bits 8 j and 8 j + 4 become 24 + j and 28 + j; all others stay below, each its own.
      bits |= bytes * 0x01020408u >> 24 << 4 * i;
    }
    return bits;
  }
  SEGUNC_DEVICE SpanLabels to_the_left() const {
    SpanLabels left;
    left.word[0] = word[0] << 8 | shuffle_up(kFullMask, word[kWords - 1], 1) >> 24;
#pragma unroll
    for (int i = 1; i < kWords; i++) left.word[i] = word[i] << 8 | word[i - 1] >> 24;
    return left;
  }

 private:
  SpanLabels() = default;
  // Bit 7 of each byte is whether those of a and b differ.
  SEGUNC_DEVICE static uint32_t different_bytes(uint32_t a, uint32_t b) {
    const uint32_t difference = a ^ b;
    return (((difference & 0x7f7f7f7f) + 0x7f7f7f7f) | difference) & 0x80808080;
  }
};

// ---- A tile's forest ----

// The nodes are the tile's runs. Parents only decrease. A run with its label above its first pixel
// starts as a child of that pixel's run, so that few edges are left to unite.
struct alignas(16) TileForest {
  int32_t parent[kTilePixels];            // a root that has a number: kTilePixels + number
  uint16_t first_pixel[kTilePixels + 1];  // of a run: row * kTileWidth + column
  int parts;
  alignas(8) uint16_t starts_of_span[kTilePixels / kSpan];
  static_assert(kSpan == 16);

  // Looks for no roots, which are far: most edges end at one, and the others soon meet.
  SEGUNC_DEVICE void unite(int a, int b) {
    // report: trips 2
    while (a != b) {
      const int high = a > b ? a : b, low = a > b ? b : a;
      const int displaced = atomic_min(parent + high, low);
      if (displaced == high) return;  // it was a root
      a = displaced;
      b = low;
    }
  }
  // Once all are numbered.
  SEGUNC_DEVICE int root_of(int run) const { return parent[run] < kTilePixels ? parent[run] : run; }
  SEGUNC_DEVICE int number_of(int root) const { return parent[root] - kTilePixels; }
};

// Labels a tile, in the order of its methods, with a barrier between any two. The block's threads
// call each.
//
// What the report on machine code assumes of data was counted in CamVid's label maps of 480 x 360:
// a tile has 86 runs and 8 parts; of the spans of a warp one has 2.3 starts of runs and one 0.8
// edges that are left to unite, half of the warps have corners, few a diagonal edge.
template <class Label>
struct TileRuns {
  const Label* labels;
  SpanRuns here, above;    // of the thread's span, and of the one above it
  unsigned same_as_above;  // a bit for each pixel of the span
  int count;               // of the tile's runs
  SpanLabels<Label> label, label_above;

  // Finds the runs, and leaves them in parts for others.
  template <class Parent>
  SEGUNC_DEVICE TileRuns(const LabelMap& map, const Tiles& tiles, const Tile& tile,
                         const Span& span, const Parts<Parent>& parts, TileForest& forest)
      : labels(static_cast<const Label*>(map.labels)),
        label(labels + span.pixel, span.inside, span.wide),
        label_above(labels + (span.pixel - tiles.width), span_row() > 0 ? span.inside : 0,
                    span.wide) {
    static_assert(kTileHeight == int(kWarpSize));
    const unsigned inside = (1u << span.inside) - 1;
    const unsigned first_column = span_column() == 0 ? 1 : 0;
    forest.starts_of_span[thread()] =
        uint16_t(inside & (label.differences(label.to_the_left()) | first_column));
    same_as_above = span_row() > 0 ? inside & ~label.differences(label_above) : 0;
    barrier();

    const auto starts_of_row = [&](unsigned row) {
      return load_vector<2>(reinterpret_cast<const uint32_t*>(forest.starts_of_span) + 2 * row);
    };
    // A lane a row.
    const RowBits of_lane = starts_of_row(lane());
    const int runs_of_lane = count_up_to(of_lane, kTileWidth - 1);
    const int up_to_lane = inclusive_warp_sum(runs_of_lane);
    const int before_lane = up_to_lane - runs_of_lane;
    if (warp() == 0 && int(lane()) < tile.height) {
      store_vector(parts.run_starts[tile.row + int(lane())].element, of_lane);
      parts.runs_before[tile.row + int(lane())] = uint16_t(before_lane);
    }
    count = shuffle(kFullMask, up_to_lane, kWarpSize - 1);
    const unsigned row = unsigned(span_row()), row_above = row > 0 ? row - 1 : 0;
    here = SpanRuns(starts_of_row(row), shuffle(kFullMask, before_lane, row));
    above = SpanRuns(starts_of_row(row_above), shuffle(kFullMask, before_lane, row_above));
    if (row == 0) above.starts = 0;
  }

  // Calls on_run(run, next) for each run that starts in the thread's span: next is where the one
  // behind it does, kSpan if not in the span.
  template <class OnRun>
  SEGUNC_DEVICE void plant(TileForest& forest, OnRun on_run) const {
    int run = here.before;
    const auto plant_run = [&](int i) {
      run++;
      forest.parent[run] = (same_as_above >> i & 1) != 0 ? above.run_of(i) : run;
      forest.first_pixel[run] = uint16_t(int(thread()) * kSpan + i);
    };
    unsigned rest = here.starts;
    // report: trips 1.3
    while ((rest & (rest - 1)) != 0) {
      plant_run(find_first_set(rest) - 1);
      rest &= rest - 1;
      on_run(run, find_first_set(rest) - 1);
    }
    if (rest != 0) {
      plant_run(find_first_set(rest) - 1);
      on_run(run, kSpan);
    }
    if (thread() == 0) {
      forest.first_pixel[count] = 0;  // where a row starts
      forest.parts = 0;
    }
  }

  // An edge to the row above is left where a run starts there and none here (tiles.h).
  SEGUNC_DEVICE void unite(TileForest& forest, bool diagonal) const {
    // report: trips 0.8
    for (unsigned rest = same_as_above & above.starts & ~here.starts; rest != 0; rest &= rest - 1) {
      const int i = find_first_set(rest) - 1;
      forest.unite(here.run_of(i), above.run_of(i));
    }
    if (!diagonal) return;
    const unsigned corners = here.starts & above.starts & (span_column() == 0 ? ~1u : kFullMask);
    if (ballot(kFullMask, corners != 0) == 0) return;
    const SpanLabels<Label> left = label.to_the_left(), left_above = label_above.to_the_left();
    const unsigned down = corners & ~label.differences(left_above);
    const unsigned up = corners & ~left.differences(label_above);
    // report: begin rare
    for (unsigned rest = down; rest != 0; rest &= rest - 1) {
      const int i = find_first_set(rest) - 1;
      forest.unite(here.run_of(i), above.run_of(i) - 1);
    }
    for (unsigned rest = up; rest != 0; rest &= rest - 1) {
      const int i = find_first_set(rest) - 1;
      forest.unite(here.run_of(i) - 1, above.run_of(i));
    }
    // report: end
  }

  // Calls on_run(run) for all runs of the tile. Threads take them in turn: where they start, few
  // lanes of a warp would have one.
  template <class OnRun>
  SEGUNC_DEVICE void for_each_run(OnRun on_run) const {
    // report: trips 0.8
#pragma unroll 1
    for (int run = int(thread()); run < count; run += Policy::kTileThreads) on_run(run);
  }

  // Runs point at their roots. Calls on_root(run, number) for the first run of each part.
  template <class OnRoot>
  SEGUNC_DEVICE void number_parts(const LabelMap& map, const Tiles& tiles, const Tile& tile,
                                  TileForest& forest, OnRoot on_root) const {
    for_each_run([&](int run) {
      int root = forest.parent[run];  // nobody else changes it
      // All runs shorten their ways at once, and so each other's.
      // report: trips 6
      for (int next; (next = load_relaxed(forest.parent + root)) < root; root = next) {
        store_relaxed(forest.parent + run, next);
      }
      if (root != run) return;
      const int row = forest.first_pixel[run] / kTileWidth;
      const int column = forest.first_pixel[run] % kTileWidth;
      const bool ignored =
          map.ignores && labels[tile.pixel + row * tiles.width + column] == Label(map.ignored);
      const int number = ignored ? int(kNoPart) : atomic_add(&forest.parts, 1);
      store_relaxed(forest.parent + run, kTilePixels + number);
      if (!ignored) on_root(run, number);
    });
  }
};

}  // namespace segunc::cuda::components
