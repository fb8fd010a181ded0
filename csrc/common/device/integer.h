// Integers that compilers would otherwise handle badly in a kernel.
#pragma once
#include "../class_map.h"
#include "../integer.h"
#include "device.h"

namespace segunc::device {

// The same value, which the compiler cannot trace back. What it computes from a loop invariant like
// a stride, it hoists: all multiples of it would live in registers throughout an unrolled loop.
SEGUNC_DEVICE int64_t rematerialized(int64_t value) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+l"(value));
#endif
  return value;
}
SEGUNC_DEVICE unsigned rematerialized(unsigned value) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(value));
#endif
  return value;
}
SEGUNC_DEVICE int rematerialized(int value) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// The same for the address of shared memory, which is computed anew at each access otherwise.
template <class T>
SEGUNC_DEVICE T* rematerialized_shared(T* p) {
#ifdef __CUDA_ARCH__
  const unsigned address = rematerialized(unsigned(__cvta_generic_to_shared(p)));
  p = static_cast<T*>(__cvta_shared_to_generic(address));
#endif
  return p;
}

// A class's place from the stride of classes: one instruction, and with a constant class also the
// sum with a pointer. 64-bit factors would take three.
SEGUNC_DEVICE int64_t product(int c, unsigned stride) {
  return int64_t(uint64_t(unsigned(c)) * stride);
}

// Division by a number that the host knows. A 64-bit division is a call on a GPU, around which
// registers are saved to memory.
struct Divisor {
  int64_t value = 1;
  double reciprocal = 1;

  Divisor() = default;
  explicit Divisor(int64_t value) : value(value), reciprocal(1.0 / double(value)) {}

  // n / value for 0 <= n < 2^52: the product is off by less than one, in either direction.
  SEGUNC_DEVICE int64_t divide(int64_t n, int64_t& remainder) const {
    int64_t quotient = int64_t(double(n) * reciprocal);
    remainder = n - quotient * value;
    if (remainder < 0) {
      quotient--;
      remainder += value;
    } else if (remainder >= value) {
      quotient++;
      remainder -= value;
    }
    return quotient;
  }
};

// The same for small numbers, without floating-point arithmetic: exact while n * value < 2^32.
struct SmallDivisor {
  uint32_t value = 1;
  uint64_t reciprocal = uint64_t(1) << 32;  // 2^32 / value, rounded up

  SmallDivisor() = default;
  explicit SmallDivisor(uint32_t value)
      : value(value), reciprocal(((uint64_t(1) << 32) + value - 1) / value) {}

  SEGUNC_DEVICE uint32_t divide(uint32_t n, uint32_t& remainder) const {
    const uint32_t quotient = uint32_t((n * reciprocal) >> 32);
    remainder = n - quotient * value;
    return quotient;
  }
};

// The same for indices: n and value below 2^31.
struct IndexDivisor {
  uint32_t value = 1;
  uint32_t factor = uint32_t(1) << 31;  // 2^(31 + shift) / value, rounded up: it has 32 bits
  uint32_t shift = 0;                   // 2^shift is at least value

  IndexDivisor() = default;
  explicit IndexDivisor(int64_t divisor) : value(uint32_t(divisor)) {
    while (int64_t(1) << shift < divisor) shift++;
    factor = uint32_t(divide_up(int64_t(1) << (31 + shift), divisor));
  }

  SEGUNC_DEVICE int divide(int n, int& remainder) const {
    const uint32_t quotient = uint32_t(uint64_t(uint32_t(n) * 2) * factor >> 32) >> shift;
    remainder = n - int(quotient * value);
    return int(quotient);
  }
};

// pixel_offset of class_map.h without divisions.
struct PixelOffset {
  Divisor columns, rows;
  int64_t stride[3];

  explicit PixelOffset(const ClassMap& map)
      : columns(map.size[2]),
        rows(map.size[1]),
        stride{map.stride[0], map.stride[1], map.stride[2]} {}

  SEGUNC_DEVICE int64_t operator()(int64_t pixel) const {
    int64_t column, row;
    const int64_t plane = rows.divide(columns.divide(pixel, column), row);
    return plane * stride[0] + row * stride[1] + column * stride[2];
  }
};

}  // namespace segunc::device
