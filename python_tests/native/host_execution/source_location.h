#pragma once
#include <string>

namespace segunc::host {

// "file:line" of the call before a return address; an offset into the module where the line is not
// known (no addr2line, no debug information).
std::string source_location(const void* return_address);

}  // namespace segunc::host
