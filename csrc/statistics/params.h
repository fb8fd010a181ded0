// What the statistics kernels read and write. S samples, N images, C classes, P pixels an image of
// the results, Q of the logits, which is P unless they are interpolated.
#pragma once
#include <cstdint>

#include "../common/class_map.h"
#include "../common/element.h"

namespace segunc {

// Maps over pixels, each [N, P] contiguous; A is float, or double for double logits.
struct StatisticsMaps {
  int64_t* prediction;
  void* confidence;
  void* std;
  void* entropy;
  void* expected_entropy;
  void* mutual_information;
};

// All samples at once.
struct StatisticsParams {
  const void* const* samples;  // [S] pointers to [N, C, Q] of dtype, each laid out as map
  int64_t count;               // S
  ClassMap map;
  Interpolation interpolation;
  Dtype dtype;
  StatisticsMaps maps;
  void* mean;  // [N, C, P] of A, contiguous, or null
};

// One more sample into a running state: probabilities' mean, their sum of squared deviations, and
// the sum of the samples' entropies.
struct AccumulateParams {
  const void* sample;  // [N, C, Q] of dtype, laid out as map
  ClassMap map;
  Interpolation interpolation;
  Dtype dtype;
  void* mean;                // [N, C, P] of A, contiguous
  void* squared_deviations;  // [N, C, P] of A, contiguous
  void* entropy_sum;         // [N, P] of A
  int64_t count;             // samples including this one; at 1 the state is not read
};

// The state to maps.
struct FinalizeParams {
  const void* mean;                // [N, C, P] of A, contiguous
  const void* squared_deviations;  // [N, C, P]
  const void* entropy_sum;         // [N, P]
  int64_t count, images, classes, pixels;
  Dtype dtype;  // f32 or f64: that of the state
  StatisticsMaps maps;
};

}  // namespace segunc
