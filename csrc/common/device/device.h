// The only vocabulary that kernels use, so that the same source runs on a GPU (nvcc) and, thread by
// thread under a seeded scheduler, on the host (python_tests/native defines SEGUNC_HOST_EXECUTION
// and provides host_execution/). Any other compiler sees the type of a stream and nothing else.
//
// Grids and blocks are one-dimensional. What hosts cannot run stays out of kernels: cooperative
// groups, CUB, inline PTX, __activemask, cp.async, waiting for another block.
//
//   Stream, Grid, launch(kernel, grid, threads, dynamic_shared_bytes, stream, arguments...)
//   at_scale(bound)                  a bound on blocks that tests on the host must reach, too
//   thread(), block_index(), block_size(), grid_size(), lane(), warp()
//   SEGUNC_DEVICE                    a function of the device, always inlined
//   SEGUNC_SHARED(name, type);       a static shared array, e.g. SEGUNC_SHARED(part, double[8]);
//   dynamic_shared<T>()              the dynamic one, 16-byte aligned
//   barrier(), barrier_count(p)      of the block; the latter counts the threads where p holds
//   warp_sync, ballot, match_any, shuffle, shuffle_up, shuffle_down, shuffle_xor (mask first)
//   atomic_add, atomic_min, atomic_max, atomic_exchange, atomic_compare_exchange: integers only,
//                                    the old value is returned
//   load_relaxed, store_relaxed      what other threads may access meanwhile
//   load_read_only                   through the read-only cache
//   store_host_flag                  tells the host something without a synchronisation
//   count_leading_zeros, popcount, find_first_set
//   power_of_two, binary_logarithm, reciprocal, square_root: of floats, no calls
//   vector.h: Vector, load_vector, store_vector, store_vector_streaming
//   block.h: warp_sum, block_sum
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(SEGUNC_HOST_EXECUTION)
#include "block.h"
#include "host.h"
#include "vector.h"
#elif defined(__CUDACC__)
#include "block.h"
#include "gpu.h"
#include "vector.h"
#else
struct CUstream_st;
namespace segunc::device {
using Stream = CUstream_st*;
}
#endif
