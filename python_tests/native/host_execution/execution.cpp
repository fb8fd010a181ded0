#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "address_sanitizer.h"
#include "block_memory.h"
#include "common/device/limits.h"
#include "context_switch.h"
#include "controls.h"
#include "faults.h"
#include "host_execution.h"
#include "memory_access.h"
#include "operations.h"
#include "race_detector.h"
#include "schedule.h"
#include "source_location.h"

namespace segunc::host {
namespace {

#ifdef SEGUNC_RACE_DETECTOR
constexpr bool kDetectRaces = true;
#else
constexpr bool kDetectRaces = false;
#endif

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = device::kMaxBlockThreads;
constexpr unsigned kMaxResident = 3;  // blocks in flight
// Scheduling decisions without a thread finishing or a barrier or warp operation completing, after
// which the kernel is taken to wait for what never comes.
constexpr uint64_t kMaxIdleSteps = 10'000'000;

enum class State : uint8_t { ready, at_barrier, at_warp_operation, finished };

struct Block;

struct Fiber {
  unsigned thread, rank;
  Block* block;
  State state;
  void* stack_pointer;
  char* stack;
  void* fake_stack;  // AddressSanitizer's
  WarpClock clock;
  // What it waits for, and the result when it no longer does.
  Site site;
  WarpOperation operation;
  uint32_t mask;
  unsigned argument;
  uint64_t value;
  bool predicate;

  unsigned lane() const { return thread % kWarpSize; }
  unsigned warp() const { return thread / kWarpSize; }
};

// Bits per lane.
struct Warp {
  uint32_t present, at_warp_operation, at_barrier;
};

struct Block {
  explicit Block(unsigned slot) : slot(slot), memory(kMaxThreads) {}
  const unsigned slot;
  BlockMemory memory;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  unsigned index, live = 0;
  unsigned waiting;  // threads at a barrier
  Site barrier;      // the one that they wait at
  uint32_t epoch;    // barriers passed
};

std::string describe(const Site& site) {
  return std::string(site.file) + ":" + std::to_string(site.line);
}
std::string describe(unsigned block, unsigned thread) {
  return "block " + std::to_string(block) + " thread " + std::to_string(thread);
}
std::string describe(const Fiber& fiber) { return describe(fiber.block->index, fiber.thread); }

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The static shared arrays that launches of a kernel were seen to use. On a GPU a kernel has all of
// its arrays in every launch, whether that reaches them or not.
struct StaticShared {
  std::set<const void*> tags;
  size_t bytes = 0;
};

class Execution {
 public:
  void launch(const void* kernel, unsigned blocks, unsigned threads, size_t dynamic_shared_bytes,
              void (*body)(const void*), const void* arguments);
  int barrier_count(bool predicate, Site site);
  uint64_t warp_operation(WarpOperation operation, uint32_t mask, uint64_t value, unsigned argument,
                          Site site);
  uint64_t atomic(AtomicOperation operation, void* p, int bytes, bool is_signed, uint64_t value,
                  uint64_t expected, Site site, const void* code);
  void plain_access(const void* p, size_t bytes, bool write, const void* code);
  void* shared_array(const void* tag, size_t bytes, size_t alignment);
  [[noreturn]] void fail(const std::string& message, Site site) const {
    throw Error(describe(*current_) + ": " + message + " at " + describe(site));
  }

  Faults& faults() { return faults_; }
  const Fiber& current() const { return *current_; }
  unsigned blocks() const { return blocks_; }
  unsigned threads() const { return threads_; }
  const Counters& counters() const { return counters_; }
  void count_host_flag() { counters_.host_flags++; }
  void set_seed(uint64_t seed) {
    seed_ = seed;
    launches_since_seed_ = 0;
    counters_.shared_bytes = 0;
  }

 private:
  static void fiber_entry();
  void run_fiber();
  void choose_policy();
  void start_block(Block& block, unsigned index, size_t dynamic_shared_bytes);
  void finish_barrier(Block& block);

  // Fibers that can run, by rank: a position in the order that the policy prefers.
  void make_ready(Fiber& fiber);
  void make_waiting(State state, Site site);
  Fiber* pick();
  void note_progress() { idle_steps_ = 0; }

  // Lets others run until this fiber is picked again.
  void reschedule();
  void maybe_reschedule(unsigned one_in);
  void switch_to(Fiber& next, bool finished);
  // Leaves a fiber for launch(); for good if the launch has failed.
  void switch_to_launch(bool finished);
  void arrive(void* fake_stack);

  void record(std::exception_ptr failure) {
    if (!failure_) failure_ = std::move(failure);
  }
  void record(const std::string& message) { record(std::make_exception_ptr(Error(message))); }
  void record_deadlock();
  uint64_t exchange(WarpOperation operation, uint32_t mask, uint64_t value, unsigned argument,
                    Site site);
  void check_shared();
  void check_access(const void* p, size_t bytes, bool write, bool atomic, const void* code);

  uint64_t seed_ = 0, launches_since_seed_ = 0;
  Random random_;
  Policy policy_ = Policy::forward;
  unsigned switch_one_in_ = 4;

  bool running_ = false;
  unsigned blocks_ = 0, threads_ = 0, resident_ = 1;
  void (*body_)(const void*) = nullptr;
  const void* arguments_ = nullptr;
  std::exception_ptr failure_;

  std::vector<std::unique_ptr<Block>> slots_;
  BitSet<kMaxResident * kMaxThreads> ready_;
  std::array<Fiber*, kMaxResident * kMaxThreads> fiber_of_rank_{};
  std::array<unsigned, kMaxResident * kMaxThreads> rank_order_{};
  uint64_t idle_steps_ = 0;

  Fiber* current_ = nullptr;
  void* launch_stack_pointer_ = nullptr;
  const void* launch_stack_ = nullptr;
  size_t launch_stack_bytes_ = 0;
  bool left_launch_ = false;

  std::map<const void*, StaticShared> static_shared_;  // by kernel
  StaticShared* static_of_kernel_ = nullptr;
  size_t dynamic_bytes_ = 0;

  Faults faults_;
  RaceDetector races_;
  Counters counters_{};
};

Execution execution;

// ---- Launch

void Execution::launch(const void* kernel, unsigned blocks, unsigned threads,
                       size_t dynamic_shared_bytes, void (*body)(const void*),
                       const void* arguments) {
  if (running_) throw Error("a launch inside a kernel");
  if (threads == 0 || threads > kMaxThreads || blocks == 0) {
    throw Error("invalid launch configuration: " + std::to_string(blocks) + " blocks of " +
                std::to_string(threads) + " threads");
  }
  static_of_kernel_ = &static_shared_[kernel];
  dynamic_bytes_ = dynamic_shared_bytes;
  check_shared();
  while (slots_.size() < kMaxResident) {
    slots_.push_back(std::make_unique<Block>(unsigned(slots_.size())));
  }
  blocks_ = blocks;
  threads_ = threads;
  body_ = body;
  arguments_ = arguments;
  failure_ = nullptr;
  idle_steps_ = 0;
  counters_.launches++;
  choose_policy();
  ready_.clear();
  races_.begin_launch();
  for (const auto& slot : slots_) {
    slot->live = 0;
    slot->fibers.clear();
  }

  running_ = true;
  const BlockOrder order(blocks, policy_, random_);
  uint64_t started = 0;
  while (!failure_) {
    for (unsigned i = 0; i < resident_; i++) {
      Block& slot = *slots_[i];
      if (slot.live > 0 || started == blocks) continue;
      try {
        start_block(slot, order(started++), dynamic_shared_bytes);
      } catch (...) {
        record(std::current_exception());
      }
    }
    if (ready_.empty() || failure_) break;
    run_fiber();
  }
  running_ = false;
  current_ = nullptr;
  for (const auto& slot : slots_) slot->memory.unpoison();
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Execution::check_shared() {
  const size_t bytes = round_up(static_of_kernel_->bytes, 16) + dynamic_bytes_;
  counters_.shared_bytes = std::max<uint64_t>(counters_.shared_bytes, bytes);
  if (bytes <= device::kMaxSharedBytes) return;
  throw Error("the kernel has " + std::to_string(static_of_kernel_->bytes) +
              " bytes of static shared memory and is launched with " +
              std::to_string(dynamic_bytes_) + " bytes of dynamic, more than " +
              std::to_string(device::kMaxSharedBytes) + " bytes together");
}

void* Execution::shared_array(const void* tag, size_t bytes, size_t alignment) {
  BlockMemory& memory = current_->block->memory;
  if (void* const known = memory.find(tag)) return known;
  StaticShared& of_kernel = *static_of_kernel_;
  if (of_kernel.tags.insert(tag).second) {
    of_kernel.bytes = round_up(of_kernel.bytes, alignment) + bytes;
    check_shared();
  }
  return memory.add(tag, bytes, alignment, random_);
}

void Execution::choose_policy() {
  random_ = Random(seed_ * 0x9e3779b97f4a7c15ull ^ ++launches_since_seed_ * 0xd1b54a32d192ed03ull);
  if (seed_ == 0) {
    policy_ = Policy::forward;
  } else if (seed_ == 1) {
    policy_ = Policy::backward;
  } else {
    policy_ = random_.one_in(2) ? Policy::uniform : Policy::priority;
  }
  switch_one_in_ = 1u << random_.below(4);
  resident_ = policy_ == Policy::forward ? 1 : 1 + random_.below(kMaxResident);
  const unsigned ranks = resident_ * threads_;
  for (unsigned i = 0; i < ranks; i++) {
    rank_order_[i] = policy_ == Policy::backward ? ranks - 1 - i : i;
  }
  if (policy_ == Policy::priority) {
    for (unsigned i = ranks; i > 1; i--) {
      std::swap(rank_order_[i - 1], rank_order_[random_.below(i)]);
    }
  }
}

void Execution::start_block(Block& block, unsigned index, size_t dynamic_shared_bytes) {
  block.memory.reset(dynamic_shared_bytes, random_);
  if (kDetectRaces) races_.forget(block.memory.shared(), BlockMemory::kSharedBytes);
  block.index = index;
  block.live = threads_;
  block.waiting = 0;
  block.epoch = 0;
  block.fibers.resize(threads_);
  block.warps.assign((threads_ + kWarpSize - 1) / kWarpSize, Warp{});
  for (unsigned i = 0; i < threads_; i++) {
    Fiber& fiber = block.fibers[i];
    fiber = Fiber{};
    fiber.thread = i;
    fiber.rank = rank_order_[block.slot * threads_ + i];
    fiber.block = &block;
    fiber.stack = block.memory.stack(i);
    fiber.clock[fiber.lane()] = 1;
    block.warps[fiber.warp()].present |= 1u << fiber.lane();
    address_sanitizer::unpoison(fiber.stack, BlockMemory::kStackBytes);
    // Staggered, or the tops of all stacks would fall into the same cache sets.
    char* const top = fiber.stack + BlockMemory::kStackBytes - i % kWarpSize * 64;
    fiber.stack_pointer = new_context(top, fiber_entry);
    fiber_of_rank_[fiber.rank] = &fiber;
    make_ready(fiber);
  }
  counters_.threads += threads_;
}

void Execution::run_fiber() {
  current_ = pick();
  counters_.switches++;
  left_launch_ = true;
  void* fake_stack = nullptr;
  address_sanitizer::start_switch(&fake_stack, current_->stack, BlockMemory::kStackBytes);
  segunc_switch_context(&launch_stack_pointer_, current_->stack_pointer);
  address_sanitizer::finish_switch(fake_stack, nullptr, nullptr);
}

void Execution::fiber_entry() {
  Execution& e = execution;
  e.arrive(nullptr);
  try {
    e.body_(e.arguments_);
  } catch (...) {
    e.record(std::current_exception());
  }
  Fiber& self = *e.current_;
  Block& block = *self.block;
  self.state = State::finished;
  e.ready_.erase(self.rank);
  block.warps[self.warp()].present &= ~(1u << self.lane());
  block.live--;
  e.note_progress();
  if (!e.failure_ && block.waiting > 0) {
    e.record(describe(self) + " has returned while others wait at the barrier at " +
             describe(block.barrier));
  }
  if (!e.failure_ && block.live > 0 && e.ready_.empty()) e.record_deadlock();
  if (!e.failure_ && block.live == 0) {
    try {
      block.memory.check_red_zones();
    } catch (...) {
      e.record(std::current_exception());
    }
  }
  if (block.live == 0 || e.failure_) {
    e.switch_to_launch(true);
  } else {
    e.switch_to(*e.pick(), true);
  }
  std::abort();  // a finished fiber never continues
}

// ---- Scheduling

void Execution::make_ready(Fiber& fiber) {
  fiber.state = State::ready;
  ready_.insert(fiber.rank);
}

void Execution::make_waiting(State state, Site site) {
  current_->state = state;
  current_->site = site;
  ready_.erase(current_->rank);
}

Fiber* Execution::pick() {
  const bool anywhere =
      policy_ == Policy::uniform || (policy_ != Policy::forward && random_.one_in(64));
  return fiber_of_rank_[ready_.next(anywhere ? random_.below(resident_ * threads_) : 0)];
}

void Execution::reschedule() {
  if (!failure_ && ready_.empty()) record_deadlock();
  if (!failure_ && ++idle_steps_ > kMaxIdleSteps) {
    record("no progress: " + describe(*current_) + " and others wait for what never comes");
  }
  if (failure_) switch_to_launch(false);
  Fiber* const next = pick();
  if (next != current_) switch_to(*next, false);
}

void Execution::maybe_reschedule(unsigned one_in) {
  if (random_.one_in(one_in)) reschedule();
}

void Execution::switch_to(Fiber& next, bool finished) {
  Fiber& self = *current_;
  counters_.switches++;
  current_ = &next;
  address_sanitizer::start_switch(finished ? nullptr : &self.fake_stack, next.stack,
                                  BlockMemory::kStackBytes);
  segunc_switch_context(&self.stack_pointer, next.stack_pointer);
  arrive(self.fake_stack);
}

void Execution::switch_to_launch(bool finished) {
  Fiber& self = *current_;
  address_sanitizer::start_switch(finished ? nullptr : &self.fake_stack, launch_stack_,
                                  launch_stack_bytes_);
  segunc_switch_context(&self.stack_pointer, launch_stack_pointer_);
  arrive(self.fake_stack);
}

void Execution::arrive(void* fake_stack) {
  const void* stack = nullptr;
  size_t bytes = 0;
  address_sanitizer::finish_switch(fake_stack, &stack, &bytes);
  if (left_launch_) {
    launch_stack_ = stack;
    launch_stack_bytes_ = bytes;
    left_launch_ = false;
  }
}

void Execution::record_deadlock() {
  constexpr int kMaxNamed = 4;
  std::string message = "deadlock:";
  int named = 0;
  for (const auto& slot : slots_) {
    for (const Fiber& fiber : slot->fibers) {
      const bool at_barrier = fiber.state == State::at_barrier;
      if (!at_barrier && fiber.state != State::at_warp_operation) continue;
      if (named++ == kMaxNamed) break;
      message += " " + describe(fiber) + " waits at the " +
                 (at_barrier ? "barrier" : "warp operation") + " at " + describe(fiber.site) + ";";
    }
  }
  record(message);
}

// ---- Blocks and warps

int Execution::barrier_count(bool predicate, Site site) {
  Fiber& self = *current_;
  Block& block = *self.block;
  if (faults_.strikes(Operation::barrier, site)) {
    maybe_reschedule(switch_one_in_);
    return predicate ? int(threads_) : 0;
  }
  if (block.live < threads_) fail("a barrier after some threads have returned", site);
  if (block.waiting > 0 && !(block.barrier == site)) {
    fail("a divergent barrier: others wait at " + describe(block.barrier), site);
  }
  block.barrier = site;
  self.predicate = predicate;
  if (++block.waiting == block.live) {
    finish_barrier(block);
    reschedule();
  } else {
    block.warps[self.warp()].at_barrier |= 1u << self.lane();
    make_waiting(State::at_barrier, site);
    reschedule();
  }
  return int(self.value);
}

void Execution::finish_barrier(Block& block) {
  note_progress();
  block.epoch++;
  block.waiting = 0;
  for (Warp& warp : block.warps) warp.at_barrier = 0;
  unsigned count = 0;
  for (const Fiber& fiber : block.fibers) count += fiber.predicate;
  for (Fiber& fiber : block.fibers) {
    fiber.value = count;
    if (fiber.state == State::at_barrier) make_ready(fiber);
  }
}

uint64_t Execution::warp_operation(WarpOperation operation, uint32_t mask, uint64_t value,
                                   unsigned argument, Site site) {
  if (operation == WarpOperation::sync) {
    if (!faults_.strikes(Operation::warp_sync, site)) {
      return exchange(operation, mask, value, argument, site);
    }
    maybe_reschedule(switch_one_in_);
    return 0;
  }
  const bool alone = faults_.strikes(Operation::exchange, site);
  const uint64_t result = exchange(operation, mask, value, argument, site);
  return alone ? result_of_lane_alone(operation, current_->lane(), value) : result;
}

uint64_t Execution::exchange(WarpOperation operation, uint32_t mask, uint64_t value,
                             unsigned argument, Site site) {
  Fiber& self = *current_;
  Fiber* const lanes = &self.block->fibers[self.warp() * kWarpSize];
  Warp& warp = self.block->warps[self.warp()];
  if ((mask >> self.lane() & 1) == 0) fail("the calling lane is not in the mask", site);
  if ((mask & ~warp.present) != 0) {
    fail("the mask names a lane that has returned or does not exist", site);
  }
  if ((mask & warp.at_barrier) != 0) fail("the mask names a lane that waits at a barrier", site);
  self.operation = operation;
  self.mask = mask;
  self.value = value;
  self.argument = argument;
  warp.at_warp_operation |= 1u << self.lane();
  if ((mask & ~warp.at_warp_operation) != 0) {
    make_waiting(State::at_warp_operation, site);
    reschedule();
    return self.value;
  }

  // This lane completes the operation.
  note_progress();
  warp.at_warp_operation &= ~mask;
  std::array<WarpOperand, kWarpSize> operands{};
  WarpClock joined{};
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const Fiber& lane = lanes[__builtin_ctz(rest)];
    if (lane.mask != mask || lane.operation != operation) {
      fail("the lanes of a mask disagree on the operation or on the mask", site);
    }
    operands[lane.lane()] = {lane.value, lane.argument};
    for (unsigned i = 0; i < kWarpSize; i++) joined[i] = std::max(joined[i], lane.clock[i]);
  }
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    Fiber& lane = lanes[__builtin_ctz(rest)];
    lane.value = warp_result(operation, lane.lane(), mask, operands, random_);
    // The other operations exchange values but order no memory.
    if (operation == WarpOperation::sync) {
      lane.clock = joined;
      lane.clock[lane.lane()]++;
    }
    if (&lane != &self) make_ready(lane);
  }
  reschedule();
  return self.value;
}

// ---- Memory

uint64_t Execution::atomic(AtomicOperation operation, void* p, int bytes, bool is_signed,
                           uint64_t value, uint64_t expected, Site site, const void* code) {
  if (reinterpret_cast<uintptr_t>(p) % unsigned(bytes) != 0) {
    throw Error(describe(*current_) + ": a misaligned atomic");
  }
  const bool loads = operation == AtomicOperation::load;
  const bool relaxed = loads || operation == AtomicOperation::store;
  const bool broken = faults_.strikes(relaxed ? Operation::relaxed : Operation::atomic, site);
  maybe_reschedule(switch_one_in_);
  if (!broken || relaxed) {
    if (kDetectRaces) check_access(p, size_t(bytes), !loads, !broken, code);
    return apply_atomic(operation, p, bytes, is_signed, value, expected);
  }
  if (kDetectRaces) check_access(p, size_t(bytes), false, false, code);
  uint64_t word = 0;
  std::memcpy(&word, p, size_t(bytes));
  const uint64_t old = apply_atomic(operation, &word, bytes, is_signed, value, expected);
  reschedule();
  if (kDetectRaces) check_access(p, size_t(bytes), true, false, code);
  std::memcpy(p, &word, size_t(bytes));
  return old;
}

void Execution::plain_access(const void* p, size_t bytes, bool write, const void* code) {
  constexpr unsigned kPlainPerAtomic = 8;
  if (!running_ || current_->block->memory.is_stack(p)) return;
  if (failure_) switch_to_launch(false);
  maybe_reschedule(switch_one_in_ * kPlainPerAtomic);
  check_access(p, bytes, write, false, code);
}

void Execution::check_access(const void* p, size_t bytes, bool write, bool atomic,
                             const void* code) {
  counters_.accesses++;
  const Fiber& self = *current_;
  const Block& block = *self.block;
  const Accessor by = {block.index, uint16_t(self.thread), block.epoch, &self.clock};
  RaceDetector::Race race;
  if (!races_.access(by, p, bytes, write, atomic, code, &race)) return;
  record(std::string("race: a ") + (write ? "write" : "read") + " by " + describe(self) + " at " +
         source_location(code) + " and a " + (race.earlier_was_write ? "write" : "read") + " by " +
         describe(race.earlier.block, race.earlier.thread) + " at " +
         source_location(race.earlier.code));
  // The fiber is abandoned: going on with the value could crash.
  switch_to_launch(false);
}

}  // namespace

// ---- The interface

void launch(const void* kernel, unsigned blocks, unsigned threads, size_t dynamic_shared_bytes,
            void (*body)(const void*), const void* arguments) {
  execution.launch(kernel, blocks, threads, dynamic_shared_bytes, body, arguments);
}

unsigned thread_index() { return execution.current().thread; }
unsigned block_index() { return execution.current().block->index; }
unsigned block_size() { return execution.threads(); }
unsigned grid_size() { return execution.blocks(); }

void* shared_array(const void* tag, size_t bytes, size_t alignment) {
  return execution.shared_array(tag, bytes, alignment);
}
void* dynamic_shared() { return execution.current().block->memory.dynamic(); }

int barrier_count(bool predicate, Site site) { return execution.barrier_count(predicate, site); }

uint64_t warp_operation(WarpOperation operation, uint32_t mask, uint64_t value, unsigned argument,
                        Site site) {
  return execution.warp_operation(operation, mask, value, argument, site);
}

uint64_t atomic(AtomicOperation operation, void* p, int bytes, bool is_signed, uint64_t value,
                uint64_t expected, Site site) {
  return execution.atomic(operation, p, bytes, is_signed, value, expected, site,
                          __builtin_return_address(0));
}

void plain_access(const void* p, size_t bytes, bool write, const void* code) {
  execution.plain_access(p, bytes, write, code);
}

void count_host_flag() { execution.count_host_flag(); }

void fail(const char* message, Site site) { execution.fail(message, site); }

void set_seed(uint64_t seed) { execution.set_seed(seed); }

void inject_fault(const Fault& fault) { execution.faults().inject(fault); }
void clear_fault() { execution.faults().clear(); }
void record_operations() { execution.faults().record(); }
const std::vector<OperationSite>& recorded_operations() { return execution.faults().sites(); }

Counters counters() { return execution.counters(); }

}  // namespace segunc::host
