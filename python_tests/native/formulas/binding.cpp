// The formulas of csrc/math and the elements of csrc/common/element.h.
#include "binding.h"

#include <array>
#include <cmath>

#include "math/binary.h"
#include "math/counts.h"
#include "math/cross_entropy.h"
#include "math/exp_log.h"
#include "math/interpolate.h"
#include "math/label_uncertainty.h"
#include "math/modulation.h"
#include "math/moments.h"
#include "math/philox.h"

namespace segunc {
namespace {

template <class A>
math::Sigmoids<A> sigmoids_of(A z) {
  const A e = math::exp_nonpositive(math::minus_magnitude(z));
  return {e, A(1) / (A(1) + e)};
}

template <class A>
struct Functions {
  static A exponential(A x) { return math::exp_nonpositive(x); }
  static A inverse(A x) { return A(1) / x; }
  static A root(A x) { return std::sqrt(x); }
  static A logarithm(A x) { return math::log_positive(x); }
};

template <class A>
void define_formulas(py::module_& m) {
  m.def("exp_nonpositive", py::vectorize([](A x) { return math::exp_nonpositive(x); }));
  m.def("log_positive", py::vectorize([](A x) { return math::log_positive(x); }));
  m.def("negative_log_probability", py::vectorize([](A shifted, A log_sum) {
          return math::negative_log_probability(shifted, log_sum);
        }));
  m.def("cross_entropy", py::vectorize([](A on_target, A smooth, A target_shifted, A log_sum) {
          return math::cross_entropy(on_target, smooth, target_shifted, log_sum);
        }));
  m.def("cross_entropy_derivative", py::vectorize([](A exponential, A total_over_sum, A t) {
          return math::cross_entropy_derivative(exponential, total_over_sum, t);
        }));
  m.def("target_exponential", py::vectorize([](A on_target, A total, A sum) {
          return math::target_exponential(on_target, total, sum);
        }));
  m.def("sigmoid", py::vectorize([](A z) { return sigmoids_of(z).of(z); }));
  m.def("sigmoid_derivative", py::vectorize([](A z) { return sigmoids_of(z).derivative(); }));
  m.def("binary_cross_entropy", py::vectorize([](A t) {
          const auto sigmoids = sigmoids_of(t);
          const A sum = A(1) + sigmoids.exponential;
          return math::surprise_without_log(sigmoids, sum, t) + math::log_positive(sum);
        }));
  m.def("uncertain_loss", [](A mean, A log_variance, bool is_positive, bool may_flip, A threshold,
                             A uncertainty_weight, A bootstrap_weight, bool detached) {
    const math::LabelUncertainty<A> of{threshold, uncertainty_weight, bootstrap_weight, detached};
    const auto v =
        math::uncertain_loss<Functions<A>>(of, mean, log_variance, is_positive, may_flip);
    return std::array<A, 3>{v.loss, v.by_mean, v.by_log_variance};
  });
  m.def("to_fixed", py::vectorize([](A v) { return math::to_fixed(v); }));
  m.def("negative_log", py::vectorize([](A p) { return math::negative_log(p); }));
  m.def("uncertainty_bin", py::vectorize([](A v) { return math::uncertainty_bin(float(v)); }));
  m.def("calibration_bin", py::vectorize([](int64_t fixed, int64_t bins) {
          return math::calibration_bin(fixed, bins);
        }));
  m.def("entropy_term", py::vectorize([](A p) { return math::entropy_term(p); }));
  m.def("softmax_entropy", py::vectorize([](A log_sum, A dot, A inverse_sum) {
          return math::softmax_entropy(log_sum, dot, inverse_sum);
        }));
  m.def("weighted_exponent",
        py::vectorize([](A exponential, A d) { return math::weighted_exponent(exponential, d); }));
  m.def("modulated", [](int kind, A log_p, A rate, A peak, bool detached) {
    const auto modulated = math::modulated(ModulationKind(kind), log_p, rate, peak, detached);
    return py::make_tuple(modulated.factor, modulated.slope);
  });
  m.def("quarter_cos", py::vectorize([](A v) { return math::quarter_cos(v); }));
  m.def("quarter_sin", py::vectorize([](A v) { return math::quarter_sin(v); }));
  m.def("complement_of",
        py::vectorize([](A q) { return math::complement_of(q, math::exp_nonpositive(q)); }));
  m.def("accumulate_moments", [](A value, int64_t count, A mean, A squared_deviations) {
    math::accumulate_moments(value, A(1) / A(count), mean, squared_deviations);
    return py::make_tuple(mean, squared_deviations);
  });
  m.def("interpolate",
        py::vectorize([](A lower, A upper, A f) { return math::interpolate(lower, upper, f); }));
  // Per position: the neighbours and the upper one's weight.
  m.def("neighbours", [](int source, int size, bool align_corners) {
    const auto axis = math::interpolated_axis<A>(source, size, align_corners);
    py::array_t<int> lower(size), upper(size);
    py::array_t<A> weight(size);
    for (int i = 0; i < size; i++) {
      const auto n = math::neighbours_of(axis, i);
      lower.mutable_at(i) = n.lower, upper.mutable_at(i) = n.upper;
      weight.mutable_at(i) = n.weight;
    }
    return py::make_tuple(lower, upper, weight);
  });
  // Per source position: the positions that blend it, and the share it has in each of all.
  m.def("support", [](int source, int size, bool align_corners) {
    const auto axis = math::interpolated_axis<A>(source, size, align_corners);
    py::array_t<int> range({source, 2});
    py::array_t<A> share({source, size});
    for (int i = 0; i < source; i++) {
      const auto support = math::support_of(axis, i);
      range.mutable_at(i, 0) = support.first, range.mutable_at(i, 1) = support.last;
      for (int o = 0; o < size; o++)
        share.mutable_at(i, o) = math::interpolation_share(math::neighbours_of(axis, o), i);
    }
    return py::make_tuple(range, share);
  });
}

void define_random(py::module_& m) {
  m.def("philox", [](std::array<uint32_t, 4> counter, uint64_t key) {
    uint32_t words[4] = {counter[0], counter[1], counter[2], counter[3]};
    math::philox(words, key);
    return std::array<uint32_t, 4>{words[0], words[1], words[2], words[3]};
  });
}

void define_elements(py::module_& m) {
  m.def("bfloat16_to_float",
        py::vectorize([](uint16_t bits) { return to_accumulate(bfloat16{bits}); }));
  m.def("float16_to_float",
        py::vectorize([](uint16_t bits) { return to_accumulate(float16{bits}); }));
  m.def("float_to_bfloat16",
        py::vectorize([](float v) { return from_accumulate<bfloat16>(v).bits; }));
  m.def("float_to_float16",
        py::vectorize([](float v) { return from_accumulate<float16>(v).bits; }));
}

const Binding binding_of_formulas([](py::module_& m) {
  define_elements(m);
  define_random(m);
  py::module_ f32 = m.def_submodule("f32");
  define_formulas<float>(f32);
  py::module_ f64 = m.def_submodule("f64");
  define_formulas<double>(f64);
});

}  // namespace
}  // namespace segunc
