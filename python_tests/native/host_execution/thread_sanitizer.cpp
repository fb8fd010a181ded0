// The race build compiles kernels with -fsanitize=thread, which inserts a call before every memory
// access, and answers these calls here instead of linking libtsan: that one knows nothing of
// barriers and warps.
#include <cstddef>

#include "memory_access.h"

using segunc::host::plain_access;

#define SEGUNC_ACCESSES(bytes)                                                                     \
  void __tsan_read##bytes(void* p) { plain_access(p, bytes, false, __builtin_return_address(0)); } \
  void __tsan_write##bytes(void* p) { plain_access(p, bytes, true, __builtin_return_address(0)); } \
  void __tsan_unaligned_read##bytes(void* p) {                                                     \
    plain_access(p, bytes, false, __builtin_return_address(0));                                    \
  }                                                                                                \
  void __tsan_unaligned_write##bytes(void* p) {                                                    \
    plain_access(p, bytes, true, __builtin_return_address(0));                                     \
  }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
SEGUNC_ACCESSES(1)
SEGUNC_ACCESSES(2)
SEGUNC_ACCESSES(4)
SEGUNC_ACCESSES(8)
SEGUNC_ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) {
  plain_access(p, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  plain_access(p, bytes, true, __builtin_return_address(0));
}
}
