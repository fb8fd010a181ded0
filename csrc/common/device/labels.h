// A pixel's class by its target.
#pragma once
#include "../element.h"
#include "device.h"

namespace segunc::device {

// Instead of a class: a pixel that counts nothing, one whose target is no class, and none at all.
constexpr int kIgnored = -1, kOutOfRange = -2, kOutside = -3;

// bad_target: host-mapped, {1, the value} where a target is out of range.
SEGUNC_DEVICE int label_of(int64_t target, int64_t classes, int64_t ignore_index,
                           int64_t* bad_target) {
  if (target == ignore_index) return kIgnored;
  if (target >= 0 && target < classes) return int(target);
  if (bad_target) store_host_flag(bad_target, target);  // report: rare
  return kOutOfRange;
}

template <int V, class Index, class Params>
SEGUNC_DEVICE void load_labels_of(const Params& p, int64_t first, int (&label)[V]) {
  const auto target = load_vector<V>(static_cast<const Index*>(p.target) + first);
#pragma unroll
  for (int j = 0; j < V; j++) {
    label[j] = label_of(int64_t(target[j]), p.map.classes, p.ignore_index, p.bad_target);
  }
}
// Of V pixels from `first` on.
template <int V, class Params>
SEGUNC_DEVICE void load_labels(const Params& p, int64_t first, int (&label)[V]) {
  switch (p.target_type) {
    case IndexType::i64:
      return load_labels_of<V, int64_t>(p, first, label);
    case IndexType::i32:
      return load_labels_of<V, int32_t>(p, first, label);
    default:
      return load_labels_of<V, uint8_t>(p, first, label);
  }
}

}  // namespace segunc::device
