// Runs CUDA kernels on the host: every thread of a block is a fiber, a few blocks are resident at
// once, and a seeded scheduler interleaves them at barriers, warp operations and atomics (in the
// race build at every memory access). One operating-system thread; not re-entrant.
//
// What csrc/common/device/host.h calls, and the controls of the tests.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace segunc::host {

// A kernel did what CUDA leaves undefined, or what would hang a GPU.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A place in a kernel's source.
struct Site {
  const char* file = "";
  const char* function = "";
  int line = 0;
  static constexpr Site caller(const char* file = __builtin_FILE(),
                               const char* function = __builtin_FUNCTION(),
                               int line = __builtin_LINE()) {
    return {file, function, line};
  }
  bool operator==(const Site& other) const {
    return line == other.line && std::strcmp(file, other.file) == 0;
  }
};

// kernel: the identity of what body runs. Throws Error where a GPU would refuse the launch.
void launch(const void* kernel, unsigned blocks, unsigned threads, size_t dynamic_shared_bytes,
            void (*body)(const void*), const void* arguments);

// Constant for as long as a frame of a kernel lives, since a fiber never becomes another thread.
[[gnu::const]] unsigned thread_index();
[[gnu::const]] unsigned block_index();
[[gnu::const]] unsigned block_size();
[[gnu::const]] unsigned grid_size();

// Fenced by red zones and full of garbage until written. tag is the array's identity.
void* shared_array(const void* tag, size_t bytes, size_t alignment);
void* dynamic_shared();

int barrier_count(bool predicate, Site site);

enum class WarpOperation : uint8_t {
  sync,
  ballot,
  match_any,
  shuffle,
  shuffle_up,
  shuffle_down,
  shuffle_xor,
};
// argument: a source lane, a distance or a mask of lanes.
uint64_t warp_operation(WarpOperation operation, uint32_t mask, uint64_t value, unsigned argument,
                        Site site);

enum class AtomicOperation : uint8_t { add, min, max, exchange, compare_exchange, load, store };
uint64_t atomic(AtomicOperation operation, void* p, int bytes, bool is_signed, uint64_t value,
                uint64_t expected, Site site);

[[noreturn]] void fail(const char* message, Site site);

// The launches that follow are scheduled by this seed: 0 runs threads in order, 1 in reverse, every
// other one draws its order, its switch points and the number of resident blocks.
void set_seed(uint64_t seed);

// What can be broken, and how.
enum class Operation : uint8_t {
  barrier,    // nobody waits
  warp_sync,  // nobody waits
  exchange,   // shuffles and votes: each lane sees itself alone
  atomic,     // a read and a write, between which others come
  relaxed,    // a plain access
};
struct Fault {
  Operation operation{};
  std::string file;  // the end of its path
  int line = 0;
};
// The launches that follow run with this operation broken, until clear_fault().
void inject_fault(const Fault& fault);
void clear_fault();

struct OperationSite {
  Operation operation;
  Site site;
};
// From now on operations are noted where they run; forgets those noted before.
void record_operations();
const std::vector<OperationSite>& recorded_operations();

struct Counters {
  uint64_t launches, threads, switches, accesses;
};
Counters counters();

}  // namespace segunc::host
