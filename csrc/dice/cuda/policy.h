// How the kernels of Dice are launched.
#pragma once
#include <type_traits>

#include "../../common/device/device.h"
#include "../../common/device/integer.h"
#include "../params.h"

namespace segunc::cuda {

using namespace device;

struct DicePolicy {  // tuning
  static constexpr int kThreads = 256;
  static constexpr int64_t kMaxBlocks = at_scale(8192);
};

// Resident blocks that the compiler has to leave registers for.
template <class T>
constexpr int kDiceBlocks = std::is_same_v<T, double> ? 2 : 4;  // tuning

}  // namespace segunc::cuda
