// The memory of a resident block: its threads' stacks and its shared arrays.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "schedule.h"

namespace segunc::host {

class BlockMemory {
 public:
  static constexpr size_t kStackBytes = 64 << 10;
  static constexpr size_t kSharedBytes = 100 << 10;  // with red zones

  explicit BlockMemory(unsigned threads);
  ~BlockMemory();
  BlockMemory(const BlockMemory&) = delete;
  BlockMemory& operator=(const BlockMemory&) = delete;

  // Of kStackBytes, below it a page that faults.
  char* stack(unsigned thread) const;
  bool is_stack(const void* p) const { return p >= stacks_ && p < stacks_ + stacks_bytes_; }

  // A new block moves in: no arrays but the dynamic one.
  void reset(size_t dynamic_bytes, Random& random);
  void* dynamic() const { return dynamic_; }
  // The array of this tag, null where there is none yet.
  void* find(const void* tag) const;
  // A new one, filled with garbage, NaN as a double, and followed by a red zone.
  void* add(const void* tag, size_t bytes, size_t alignment, Random& random);
  const char* shared() const { return shared_.get(); }
  // Error reports of AddressSanitizer may need to read what a finished launch left poisoned.
  void unpoison() const;
  // Throws Error where a red zone has changed.
  void check_red_zones() const;

 private:
  struct Free {
    void operator()(char* p) const;
  };
  struct Array {
    const void* tag;
    char* data;
  };
  struct RedZone {
    char* begin;
    char* end;
  };
  char* carve(size_t bytes, size_t alignment, Random& random);

  char* stacks_;
  size_t stacks_bytes_;
  std::unique_ptr<char, Free> shared_;
  size_t used_ = 0;
  char* dynamic_ = nullptr;
  std::vector<Array> arrays_;
  std::vector<RedZone> red_zones_;
};

}  // namespace segunc::host
