// The components of a tile, found in shared memory.
#pragma once
#include "forest.h"
#include "tiles.h"

namespace segunc::cuda::components {

// ---- Sums within warps and blocks ----

SEGUNC_DEVICE int inclusive_warp_sum(int value) {
#pragma unroll
  for (unsigned delta = 1; delta < kWarpSize; delta *= 2) {
    const int before = shuffle_up(kFullMask, value, delta);
    if (lane() >= delta) value += before;
  }
  return value;
}

// The sum of the threads before this one; total: of all. For blocks of kScanThreads; a barrier has
// to follow before the next call.
SEGUNC_DEVICE int exclusive_block_sum(int value, int& total) {
  constexpr int kScanWarps = Policy::kScanThreads / int(kWarpSize);
  SEGUNC_SHARED(warp_total, int[kScanWarps]);
  const int inclusive = inclusive_warp_sum(value);
  if (lane() == kWarpSize - 1) warp_total[warp()] = inclusive;
  barrier();
  int before = 0;
  total = 0;
#pragma unroll
  for (int i = 0; i < kScanWarps; i++) {
    if (i < int(warp())) before += warp_total[i];
    total += warp_total[i];
  }
  return before + inclusive - value;
}

// ---- A tile's parts ----

// Bit i is whether a[i] == b[i].
template <class Label>
SEGUNC_DEVICE unsigned equal_bits(const Vector<Label, kSpan>& a, const Vector<Label, kSpan>& b) {
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kSpan; i++) bits |= a[i] == b[i] ? 1u << i : 0;
  return bits;
}
// Each pixel's neighbour to the left; arbitrary at the tile's first column. A warp calls it as a
// whole.
template <class Label>
SEGUNC_DEVICE Vector<Label, kSpan> shifted(const Vector<Label, kSpan>& label) {
  Vector<Label, kSpan> left;
  left[0] = shuffle_up(kFullMask, label[kSpan - 1], 1);
#pragma unroll
  for (int i = 1; i < kSpan; i++) left[i] = label[i - 1];
  return left;
}

// What is known of a span's runs, packed for others to read: which pixels differ from the left one,
// which of these start a run, and the number of runs that start in spans before. Ignored pixels are
// in no run.
struct Runs {
  uint32_t packed;

  Runs() = default;
  SEGUNC_DEVICE Runs(unsigned changes, unsigned starts, int before)
      : packed(changes | starts << 8 | unsigned(before) << 16) {
    static_assert(kSpan == 8);
  }
  SEGUNC_DEVICE unsigned changes() const { return packed & 0xff; }
  SEGUNC_DEVICE unsigned starts() const { return packed >> 8 & 0xff; }
  // Of the run that holds a pixel, and of the last one that starts before it.
  SEGUNC_DEVICE int run_of(int i) const {
    return int(packed >> 16) + popcount(starts() & ((2u << i) - 1)) - 1;
  }
  SEGUNC_DEVICE int run_before(int i) const {
    return int(packed >> 16) + popcount(starts() & ((1u << i) - 1)) - 1;
  }
};

// Labels a tile. part: of each of the thread's pixels, kNoPart where ignored or outside. Returns
// the number of parts. forest: [kTilePixels] in shared memory, 16-byte aligned; a barrier has to
// follow before it is used otherwise. on_run(run, row, column) and then, after a barrier,
// on_root(run, part) are called for each run and for the first run of each part.
//
// The nodes of the forest are the runs, numbered in raster order.
template <class Label, class OnRun, class OnRoot>
SEGUNC_DEVICE int label_tile(const LabelMap& map, const Tiles& tiles, const Span& span,
                             int32_t* forest, PartSpan& part, OnRun on_run, OnRoot on_root) {
  constexpr int kWords = kTilePixels / 32;  // of a bit a run
  constexpr int kWordsOfLane = kWords / int(kWarpSize);
  constexpr int kThreadsOfRow = kTileWidth / kSpan;
  SEGUNC_SHARED(runs_of_thread, Runs[Policy::kTileThreads]);
  SEGUNC_SHARED(root_bits, unsigned[kWords]);
  static_assert(Policy::kScanThreads == Policy::kTileThreads);

  const Label* labels = static_cast<const Label*>(map.labels);
  const bool has_above = span_row() > 0 && span.inside > 0;
  const Vector<Label, kSpan> label = span.load(labels);
  const Vector<Label, kSpan> above =
      load_span(labels + (span.pixel - tiles.width), has_above ? span.inside : 0, span.wide);
#pragma unroll
  for (int first = 0; first < kTilePixels; first += 4 * Policy::kTileThreads) {
    const int i = first + 4 * int(thread());
    store_vector(forest + i, Vector<int32_t, 4>{{i, i + 1, i + 2, i + 3}});
  }

  Vector<Label, kSpan> ignored;
#pragma unroll
  for (int i = 0; i < kSpan; i++) ignored[i] = Label(map.ignored);
  const unsigned inside = (1u << span.inside) - 1;
  const unsigned labelled = map.ignores ? inside & ~equal_bits(label, ignored) : inside;
  const Vector<Label, kSpan> left = shifted(label), left_above = shifted(above);
  const unsigned first_column = span_column() == 0 ? 1 : 0;
  const unsigned changes = inside & (~equal_bits(label, left) | first_column);
  int runs;
  const int before = exclusive_block_sum(popcount(changes & labelled), runs);
  const Runs here(changes, changes & labelled, before);
  runs_of_thread[thread()] = here;
  for (unsigned rest = here.starts(); rest != 0; rest &= rest - 1) {
    const int i = find_first_set(rest) - 1;
    on_run(here.run_of(i), span_row(), span_column() + i);
  }
  barrier();

  if (has_above) {
    const Runs over = runs_of_thread[int(thread()) - kThreadsOfRow];
    for (unsigned rest = equal_bits(label, above) & labelled & (changes | over.changes());
         rest != 0; rest &= rest - 1) {
      const int i = find_first_set(rest) - 1;
      unite(forest, here.run_of(i), over.run_of(i));
    }
    const unsigned corners = changes & over.changes() & ~first_column;
    if (map.diagonal && corners != 0) {
      // report: begin rare
      for (unsigned rest = equal_bits(label, left_above) & labelled & corners; rest != 0;
           rest &= rest - 1) {
        const int i = find_first_set(rest) - 1;
        unite(forest, here.run_of(i), over.run_before(i));
      }
      const unsigned labelled_above = map.ignores ? ~equal_bits(above, ignored) : kFullMask;
      for (unsigned rest = equal_bits(left, above) & labelled_above & corners; rest != 0;
           rest &= rest - 1) {
        const int i = find_first_set(rest) - 1;
        unite(forest, here.run_before(i), over.run_of(i));
      }
      // report: end
    }
  }
  barrier();

  // Runs point at their roots, so that the others have one step to go.
  const int rounds = (runs + Policy::kTileThreads - 1) / Policy::kTileThreads;
#pragma unroll 1
  for (int round = 0; round < rounds; round++) {
    const int run = round * Policy::kTileThreads + int(thread());
    bool is_root = false;
    if (run < runs) {
      const int root = find_root(forest, run);
      store_relaxed(forest + run, root);
      is_root = root == run;
    }
    const unsigned bits = ballot(kFullMask, is_root);
    if (lane() == 0) root_bits[run / 32] = bits;
  }
  barrier();

  // Roots are numbered. Only its own thread reads a run here.
  int roots = 0;
#pragma unroll
  for (int i = 0; i < kWordsOfLane; i++) {
    const int word = int(lane()) * kWordsOfLane + i;
    if (word < rounds * kWarps) roots += popcount(root_bits[word]);
  }
  const int up_to_words = inclusive_warp_sum(roots);
  const int parts = shuffle(kFullMask, up_to_words, kWarpSize - 1);
#pragma unroll 1
  for (int round = 0; round < rounds; round++) {
    const int run = round * Policy::kTileThreads + int(thread());
    const int root = run < runs ? forest[run] : 0;
    const int word = root / 32;
    int number = shuffle(kFullMask, up_to_words - roots, unsigned(word / kWordsOfLane));
    for (int i = word - word % kWordsOfLane; i < word; i++) number += popcount(root_bits[i]);
    number += popcount(root_bits[word] & ((1u << root % 32) - 1));
    if (run < runs) {
      forest[run] = number;
      if (root == run) on_root(run, number);
    }
  }
  barrier();

#pragma unroll
  for (int i = 0; i < kSpan; i++) {
    part[i] = uint16_t((labelled >> i & 1) != 0 ? forest[here.run_of(i)] : kNoPart);
  }
  return parts;
}

}  // namespace segunc::cuda::components
