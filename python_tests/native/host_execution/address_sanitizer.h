// What AddressSanitizer must be told about fibers and shared memory; nothing in other builds.
#pragma once
#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace segunc::host::address_sanitizer {

#ifdef __SANITIZE_ADDRESS__
// save: where the left context keeps its fake stack, null if it never continues.
inline void start_switch(void** save, const void* stack, size_t bytes) {
  __sanitizer_start_switch_fiber(save, stack, bytes);
}
// saved: what start_switch kept when this context was left, null for a new one. stack, bytes: of
// the context that was left; may be null.
inline void finish_switch(void* saved, const void** stack, size_t* bytes) {
  __sanitizer_finish_switch_fiber(saved, stack, bytes);
}
inline void poison(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void unpoison(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
inline void start_switch(void**, const void*, size_t) {}
inline void finish_switch(void*, const void**, size_t*) {}
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
#endif

}  // namespace segunc::host::address_sanitizer
