// What the instrumentation of the race build (thread_sanitizer.cpp) tells the execution.
#pragma once
#include <cstddef>

namespace segunc::host {

// A plain access of a kernel, about to happen. code: the instruction after it.
void plain_access(const void* p, size_t bytes, bool write, const void* code);

}  // namespace segunc::host
