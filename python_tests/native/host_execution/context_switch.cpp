#include "context_switch.h"

#include <cstdint>
#include <cstring>

// The registers that a callee preserves, below them nothing: the rest is the caller's to save.
#if defined(__x86_64__)
asm(R"(
.text
.globl segunc_switch_context
.hidden segunc_switch_context
.type segunc_switch_context, @function
segunc_switch_context:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size segunc_switch_context, .-segunc_switch_context
.section .note.GNU-stack, "", @progbits
.text
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl segunc_switch_context
.hidden segunc_switch_context
.type segunc_switch_context, %function
segunc_switch_context:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size segunc_switch_context, .-segunc_switch_context
.section .note.GNU-stack, "", %progbits
.text
)");
#else
#error "segunc_switch_context is not written for this processor"
#endif

namespace segunc::host {

void* new_context(char* top, void (*entry)()) {
  const auto address = reinterpret_cast<uintptr_t>(entry);
#if defined(__x86_64__)
  // Six zero registers, the entry that ret pops, and a null return address: an entry finds the
  // stack as after a call, 8 below a multiple of 16, and an unwinder its end.
  constexpr int kWords = 8, kEntry = 6;
#else
  constexpr int kWords = 20, kEntry = 11;  // x30
#endif
  uintptr_t frame[kWords] = {};
  frame[kEntry] = address;
  char* const stack_pointer = top - sizeof frame;
  std::memcpy(stack_pointer, frame, sizeof frame);
  return stack_pointer;
}

}  // namespace segunc::host
