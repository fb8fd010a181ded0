// Switching between stacks in a dozen instructions: swapcontext makes a system call each time, and
// a run of the tests switches some 10^9 times.
#pragma once

namespace segunc::host {

// Leaves the running context, whose stack pointer goes to *from, and continues the one of `to`.
extern "C" void segunc_switch_context(void** from, void* to);

// The stack pointer of a context that begins in entry, which never returns, on the stack below top
// (16-byte aligned).
void* new_context(char* top, void (*entry)());

}  // namespace segunc::host
