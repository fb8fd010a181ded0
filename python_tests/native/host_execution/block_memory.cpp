#include "block_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "address_sanitizer.h"
#include "host_execution.h"

namespace segunc::host {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStackPitch = BlockMemory::kStackBytes + kPage;
constexpr size_t kRedZone = 64;
constexpr char kRedZoneByte = '\xa5';

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

void BlockMemory::Free::operator()(char* p) const { std::free(p); }

BlockMemory::BlockMemory(unsigned threads) : stacks_bytes_(threads * kStackPitch) {
  void* const p = mmap(nullptr, stacks_bytes_, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw Error("no memory for the stacks of fibers");
  stacks_ = static_cast<char*>(p);
  for (unsigned i = 0; i < threads; i++) mprotect(stacks_ + i * kStackPitch, kPage, PROT_NONE);
  shared_.reset(static_cast<char*>(std::aligned_alloc(kPage, round_up(kSharedBytes, kPage))));
  if (!shared_) throw Error("no memory for shared arrays");
}

BlockMemory::~BlockMemory() {
  unpoison();
  munmap(stacks_, stacks_bytes_);
}

char* BlockMemory::stack(unsigned thread) const { return stacks_ + thread * kStackPitch + kPage; }

void BlockMemory::reset(size_t dynamic_bytes, Random& random) {
  address_sanitizer::poison(shared_.get(), kSharedBytes);
  arrays_.clear();
  red_zones_.clear();
  used_ = 0;
  dynamic_ = carve(dynamic_bytes, 16, random);
}

void* BlockMemory::find(const void* tag) const {
  const auto found = std::find_if(arrays_.begin(), arrays_.end(),
                                  [&](const Array& array) { return array.tag == tag; });
  return found != arrays_.end() ? found->data : nullptr;
}

void* BlockMemory::add(const void* tag, size_t bytes, size_t alignment, Random& random) {
  arrays_.push_back({tag, carve(bytes, alignment, random)});
  return arrays_.back().data;
}

char* BlockMemory::carve(size_t bytes, size_t alignment, Random& random) {
  char* const data = shared_.get() + round_up(used_, alignment);
  // Words of garbage may spill into the red zone, which is written after them.
  const size_t end = round_up(bytes, 8) + kRedZone;
  used_ = size_t(data - shared_.get()) + end;
  if (used_ > kSharedBytes) throw Error("a block uses too much shared memory");
  address_sanitizer::unpoison(data, end);
  for (size_t i = 0; i < bytes; i += 8) {
    const uint64_t garbage = random() | 0x7ff8000000000000ull;
    std::memcpy(data + i, &garbage, sizeof garbage);
  }
  std::memset(data + bytes, kRedZoneByte, end - bytes);
  red_zones_.push_back({data + bytes, data + end});
  address_sanitizer::poison(data, end);
  address_sanitizer::unpoison(data, bytes);
  return data;
}

void BlockMemory::unpoison() const { address_sanitizer::unpoison(shared_.get(), kSharedBytes); }

void BlockMemory::check_red_zones() const {
#ifndef __SANITIZE_ADDRESS__
  for (const RedZone& zone : red_zones_) {
    if (std::any_of(zone.begin, zone.end, [](char c) { return c != kRedZoneByte; })) {
      throw Error("a write past the end of a shared array");
    }
  }
#endif
}

}  // namespace segunc::host
