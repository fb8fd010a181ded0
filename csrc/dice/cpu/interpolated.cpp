// The gradient of Dice and cross-entropy on a CPU, of logits that are interpolated to the target's
// size.
#include "../../common/cpu/interpolation_gradient.h"
#include "gradient.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace dice;

// A thread's.
template <class A, int T>
class GradientPixels {
 public:
  explicit GradientPixels(const DiceParams& p) : p_(p), shares_(p), slopes_(p) {}

  template <class N>
  SEGUNC_HD void gradients(int64_t image, int64_t at, N n, A* tile, const A* maximum) {
    slopes_.choose_image(image);
    read_pixels(p_, shares_, at, n, px_);
    std::copy_n(maximum, T, px_.maximum);
    const int C = int(p_.map.classes);
    const Ahead<A> nothing{tile, 0};
    if (p_.squared)
      logits_to_gradients<true>(p_, shares_, slopes_, C, at, n, tile, nothing, px_);
    else
      logits_to_gradients<false>(p_, shares_, slopes_, C, at, n, tile, nothing, px_);
  }

 private:
  const DiceParams& p_;
  const Shares<A> shares_;
  Slopes<A> slopes_;
  Pixels<A, T> px_;
};

template <class S, int T>
void run(const DiceParams& p, const GradientBands& bands, const Parallel& parallel) {
  const InterpolatedLogits logits{p.map,   p.grad_map,   p.interpolation, p.dtype,
                                  p.input, p.grad_input, p.scratch};
  way_back::interpolated_gradient<S, T>(logits, bands, parallel,
                                        [&] { return GradientPixels<accumulate_t<S>, T>(p); });
}

}  // namespace

void dice_gradient_interpolated(const DiceParams& p, const GradientBands& bands,
                                const Parallel& parallel) {
  // Strips of many classes are narrower, so that a thread's rows stay in its L2 cache.
  constexpr int64_t kWideClasses = 32;
  with_dtype(p.dtype, [&](auto s) {
    using S = decltype(s);
    if constexpr (std::is_same_v<S, double>)
      run<S, 32>(p, bands, parallel);
    else if (p.map.classes <= kWideClasses)
      run<S, 128>(p, bands, parallel);
    else
      run<S, 64>(p, bands, parallel);
  });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
