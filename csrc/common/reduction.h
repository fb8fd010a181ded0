// How losses per pixel become one number.
#pragma once
#include <cstdint>

#include "element.h"

namespace segunc {

// mean_images divides by N, where what each image adds is a mean by itself.
enum class Reduction : int { none = 0, mean = 1, sum = 2, mean_all = 3, mean_images = 4 };

inline bool divides(Reduction reduction) {
  return reduction != Reduction::none && reduction != Reduction::sum;
}

// sum of weight[target] over the valid pixels, the denominator of Reduction::mean.
struct NormalizerParams {
  const void* target;  // [count] of target_type
  const void* weight;  // [classes] of A, or null: then pixels are counted
  double* partial;     // [partials]
  int64_t partials;    // as many as the backend asks for
  int64_t count, classes, ignore_index;
  IndexType target_type;
  Dtype dtype;  // of the logits: tells A
};

}  // namespace segunc
