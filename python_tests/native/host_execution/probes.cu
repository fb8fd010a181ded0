#include <stdexcept>

#include "common/device/device.h"
#include "host_execution/probes.h"

namespace segunc::probes {
namespace {

using namespace device;

constexpr int kThreads = 256;
constexpr int kBlocks = 4;

SEGUNC_DEVICE int global_thread() { return int(block_index()) * kThreads + int(thread()); }

// Shared memory is read by other threads without a barrier between.
__global__ void missing_barrier_kernel(int* data, bool correct) {
  SEGUNC_SHARED(values, int[kThreads]);
  values[thread()] = int(thread());
  if (correct) barrier();
  data[global_thread()] = values[kThreads - 1 - thread()];
}

// A buffer is written again while others may still read it.
__global__ void reused_buffer_kernel(int* data, bool correct) {
  SEGUNC_SHARED(values, int[kThreads]);
  unsigned sum = 0;  // of what may be garbage
  for (int i = 0; i < 4; i++) {
    values[thread()] = int(thread()) * (i + 1);
    barrier();
    sum += unsigned(values[(thread() + 97) % kThreads]);
    if (correct) barrier();
  }
  data[global_thread()] = int(sum);
}

// The lanes of a warp are taken to run in lockstep.
__global__ void assumed_lockstep_kernel(int* data, bool correct) {
  SEGUNC_SHARED(values, unsigned[kThreads]);
  values[thread()] = thread();
  if (correct) warp_sync();
  for (unsigned delta = kWarpSize / 2; delta > 0; delta /= 2) {
    if (lane() < delta) values[thread()] += values[thread() + delta];
    if (correct) warp_sync();
  }
  if (lane() == 0) data[global_thread()] = int(values[thread()]);
}

// A shuffle orders no memory.
__global__ void shuffle_as_barrier_kernel(int* data, bool correct) {
  SEGUNC_SHARED(values, int[kThreads]);
  values[thread()] = int(thread());
  const unsigned other = shuffle_xor(kFullMask, thread(), 1);
  if (correct) warp_sync();
  data[global_thread()] = values[other];
}

// The threads of a block wait at two barriers.
__global__ void divergent_barrier_kernel(int* data, bool correct) {
  if (correct || thread() < kThreads / 2) {
    barrier();
  } else {
    barrier();
  }
  data[global_thread()] = int(thread());
}

// Some threads return where others wait for them.
__global__ void early_return_kernel(int* data, bool correct) {
  if (!correct && thread() >= 200) return;
  barrier();
  data[global_thread()] = int(thread());
}

// The mask names lanes that take another branch.
__global__ void wrong_mask_kernel(int* data, bool correct) {
  int value = int(thread());
  if (thread() % 2 == 1) value = shuffle_xor(correct ? 0xaaaaaaaau : kFullMask, value, 2);
  data[global_thread()] = value;
}

// Half a warp is summed under the full mask after the other half has returned.
__global__ void returned_lanes_kernel(int* data, bool correct) {
  if (lane() >= kWarpSize / 2) return;
  const unsigned mask = correct ? 0xffffu : kFullMask;
  data[global_thread()] = int(ballot(mask, thread() % 3 == 0));
}

// Read, add, write: not atomic.
__global__ void plain_increment_kernel(int* data, bool correct) {
  int* const counter = data + thread() % 8;
  if (correct) {
    atomic_add(counter, 1);
  } else {
    *counter += 1;
  }
}

// A plain store where others use atomics.
__global__ void plain_store_kernel(int* data, bool correct) {
  if (thread() == 0) {
    if (correct) {
      atomic_max(data, int(block_index()));
    } else {
      *data = int(block_index());
    }
  } else {
    atomic_max(data, int(block_index()));
  }
}

// Shared memory is taken to be zero.
__global__ void missing_initialization_kernel(int* data, bool correct) {
  SEGUNC_SHARED(counts, int[kThreads]);
  if (correct) counts[thread()] = 0;
  barrier();
  atomic_add(&counts[thread() / 2 * 2], 1);
  barrier();
  data[global_thread()] = counts[thread()];
}

// Initialised by one warp, used by all.
__global__ void late_initialization_kernel(int* data, bool correct) {
  SEGUNC_SHARED(counts, int[kWarpSize]);
  if (warp() == 0) counts[lane()] = 0;
  if (correct) barrier();
  atomic_add(&counts[lane()], 1);
  barrier();
  if (warp() == 0) data[global_thread()] = counts[lane()];
}

// One past the end of a shared array.
__global__ void shared_overrun_kernel(int* data, bool correct) {
  SEGUNC_SHARED(values, int[kThreads]);
  for (int i = int(thread()); correct ? i < kThreads : i <= kThreads; i += kThreads) values[i] = i;
  barrier();
  data[global_thread()] = values[thread()];
}

__global__ void misaligned_vector_kernel(int* data, bool correct) {
  if (block_index() > 0 || thread() >= 8) return;
  const auto vector = load_vector<4>(data + kDataSize / 2 + 4 * thread() + (correct ? 0 : 1));
  data[thread()] = vector[3];
}

// Blocks exchange plain data under a flag: nothing orders them.
__global__ void unordered_blocks_kernel(int* data, bool correct) {
  if (thread() > 0) return;
  if (block_index() == 0) {
    store_relaxed(data + 8, 42);
    if (!correct) data[9] = 42;
  } else {
    const int other = correct ? load_relaxed(data + 8) : data[9];
    data[block_index()] = other == 42 || other == 0;
  }
}

// Union-find where a lost race is not retried.
__global__ void lost_union_kernel(int* data, bool correct) {
  if (block_index() > 0) return;
  const auto find = [&](int i) {
    for (int parent = load_relaxed(data + i); parent != i; parent = load_relaxed(data + i)) {
      i = parent;
    }
    return i;
  };
  int a = find(int(thread()));
  int b = find(int(thread() * 37 + 11) % kThreads);
  while (a != b) {
    if (a < b) {
      const int smaller = a;
      a = b;
      b = smaller;
    }
    const int old = atomic_min(data + a, b);
    if (old == a || !correct) break;
    a = find(old);
    b = find(b);
  }
}

// A block waits for one that may start only after it has ended.
__global__ void waiting_block_kernel(int* data, bool correct) {
  if (thread() > 0) return;
  if (block_index() == 0 && !correct) {
    while (load_relaxed(data) == 0) {
    }
  }
  if (block_index() + 1 == grid_size()) store_relaxed(data, 1);
}

// The block's sum is used by threads that do not have it.
__global__ void sum_elsewhere_kernel(int* data, bool correct) {
  double total = 0;
  for (int i = 0; i < 3; i++) total += block_sum(double(thread() + i));
  if (thread() == (correct ? 0 : kThreads - 1)) data[block_index()] = int(total);
}

__global__ void static_shared_kernel(bool reaches) {
  if (!reaches) return;
  SEGUNC_SHARED(values, int[kStaticBytes / sizeof(int)]);
  values[thread()] = int(thread());
}

struct Probe {
  const char* name;
  void (*kernel)(int*, bool);
};

constexpr Probe kProbes[] = {
    {"missing_barrier", missing_barrier_kernel},
    {"reused_buffer", reused_buffer_kernel},
    {"assumed_lockstep", assumed_lockstep_kernel},
    {"shuffle_as_barrier", shuffle_as_barrier_kernel},
    {"divergent_barrier", divergent_barrier_kernel},
    {"early_return", early_return_kernel},
    {"wrong_mask", wrong_mask_kernel},
    {"returned_lanes", returned_lanes_kernel},
    {"plain_increment", plain_increment_kernel},
    {"plain_store", plain_store_kernel},
    {"missing_initialization", missing_initialization_kernel},
    {"late_initialization", late_initialization_kernel},
    {"shared_overrun", shared_overrun_kernel},
    {"misaligned_vector", misaligned_vector_kernel},
    {"unordered_blocks", unordered_blocks_kernel},
    {"lost_union", lost_union_kernel},
    {"waiting_block", waiting_block_kernel},
    {"sum_elsewhere", sum_elsewhere_kernel},
};

}  // namespace

std::vector<std::string> names() {
  std::vector<std::string> result;
  for (const Probe& probe : kProbes) result.push_back(probe.name);
  return result;
}

void run(const std::string& name, bool correct, int32_t* data) {
  for (const Probe& probe : kProbes) {
    if (name == probe.name) {
      launch(probe.kernel, kBlocks, kThreads, 0, Stream{}, data, correct);
      return;
    }
  }
  throw std::invalid_argument("no probe is called " + name);
}

void launch_of_shape(int64_t blocks, unsigned threads, size_t dynamic_shared_bytes, bool reaches) {
  launch(static_shared_kernel, blocks, threads, dynamic_shared_bytes, Stream{}, reaches);
}

}  // namespace segunc::probes
