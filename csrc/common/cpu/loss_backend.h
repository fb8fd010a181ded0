// A backend of a loss on a CPU, which becomes one number in an order that no thread count changes.
#pragma once
#include "../reduction.h"
#include "backend.h"

SEGUNC_CPU_ENTRY(normalizer_units, NormalizerParams)

namespace segunc::cpu {

inline double ordered_sum(const double* partial, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += partial[i];
  return sum;
}

struct LossBackend : Backend {
  using Backend::Backend;

  int64_t normalizer_partials(const NormalizerParams& p) const { return units_of(p.count); }
  void normalizer(const NormalizerParams& p, double* normalizer) const {
    parallel(p.partials, normalizer_units, p);
    *normalizer = ordered_sum(p.partial, p.partials);
  }

  // loss is of float, or double for Dtype::f64.
  void finish_loss(const double* partial, int64_t partials, const double* normalizer, void* loss,
                   Dtype dtype) const {
    const double sum = ordered_sum(partial, partials) / (normalizer ? *normalizer : 1);
    if (dtype == Dtype::f64)
      *static_cast<double*>(loss) = sum;
    else
      *static_cast<float*>(loss) = float(sum);
  }
};

}  // namespace segunc::cpu
