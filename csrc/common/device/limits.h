// What every target grants a block without an opt-in. Known to both vocabularies, to the policies
// of kernels, and to the host execution, which refuses a launch beyond it.
#pragma once
#include <cstddef>

namespace segunc::device {

constexpr unsigned kMaxBlockThreads = 1024;
// Static arrays and dynamic memory together.
constexpr size_t kMaxSharedBytes = 48 << 10;

}  // namespace segunc::device
