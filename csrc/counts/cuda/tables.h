// The tables that pixels are counted in; sums of scores, which only logits have, are in logits.cu.
//
// A pixel adds integers: to tables in shared memory, which a block adds to the state when it is
// done, or to the state where a table does not fit. Neighbouring pixels often meet in one counter;
// where that is in global memory, a warp's meet first.
#pragma once
#include "../../common/device/labels.h"
#include "../params.h"

namespace segunc::cuda::counting {

using namespace device;

struct TablePolicy {
  // Every block adds its tables to the state once: no more than an H200 holds at a time, eight of
  // 128 threads on each of 132 multiprocessors.
  static constexpr int64_t kMaxBlocks = at_scale(1056);  // tuning
  // Of those in shared memory, beside a tile of at most 24 KB: room for eight blocks of 19 classes
  // (6 KB of tables, 10 KB of tile) in 228 KB.
  static constexpr int64_t kMaxWords = 6144;  // report: dynamic counts_*_kernel<* 4 * 6144
};

// ---- Tables ----

// Where a block's own tables start in shared memory, in 32-bit words; kInState where it has none
// and adds to the state. Sums take two words each, the lower one first.
constexpr int kInState = -1;
constexpr int kCalibrationWords = 4;  // wrong pixels, correct ones, sum
constexpr int kUncertaintyWords = 3;  // sum, undefined ones

struct SharedTables {
  int confusion, uncertainty, calibration;
  int words;
};

inline SharedTables share_tables(const CountTables& t, int64_t classes) {
  SharedTables shared{};
  int64_t words = 0;
  const auto share = [&](const void* table, int64_t size) {
    if (!table || words + size > TablePolicy::kMaxWords) return kInState;
    const int start = int(words);
    words += size;
    return start;
  };
  shared.calibration = share(t.calibration, (t.bins + 1) * kCalibrationWords);
  shared.confusion = share(t.confusion, classes * classes);
  shared.uncertainty = share(t.uncertainty, classes * classes * kUncertaintyWords);
  shared.words = int(words);
  return shared;
}

// Everything that a pixel is counted in. A: the type of its values.
template <class A>
struct Counting {
  CountTables state;
  SharedTables shared;
  int64_t classes;
  const A* uncertainty;
  uint8_t* outcome;
};

template <class A, class Params>
Counting<A> make_counting(const Params& p, int64_t classes) {
  return {p.tables, share_tables(p.tables, classes), classes, static_cast<const A*>(p.uncertainty),
          p.outcome};
}

SEGUNC_DEVICE void clear_words(uint32_t* words, int count) {
  for (int i = int(thread()); i < count; i += int(block_size())) words[i] = 0;
  barrier();
}

// To V sums. Shared memory has no fast 64-bit addition; carries are rare.
template <int V>
SEGUNC_DEVICE void add_sums(uint32_t* words, const int (&sum)[V], const uint32_t (&value)[V]) {
  bool carries[V], any = false;
#pragma unroll
  for (int j = 0; j < V; j++) {
    const uint32_t before = value[j] != 0 ? atomic_add(words + sum[j], value[j]) : 0;
    carries[j] = before + value[j] < before;
    any |= carries[j];
  }
  if (!any) return;
  // report: begin rare
#pragma unroll
  for (int j = 0; j < V; j++) {
    if (carries[j]) atomic_add(words + (sum[j] + 1), 1);
  }
  // report: end
}
SEGUNC_DEVICE int64_t read_sum(const uint32_t* sum) {
  return int64_t(uint64_t(sum[1]) << 32 | sum[0]);
}

SEGUNC_DEVICE void add_unless_zero(int64_t* counter, int64_t value) {
  if (value != 0) atomic_add(counter, value);
}

// One more in table[key] for each thread of the warp that has one; the whole warp takes part.
SEGUNC_DEVICE void count_together(int64_t* table, int64_t key) {
  const unsigned peers = match_any(kFullMask, key);
  if (key >= 0 && int(lane()) == find_first_set(peers) - 1) {
    atomic_add(table + key, popcount(peers));
  }
}

// The block's tables to the state.
template <class A>
SEGUNC_DEVICE void add_to_state(const Counting<A>& to, const uint32_t* words) {
  barrier();
  const int first = int(thread()), step = int(block_size());
  const int cells = int(to.classes * to.classes), rows = int(to.state.bins) + 1;
  if (to.shared.confusion >= 0) {
    const uint32_t* pixels = words + to.shared.confusion;
    for (int i = first; i < cells; i += step) add_unless_zero(to.state.confusion + i, pixels[i]);
  }
  if (to.shared.uncertainty >= 0) {
    const uint32_t* sums = words + to.shared.uncertainty;
    for (int i = first; i < cells; i += step) {
      add_unless_zero(to.state.uncertainty + i, read_sum(sums + i * kUncertaintyWords));
      add_unless_zero(to.state.uncertainty + cells + i, sums[i * kUncertaintyWords + 2]);
    }
  }
  if (to.shared.calibration >= 0) {
    for (int i = first; i < rows; i += step) {
      const uint32_t* row = words + to.shared.calibration + i * kCalibrationWords;
      int64_t* state = to.state.calibration + i * kCalibrationColumns;
      add_unless_zero(state + kBinPixels, int64_t(row[0]) + row[1]);
      add_unless_zero(state + kBinCorrect, row[1]);
      add_unless_zero(state + kBinConfidence, read_sum(row + 2));
    }
  }
}

// ---- What a pixel adds ----

// V pixels of every thread of a warp, which takes part as a whole, with kOutside where it has none.
// Without branches on a pixel around more than an addition: pixels are counted side by side.
template <int V, class A, class Index>
SEGUNC_DEVICE void count_predictions(const Counting<A>& to, uint32_t* words, Index index_of,
                                     const int (&label)[V], const int (&best)[V]) {
  if (to.shared.confusion >= 0) {
    uint32_t* const confusion = words + to.shared.confusion;
#pragma unroll
    for (int j = 0; j < V; j++) {
      if (label[j] >= 0) atomic_add(confusion + (label[j] * int(to.classes) + best[j]), 1);
    }
  } else if (to.state.confusion) {
    // report: begin rare
#pragma unroll
    for (int j = 0; j < V; j++) {
      count_together(to.state.confusion, label[j] >= 0 ? label[j] * to.classes + best[j] : -1);
    }
    // report: end
  }
  if (to.outcome) {
    // report: begin rare
#pragma unroll
    for (int j = 0; j < V; j++) {
      const uint8_t outcome = label[j] < 0 ? kIgnoredPixel : label[j] == best[j] ? kRight : kWrong;
      if (label[j] != kOutside) to.outcome[index_of(j)] = outcome;
    }
    // report: end
  }
  if (!to.uncertainty) return;
  // report: begin rare
#pragma unroll
  for (int j = 0; j < V; j++) {
    const bool valid = label[j] >= 0;
    const int64_t cell = label[j] * to.classes + best[j];
    const A u = valid ? to.uncertainty[index_of(j)] : A(0);
    const bool defined = math::is_uncertainty(u);
    const int64_t fixed = defined ? math::to_fixed(u) : 0;
    if (valid && to.shared.uncertainty >= 0) {
      const int sum = to.shared.uncertainty + int(cell) * kUncertaintyWords;
      if (!defined) atomic_add(words + (sum + 2), 1);
      add_sums<1>(words, {sum}, {uint32_t(fixed)});
    } else if (valid && to.state.uncertainty) {
      add_unless_zero(to.state.uncertainty + cell, fixed);
      if (!defined) atomic_add(to.state.uncertainty + to.classes * to.classes + cell, 1);
    }
    if (to.state.histogram) {
      const int bin = defined ? math::uncertainty_bin(float(u)) : kUncertaintyBins;
      const int right = label[j] == best[j];
      count_together(to.state.histogram, valid ? right * (kUncertaintyBins + 1) + bin : -1);
    }
  }
  // report: end
}

// Of the V pixels with a label.
template <int V, class A>
SEGUNC_DEVICE void count_confidences(const Counting<A>& to, uint32_t* words, const int (&label)[V],
                                     const int (&best)[V], const A (&confidence)[V]) {
  const uint32_t bins = uint32_t(to.state.bins);
  uint32_t bin[V];
  uint32_t fixed[V];
#pragma unroll
  for (int j = 0; j < V; j++) {
    const bool defined = label[j] >= 0 && math::is_confidence(confidence[j]);
    fixed[j] = defined ? math::to_fixed<int32_t>(confidence[j]) : 0;
    bin[j] = defined ? math::calibration_bin(fixed[j], bins) : bins;
  }
  if (to.shared.calibration >= 0) {
    int sum[V];
#pragma unroll
    for (int j = 0; j < V; j++) {
      const int row = to.shared.calibration + int(bin[j]) * kCalibrationWords;
      if (label[j] >= 0) atomic_add(words + (row + int(label[j] == best[j])), 1);
      sum[j] = row + 2;
    }
    add_sums(words, sum, fixed);
    return;
  }
  // report: begin rare
#pragma unroll
  for (int j = 0; j < V; j++) {
    if (label[j] < 0) continue;
    int64_t* const row = to.state.calibration + int64_t(bin[j]) * kCalibrationColumns;
    atomic_add(row + kBinPixels, 1);
    add_unless_zero(row + kBinCorrect, label[j] == best[j]);
    add_unless_zero(row + kBinConfidence, fixed[j]);
  }
  // report: end
}

}  // namespace segunc::cuda::counting
