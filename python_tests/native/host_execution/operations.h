// The results of warp operations and atomics, as functions of their operands.
#pragma once
#include <array>
#include <cstdint>

#include "host_execution.h"
#include "schedule.h"

namespace segunc::host {

// What one lane brings to a warp operation.
struct WarpOperand {
  uint64_t value;
  unsigned argument;
};

// The result for a lane. A shuffle from a lane outside the mask is undefined: garbage.
uint64_t warp_result(WarpOperation operation, unsigned lane, uint32_t mask,
                     const std::array<WarpOperand, 32>& operands, Random& random);

// What a lane would see if it were the only one of the mask and every other one's source.
uint64_t result_of_lane_alone(WarpOperation operation, unsigned lane, uint64_t value);

// Updates *p and returns what was there.
uint64_t apply_atomic(AtomicOperation operation, void* p, int bytes, bool is_signed, uint64_t value,
                      uint64_t expected);

}  // namespace segunc::host
