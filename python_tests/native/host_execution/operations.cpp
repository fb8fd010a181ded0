#include "operations.h"

#include <algorithm>
#include <cstring>

namespace segunc::host {
namespace {

constexpr unsigned kWarpSize = 32;

template <class T>
uint64_t apply(AtomicOperation operation, void* p, T value, T expected) {
  T old;
  std::memcpy(&old, p, sizeof old);
  T next = old;
  switch (operation) {
    case AtomicOperation::add: {
      using U = std::make_unsigned_t<T>;  // wraps
      next = T(U(old) + U(value));
      break;
    }
    case AtomicOperation::min:
      next = std::min(old, value);
      break;
    case AtomicOperation::max:
      next = std::max(old, value);
      break;
    case AtomicOperation::exchange:
    case AtomicOperation::store:
      next = value;
      break;
    case AtomicOperation::compare_exchange:
      if (old == expected) next = value;
      break;
    case AtomicOperation::load:
      break;
  }
  if (operation != AtomicOperation::load) std::memcpy(p, &next, sizeof next);
  uint64_t bits = 0;
  std::memcpy(&bits, &old, sizeof old);
  return bits;
}

template <class Signed>
uint64_t apply(AtomicOperation operation, void* p, bool is_signed, uint64_t value,
               uint64_t expected) {
  using Unsigned = std::make_unsigned_t<Signed>;
  return is_signed ? apply<Signed>(operation, p, Signed(value), Signed(expected))
                   : apply<Unsigned>(operation, p, Unsigned(value), Unsigned(expected));
}

}  // namespace

uint64_t warp_result(WarpOperation operation, unsigned lane, uint32_t mask,
                     const std::array<WarpOperand, 32>& operands, Random& random) {
  const unsigned argument = operands[lane].argument;
  uint64_t bits = 0;
  unsigned source = lane;
  switch (operation) {
    case WarpOperation::sync:
      return 0;
    case WarpOperation::ballot:
    case WarpOperation::match_any:
      for (unsigned i = 0; i < kWarpSize; i++) {
        const bool set = operation == WarpOperation::ballot
                             ? operands[i].value != 0
                             : operands[i].value == operands[lane].value;
        if ((mask >> i & 1) != 0 && set) bits |= uint64_t(1) << i;
      }
      return bits;
    case WarpOperation::shuffle:
      source = argument % kWarpSize;
      break;
    case WarpOperation::shuffle_up:
      if (lane >= argument) source = lane - argument;
      break;
    case WarpOperation::shuffle_down:
      if (lane + argument < kWarpSize) source = lane + argument;
      break;
    case WarpOperation::shuffle_xor:
      if ((lane ^ argument) < kWarpSize) source = lane ^ argument;
      break;
  }
  return (mask >> source & 1) != 0 ? operands[source].value : random();
}

uint64_t result_of_lane_alone(WarpOperation operation, unsigned lane, uint64_t value) {
  const uint64_t bit = uint64_t(1) << lane;
  if (operation == WarpOperation::ballot) return value != 0 ? bit : 0;
  return operation == WarpOperation::match_any ? bit : value;
}

uint64_t apply_atomic(AtomicOperation operation, void* p, int bytes, bool is_signed, uint64_t value,
                      uint64_t expected) {
  switch (bytes) {
    case 1:
      return apply<int8_t>(operation, p, is_signed, value, expected);
    case 2:
      return apply<int16_t>(operation, p, is_signed, value, expected);
    case 4:
      return apply<int32_t>(operation, p, is_signed, value, expected);
    default:
      return apply<int64_t>(operation, p, is_signed, value, expected);
  }
}

}  // namespace segunc::host
