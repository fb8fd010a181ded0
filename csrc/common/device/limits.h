// What every target grants a block without an opt-in. Known to both vocabularies, to the policies
// of kernels, and to the host execution, which refuses a launch beyond it.
#pragma once
#include <cstddef>

namespace segunc::device {

constexpr unsigned kMaxBlockThreads = 1024;
// Static arrays and dynamic memory together.
constexpr size_t kMaxSharedBytes = 48 << 10;

// The dynamic memory that fits beside a kernel's static arrays of these types, each of which a
// compiler may pad to 16 bytes.
template <class... Static>
constexpr size_t kMaxDynamicSharedBytes =
    kMaxSharedBytes - (size_t(0) + ... + ((sizeof(Static) + 15) / 16 * 16));

}  // namespace segunc::device
