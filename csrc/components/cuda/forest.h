// Forests of components, which threads unite at the same time.
//
// A forest is an array in which parents only decrease. Uniting puts the larger root under the
// smaller by an atomic minimum and goes on with the value that this displaced; so whatever happens
// at the same time, no union is lost.
#pragma once
#include "../../common/device/device.h"

namespace segunc::cuda::components {

using namespace device;

// What a node's parent is: its index, or, to order nodes by their first pixels, that of the parent
// in the upper half and the parent's index in the lower.
SEGUNC_DEVICE int node_of(int32_t parent) { return parent; }
SEGUNC_DEVICE int node_of(int64_t parent) { return int(parent); }
SEGUNC_DEVICE void make_root(int32_t* forest, int node, int) { forest[node] = node; }
SEGUNC_DEVICE void make_root(int64_t* forest, int node, int first_pixel) {
  forest[node] = int64_t(first_pixel) << 32 | node;
}

template <class Parent>
SEGUNC_DEVICE Parent find_root(const Parent* forest, int node) {
  Parent root = load_relaxed(forest + node);
  for (Parent above; (above = load_relaxed(forest + node_of(root))) != root;) root = above;
  return root;
}

template <class Parent>
SEGUNC_DEVICE void unite(Parent* forest, int a, int b) {
  for (;;) {
    Parent low = find_root(forest, a), high = find_root(forest, b);
    if (low == high) return;
    if (low > high) {
      const Parent swapped = low;
      low = high;
      high = swapped;
    }
    const Parent displaced = atomic_min(forest + node_of(high), low);
    if (displaced == high) return;  // it was still a root
    a = node_of(displaced);
    b = node_of(low);
  }
}

}  // namespace segunc::cuda::components
