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
  static constexpr int64_t kMaxBlocks = at_scale(1056);
  // Of those in shared memory, beside a tile of at most 24 KB: room for eight blocks of 19 classes
  // (6 KB of tables, 10 KB of tile) in 228 KB.
  static constexpr int64_t kMaxWords = 6144;  // report: dynamic counts_*_kernel<* 4 * 6144
};

// ---- Tables ----

// Where a block's own tables start in shared memory, in 32-bit words; kInState where it has none
// and adds to the state. Sums take two words each, the lower one first.
constexpr int kInState = -1;
constexpr int kCalibrationWords = 4;  // pixels, correct ones, sum
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

// Shared memory has no fast 64-bit addition. The carry is rare.
SEGUNC_DEVICE void add_sum(uint32_t* sum, uint32_t value) {
  const uint32_t before = atomic_add(sum, value);
  if (before + value < before) atomic_add(sum + 1, 1);
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
      add_unless_zero(state + kBinPixels, row[0]);
      add_unless_zero(state + kBinCorrect, row[1]);
      add_unless_zero(state + kBinConfidence, read_sum(row + 2));
    }
  }
}

// ---- What a pixel adds ----

// The whole warp takes part, with kOutside where it has no pixel.
template <class A>
SEGUNC_DEVICE void count_prediction(const Counting<A>& to, uint32_t* words, int64_t index,
                                    int label, int best) {
  const bool valid = label >= 0, right = label == best;
  const int64_t cell = valid ? label * to.classes + best : -1;
  if (to.outcome && label != kOutside) {
    to.outcome[index] = valid ? (right ? kRight : kWrong) : kIgnoredPixel;
  }
  if (to.shared.confusion >= 0) {
    if (valid) atomic_add(words + to.shared.confusion + cell, 1);
  } else if (to.state.confusion) {
    count_together(to.state.confusion, cell);
  }
  if (!to.uncertainty) return;
  const A u = valid ? to.uncertainty[index] : A(0);
  const bool defined = math::is_uncertainty(u);
  const int64_t fixed = defined ? math::to_fixed(u) : 0;
  if (valid && to.shared.uncertainty >= 0) {
    uint32_t* sum = words + to.shared.uncertainty + cell * kUncertaintyWords;
    if (fixed != 0) add_sum(sum, uint32_t(fixed));
    if (!defined) atomic_add(sum + 2, 1);
  } else if (valid && to.state.uncertainty) {
    add_unless_zero(to.state.uncertainty + cell, fixed);
    if (!defined) atomic_add(to.state.uncertainty + to.classes * to.classes + cell, 1);
  }
  if (to.state.histogram) {
    const int bin = defined ? math::uncertainty_bin(float(u)) : kUncertaintyBins;
    count_together(to.state.histogram, valid ? int(right) * (kUncertaintyBins + 1) + bin : -1);
  }
}

template <class A>
SEGUNC_DEVICE void count_confidence(const Counting<A>& to, uint32_t* words, bool right,
                                    A confidence) {
  const bool defined = math::is_confidence(confidence);
  const int64_t fixed = defined ? math::to_fixed(confidence) : 0;
  const int bin = defined ? math::calibration_bin(fixed, to.state.bins) : int(to.state.bins);
  if (to.shared.calibration >= 0) {
    uint32_t* row = words + to.shared.calibration + bin * kCalibrationWords;
    atomic_add(row, 1);
    if (right) atomic_add(row + 1, 1);
    if (fixed != 0) add_sum(row + 2, uint32_t(fixed));
  } else {
    int64_t* row = to.state.calibration + int64_t(bin) * kCalibrationColumns;
    atomic_add(row + kBinPixels, 1);
    add_unless_zero(row + kBinCorrect, right);
    add_unless_zero(row + kBinConfidence, fixed);
  }
}

}  // namespace segunc::cuda::counting
