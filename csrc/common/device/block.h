// Cooperative sums in an order that follows from the number of threads alone.
#pragma once
#ifdef SEGUNC_HOST_EXECUTION
#include "host.h"
#else
#include "gpu.h"
#endif

namespace segunc::device {

// The sum over a full warp, valid in lane 0. T: a type that shuffle_down takes.
template <class T>
SEGUNC_DEVICE T warp_sum(T value) {
#pragma unroll
  for (unsigned delta = kWarpSize / 2; delta > 0; delta /= 2) {
    value += shuffle_down(kFullMask, value, delta);
  }
  return value;
}

// What block_sum keeps in static shared memory.
using BlockSums = double[32];  // of warps

// The sum over a block of full warps, valid in thread 0. Every thread calls it, any number of
// times.
SEGUNC_DEVICE double block_sum(double value) {
  SEGUNC_SHARED(part, BlockSums);
  value = warp_sum(value);
  barrier();  // an earlier call may still be reading part
  if (lane() == 0) part[warp()] = value;
  barrier();
  if (warp() == 0) value = warp_sum(lane() < block_size() / kWarpSize ? part[lane()] : 0.0);
  return value;
}

// Of the losses of a block's pixels, if their sums are wanted. Every thread calls it.
template <class Params>
SEGUNC_DEVICE void store_partial(const Params& p, double sum) {
  if (p.partial) {
    sum = block_sum(sum);
    if (thread() == 0) p.partial[block_index()] = sum;
  }
}

}  // namespace segunc::device
