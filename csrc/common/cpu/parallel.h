// torch's threads, for kernels of several phases: one compiled for a variant cannot call torch.
#pragma once
#include <cstdint>

#include "../host_device.h"

namespace segunc {

struct Parallel {
  // Calls body(context, begin, end) over ranges that cover [0, count) without overlap.
  void (*run)(int64_t count, void (*body)(void* context, int64_t begin, int64_t end),
              void* context);
};

inline namespace SEGUNC_VARIANT {
template <class Body>
SEGUNC_HD void parallel_for(const Parallel& parallel, int64_t count, Body& body) {
  parallel.run(
      count,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); },
      &body);
}
}  // namespace SEGUNC_VARIANT

}  // namespace segunc
