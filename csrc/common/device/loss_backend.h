// A backend of a loss on a GPU.
#pragma once
#include "backend.h"
#include "reduction.h"

namespace segunc::cuda {

struct LossBackend : Backend {
  using Backend::Backend;

  int64_t normalizer_partials(const NormalizerParams& p) const {
    return cuda::normalizer_partials(p);
  }
  void normalizer(const NormalizerParams& p, double* normalizer) const {
    cuda::normalizer(p, normalizer, stream());
  }
  void finish_loss(const double* partial, int64_t partials, const double* normalizer, void* loss,
                   Dtype dtype) const {
    cuda::finish_loss(partial, partials, normalizer, loss, dtype, stream());
  }
};

}  // namespace segunc::cuda
