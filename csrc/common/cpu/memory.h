// Fresh memory for large results.
#pragma once
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace segunc::cpu {

// To be called before the first touch of a large result: one page fault per 2 MiB instead of one
// per 4 KiB, which would cost more time than computing the result.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kLarge = 4 << 20, kPage = 4096;
  if (bytes < kLarge) return;
  const auto begin = (reinterpret_cast<intptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<intptr_t>(data) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: may fail
#endif
}

}  // namespace segunc::cpu
