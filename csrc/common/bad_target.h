// What kernels on a GPU report of targets that are none.
#pragma once
#include <cstdint>

namespace segunc {

// In place of the value: of a target that should be 0 or 1.
constexpr int64_t kNeitherZeroNorOne = INT64_MIN;

}  // namespace segunc
