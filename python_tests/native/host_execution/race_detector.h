// Two accesses race if they overlap, at least one writes, not both are atomic and nothing orders
// them: a barrier between threads of a block, warp_sync between lanes of a warp. Atomics order
// nothing but themselves, blocks of a launch are never ordered.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace segunc::host {

// Per lane: the last moment of it that a thread is ordered after; its own moment at its own lane.
using WarpClock = std::array<uint32_t, 32>;

// The accessing thread, at this moment.
struct Accessor {
  uint32_t block;
  uint16_t thread;
  uint32_t epoch;  // barriers that its block has passed
  const WarpClock* clock;
};

struct Access {
  const void* code;  // the instruction after it
  uint32_t block, epoch, clock;
  uint16_t thread;
  uint8_t bytes;  // a bit per byte of the aligned 4; 0: none yet
  bool atomic;
};

class RaceDetector {
 public:
  // Orders everything so far before everything that follows.
  void begin_launch();
  // Forgets the accesses to the pages of [p, p + bytes).
  void forget(const void* p, size_t bytes);

  struct Race {
    Access earlier;
    bool earlier_was_write;
  };
  // Records an access. Returns whether it races, and then with what.
  bool access(const Accessor& by, const void* p, size_t bytes, bool write, bool atomic,
              const void* code, Race* race);

 private:
  // What is known of 4 bytes. Two readers suffice in practice: a third one that alone races with a
  // later write does so under another seed.
  struct Cell {
    Access write;
    std::array<Access, 2> reads;
  };
  static constexpr int kPageBits = 12;
  struct Page {
    uint64_t launch;
    std::array<Cell, (1 << kPageBits) / 4> cells;
  };
  Cell& cell(uintptr_t address);

  uint64_t launch_ = 1;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  uintptr_t last_key_ = ~uintptr_t(0);
  Page* last_page_ = nullptr;
};

}  // namespace segunc::host
