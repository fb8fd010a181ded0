// Runs CUDA kernels on the host: every thread of a block is a fiber, a few blocks are resident at
// once, and a seeded scheduler interleaves them at barriers, warp operations and atomics (in the
// race build at every memory access). One operating-system thread; not re-entrant.
//
// What csrc/common/device/host.h calls; the tests' controls are in controls.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>

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

// A report to the host, which a test counts: on a GPU it is slow.
void count_host_flag();

[[noreturn]] void fail(const char* message, Site site);

}  // namespace segunc::host
