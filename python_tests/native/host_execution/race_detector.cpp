#include "race_detector.h"

#include <algorithm>

namespace segunc::host {
namespace {

constexpr unsigned kWarpSize = 32;

bool ordered(const Access& earlier, const Accessor& now) {
  if (earlier.block != now.block) return false;
  if (earlier.thread == now.thread || earlier.epoch != now.epoch) return true;
  return earlier.thread / kWarpSize == now.thread / kWarpSize &&
         earlier.clock <= (*now.clock)[earlier.thread % kWarpSize];
}

}  // namespace

void RaceDetector::begin_launch() {
  launch_++;
  last_key_ = ~uintptr_t(0);
}

void RaceDetector::forget(const void* p, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(p);
  for (uintptr_t key = begin >> kPageBits; key <= (begin + bytes - 1) >> kPageBits; key++) {
    const auto page = pages_.find(key);
    if (page != pages_.end()) page->second->launch = 0;
  }
  last_key_ = ~uintptr_t(0);
}

RaceDetector::Cell& RaceDetector::cell(uintptr_t address) {
  const uintptr_t key = address >> kPageBits;
  if (key != last_key_) {
    std::unique_ptr<Page>& page = pages_[key];
    if (!page) page = std::make_unique<Page>();
    if (page->launch != launch_) {
      page->cells.fill(Cell{});
      page->launch = launch_;
    }
    last_key_ = key;
    last_page_ = page.get();
  }
  return last_page_->cells[address / 4 % last_page_->cells.size()];
}

bool RaceDetector::access(const Accessor& by, const void* p, size_t bytes, bool write, bool atomic,
                          const void* code, Race* race) {
  const auto begin = reinterpret_cast<uintptr_t>(p);
  for (uintptr_t at = begin; at < begin + bytes;) {
    const uintptr_t stop = std::min(at / 4 * 4 + 4, begin + bytes);
    const auto mask = uint8_t(((1u << (stop - at)) - 1) << at % 4);
    const Access now = {code,      by.block, by.epoch, (*by.clock)[by.thread % kWarpSize],
                        by.thread, mask,     atomic};
    const auto races = [&](const Access& earlier) {
      return (earlier.bytes & mask) != 0 && !(earlier.atomic && atomic) && !ordered(earlier, by);
    };
    Cell& c = cell(at);
    if (races(c.write)) {
      *race = {c.write, true};
      return true;
    }
    if (write) {
      for (const Access& read : c.reads) {
        if (races(read)) {
          *race = {read, false};
          return true;
        }
      }
      c.write = now;
    } else {
      if (c.reads[0].thread != now.thread || c.reads[0].block != now.block) c.reads[1] = c.reads[0];
      c.reads[0] = now;
    }
    at = stop;
  }
  return false;
}

}  // namespace segunc::host
