// What tests ask of the host execution: schedules, broken operations, counters.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "host_execution.h"

namespace segunc::host {

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
  uint64_t runs;  // by threads
};
// From now on operations are noted where they run; forgets those noted before.
void record_operations();
const std::vector<OperationSite>& recorded_operations();

struct Counters {
  uint64_t launches, threads, switches, accesses, host_flags;
  // Of the launch that had the most since the seed was set, static and dynamic together.
  uint64_t shared_bytes;
};
Counters counters();

}  // namespace segunc::host
