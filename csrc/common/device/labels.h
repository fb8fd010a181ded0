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
// bad_target: host-mapped, {1, the value} where a target is out of range.
SEGUNC_DEVICE int label_of(int64_t target, int64_t classes, int64_t ignore_index,
                           int64_t* bad_target) {
  const int label = label_of(target, classes, ignore_index);
  if (label == kOutOfRange && bad_target) store_host_flag(bad_target, target);  // report: rare
  return label;
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
  switch (p.target_type) {
    case IndexType::i64:
      return load_targets_of<int64_t>(p, pixels, first, target);
    case IndexType::i32:
      return load_targets_of<int32_t>(p, pixels, first, target);
    default:
      return load_targets_of<uint8_t>(p, pixels, first, target);
  }
}

// Of V targets, with one branch that is hardly ever taken for those that are out of range.
template <int V, class Params>
SEGUNC_DEVICE void labels_of(const Params& p, const int64_t (&target)[V], int (&label)[V]) {
  bool flags = false;
#pragma unroll
  for (int j = 0; j < V; j++) {
    label[j] = label_of(target[j], p.map.classes, p.ignore_index);
    flags |= label[j] == kOutOfRange;
  }
  if (!flags || !p.bad_target) return;
  // report: begin rare
#pragma unroll
  for (int j = 0; j < V; j++) {
    if (label[j] == kOutOfRange) store_host_flag(p.bad_target, target[j]);
  }
  // report: end
}

// Of V pixels from `first` on.
template <int V, class Params>
SEGUNC_DEVICE void load_labels(const Params& p, int64_t first, int (&label)[V]) {
  int64_t target[V];
  load_targets(p, AdjacentPixels<V>(), first, target);
  labels_of(p, target, label);
}

}  // namespace segunc::device
