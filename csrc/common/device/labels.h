// A pixel's class by its target.
#pragma once
#include "../element.h"
#include "device.h"
#include "pixels.h"

namespace segunc::device {

// Instead of a class: a pixel that counts nothing, one whose target is no class, and none at all.
constexpr int kIgnored = -1, kOutOfRange = -2, kOutside = -3;

SEGUNC_DEVICE int label_of(int64_t target, int64_t classes, int64_t ignore_index) {
  if (target == ignore_index) return kIgnored;
  return uint64_t(target) < uint64_t(classes) ? int(target) : kOutOfRange;
}

// What a thread remembers of the values that are no classes: one of them. The host gets to know one
// a warp when the kernel ends. Its memory is far away: told of every pixel, as where all have an
// ignore_index that nobody has named, it would take thousands of times as long as the kernel.
struct BadTarget {
  int64_t value = 0;  // a class wherever there are pixels: none so far

  SEGUNC_DEVICE void remember(int64_t target) { value = target; }
  // The whole warp takes part. flag: host-mapped, {1, the value}, or null.
  SEGUNC_DEVICE void report(int64_t* flag) const {
    if (!flag) return;
    const unsigned found = ballot(kFullMask, value != 0);
    if (int(lane()) == find_first_set(found) - 1) store_host_flag(flag, value);
  }
};

// The same of a block, in shared memory, for threads without registers to spare. A barrier is
// between its construction and its use.
struct BadTargetOfBlock {
  int64_t* value;

  SEGUNC_DEVICE explicit BadTargetOfBlock(int64_t* shared) : value(shared) {
    if (thread() == 0) *value = 0;
  }
  SEGUNC_DEVICE void remember(int64_t target) { store_relaxed(value, target); }  // report: rare
  // The whole block takes part.
  SEGUNC_DEVICE void report(int64_t* flag) const {
    barrier();
    if (flag && thread() == 0 && *value != 0) store_host_flag(flag, *value);
  }
};

// The same of a kernel that does not report them.
struct UnreportedTarget {
  SEGUNC_DEVICE void remember(int64_t) const {}
};

template <class Bad>
SEGUNC_DEVICE int label_of(int64_t target, int64_t classes, int64_t ignore_index, Bad& bad) {
  const int label = label_of(target, classes, ignore_index);
  if (label == kOutOfRange) bad.remember(target);
  return label;
}

// Calls run(Y()) with the type of the targets.
template <class Run>
SEGUNC_DEVICE auto with_index_type(IndexType type, Run run) {
  switch (type) {
    case IndexType::i64:
      return run(int64_t());
    case IndexType::i32:
      return run(int32_t());
    case IndexType::i16:
      return run(int16_t());
    default:
      return run(uint8_t());
  }
}

// The targets of pixels (pixels.h), of which `first` is the first; ignore_index where one is
// missing. Apart from their labels, so that nothing waits for them yet.
template <class Index, class Params, class Pixels, int V>
SEGUNC_DEVICE void load_targets_of(const Params& p, const Pixels& pixels, int64_t first,
                                   int64_t (&target)[V]) {
  const auto stored = pixels.load(static_cast<const Index*>(p.target) + first, Index());
#pragma unroll
  for (int j = 0; j < V; j++) target[j] = pixels.has(j) ? int64_t(stored[j]) : p.ignore_index;
}
template <class Params, class Pixels, int V>
SEGUNC_DEVICE void load_targets(const Params& p, const Pixels& pixels, int64_t first,
                                int64_t (&target)[V]) {
  with_index_type(p.target_type,
                  [&](auto y) { load_targets_of<decltype(y)>(p, pixels, first, target); });
}

template <int V, class Params, class Bad>
SEGUNC_DEVICE void labels_of(const Params& p, const int64_t (&target)[V], int (&label)[V],
                             Bad& bad) {
#pragma unroll
  for (int j = 0; j < V; j++) label[j] = label_of(target[j], p.map.classes, p.ignore_index, bad);
}

// Of V pixels from `first` on.
template <int V, class Params, class Bad>
SEGUNC_DEVICE void load_labels(const Params& p, int64_t first, int (&label)[V], Bad& bad) {
  int64_t target[V];
  load_targets(p, AdjacentPixels<V>(), first, target);
  labels_of(p, target, label, bad);
}

}  // namespace segunc::device
