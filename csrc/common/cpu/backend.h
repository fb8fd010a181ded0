// What the families' backends share on a CPU: torch's threads, fresh memory, indices that are no
// class.
#pragma once
#include <climits>
#include <stdexcept>
#include <string>

#include "../tensors.h"
#include "isa.h"
#include "memory.h"
#include "parallel.h"
#include "units.h"

namespace segunc::cpu {

// Runs units of work on torch's threads.
template <class Params>
void parallel(int64_t units, void (*run)(const Params&, int64_t, int64_t), const Params& params,
              int64_t grain = 1) {
  torch::stable::parallel_for(0, units, grain,
                              [&](int64_t begin, int64_t end) { run(params, begin, end); });
}

// The same for kernels that have several phases.
inline constexpr Parallel kThreads{
    [](int64_t count, void (*body)(void*, int64_t, int64_t), void* context) {
      torch::stable::parallel_for(0, count, 1,
                                  [&](int64_t begin, int64_t end) { body(context, begin, end); });
    }};

// The first pixel of a map that holds no class, for kernels to record: they cannot throw.
struct BadClass {
  int64_t pixel = INT64_MAX;

  void raise(const char* name, const void* data, IndexType type, int64_t classes,
             std::optional<int64_t> ignore_index = std::nullopt) const {
    if (pixel == INT64_MAX) return;
    throw std::out_of_range(std::string(name) + ": expected a class in [0, " +
                            std::to_string(classes) + ")" +
                            (ignore_index ? " or " + std::to_string(*ignore_index) : "") +
                            ", got " + std::to_string(load_index(data, type, pixel)));
  }
};

struct Backend {
  explicit Backend(const Tensor&) {}

  // Before the first touch of a large result.
  static void prepare(void* fresh, int64_t bytes) { advise_huge_pages(fresh, bytes); }

  void fill(Tensor& scalar, double value) const {
    *static_cast<double*>(scalar.mutable_data_ptr()) = value;
  }
};

}  // namespace segunc::cpu
