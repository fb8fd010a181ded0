// The gradient of Dice and cross-entropy on a GPU, of planar logits of the target's size and at
// most 32 classes: one read of the logits and one write, which may go to where they were read.
//
//   dl/dz_c = e_c / s * (a_c + shift) + on_label [y = c]     (math/dice.h, e_c / s = p_c)
// The labelled class takes part in the loop as any other; its element is written once more, by the
// thread that has written it.
#include "planar.h"

namespace segunc::cuda {
namespace {

constexpr int kThreads = PlanarPolicy::kPlanarThreads;

// Derived from machine code and occupancy, not yet measured on a GPU.
//
// At the bandwidth of a copy an H200 issues 55 instructions for a logit and its gradient in fp32
// and 27 in bf16. With int64 targets and a weight a pixel, sm_90 takes (fp32 / bf16)
//   15.2 / 16.9  with 19 classes, in at most 128 registers, so that 512 threads are resident
//   17.5 / 20.3  with 21, where the compiler does not know their number
//   24.4 / 28.8  with 19, where pixels are no aligned vectors, either
// Instructions a logit on sm_90.
// report: budget dice_gradient_planar_registers_kernel<float, *Adjacent*, 2, 2* 70
// report: budget dice_gradient_planar_registers_kernel<float, *Adjacent*, 19, 19* 17
// report: budget dice_gradient_planar_registers_kernel<float, *Adjacent*, 24, 17* 19
// report: budget dice_gradient_planar_registers_kernel<float, *Spaced*, 24, 9* 27
// report: budget dice_gradient_planar_registers_kernel<bfloat16, *Adjacent*, 2, 2* 76
// report: budget dice_gradient_planar_registers_kernel<bfloat16, *Adjacent*, 19, 19* 18
// report: budget dice_gradient_planar_registers_kernel<bfloat16, *Adjacent*, 24, 17* 22
// report: budget dice_gradient_planar_registers_kernel<bfloat16, *Spaced*, 24, 9* 31

// Resident blocks that the compiler has to leave registers for, as many as it can without spilling.
template <int Classes>
constexpr int kPlanarGradientBlocks = Classes > 19  ? 3
                                      : Classes > 8 ? 4
                                                    : 6;  // tuning

template <class T, class Variant>
__global__ void __launch_bounds__(PlanarPolicy::kPlanarThreads,
                                  kPlanarGradientBlocks<Variant::kClasses>)
    dice_gradient_planar_registers_kernel(const DiceParams p, const ImageWork work,
                                          const ExactDiceShares exact) {
  using Pixels = typename Variant::Pixels;
  constexpr int K = Variant::kClasses, V = Pixels::kCount;
  SEGUNC_SHARED(by_predicted, float[K]);
  SEGUNC_SHARED(by_common, float[K]);
  const int classes = int(p.map.classes);
  const DiceShares<float> shares(p, exact);
  const float factor = cross_entropy_factor<float>(p);
  int64_t block;
  const int64_t image = work.blocks_of_image.divide(block_index(), block);
  float slope = 0;
  if (int(thread()) < K) {
    float of_common = 0;
    if (int(thread()) < classes) {
      const double upstream = double(*static_cast<const float*>(p.upstream));
      const double* const coefficients =
          p.coefficients + (p.by_image ? image : 0) * kDiceSlopes * classes;
      slope = float(coefficients[kByPredicted * classes + thread()] * upstream);
      of_common = float(coefficients[kByCommon * classes + thread()] * upstream);
    }
    by_predicted[thread()] = slope;
    by_common[thread()] = of_common;
  }
  const bool finite = barrier_count(!(slope - slope == 0.f)) == 0;

  const auto present = [&](int c) { return c < Variant::kLeast || c < classes; };
  const int step = int(work.blocks_of_image.value), tiles = int(work.tiles);
  // report: hot C * V
  for (int tile = int(block); tile < tiles; tile += step) {
    const int64_t start = int64_t(tile) * (kThreads * V);
    const int count = tile_pixels(kThreads * V, work.pixels - start);
    const int at = Pixels::first(int(thread()));
    if (at >= count) continue;
    const Pixels pixels(count - at);
    const int64_t index = image * work.pixels + start + at;
    UnreportedTarget bad;
    PlanarPixels<K, V> of;
    load_pixels<Variant>(p, pixels,
                         static_cast<const T*>(p.input) + image * p.map.image_stride + start + at,
                         index, bad, of);
    if (p.grad_pixel_weight) {
      // report: begin rare
      Vector<float, V> gradient;
#pragma unroll
      for (int j = 0; j < V; j++) {
        gradient[j] =
            if_valid(of.label[j], factor * cross_entropy_of(shares, of.label[j], of.softmax[j]));
      }
      pixels.store(static_cast<float*>(p.grad_pixel_weight) + index, gradient);
      // report: end
    }
    if (!p.grad_input) continue;

    // Read from shared memory wherever they are used: all of them would live in registers
    // throughout.
    const float* slopes = rematerialized_shared(by_predicted);
    float inverse[V], dot[V] = {};
#pragma unroll
    for (int j = 0; j < V; j++) inverse[j] = inverse_of_sum(of.softmax[j].sum);
    if (p.squared) {
      // report: begin rare
#pragma unroll
      for (int c = 0; c < K; c++) {
#pragma unroll
        for (int j = 0; j < V; j++) {
          const float probability = of.exponential[c][j] * inverse[j];
          dot[j] += math::dice_slope(true, slopes[c], probability) * probability;
        }
      }
      // report: end
    } else {
#pragma unroll
      for (int c = 0; c < K; c++) {
#pragma unroll
        for (int j = 0; j < V; j++) dot[j] += slopes[c] * of.exponential[c][j];
      }
#pragma unroll
      for (int j = 0; j < V; j++) dot[j] *= inverse[j];
    }
    float shift[V], labelled[V], on_label[V];
#pragma unroll
    for (int j = 0; j < V; j++) {
      const int label = of.label[j] < 0 ? 0 : of.label[j];
      const float on_target = shares.on_target(label);
      labelled[j] = exponential(of.softmax[j].target_shifted);
      const auto terms = math::dice_terms(dot[j], by_common[label], labelled[j] * inverse[j],
                                          factor * of.weight[j], on_target, on_target);
      shift[j] = if_valid(of.label[j], terms.shift);
      on_label[j] = terms.on_label;
      inverse[j] = if_valid(of.label[j], inverse[j]);
    }

    // From exponentials to gradients, in place.
    slopes = rematerialized_shared(by_predicted);
    if (p.squared) {
      // report: begin rare
      const auto gradient_of = [&](int c, int j, float e) {
        const float probability = e * inverse[j];
        return math::dice_derivative(probability, math::dice_slope(true, slopes[c], probability),
                                     shift[j]);
      };
#pragma unroll
      for (int c = 0; c < K; c++) {
#pragma unroll
        for (int j = 0; j < V; j++) of.exponential[c][j] = gradient_of(c, j, of.exponential[c][j]);
      }
#pragma unroll
      for (int j = 0; j < V; j++) {
        if (of.label[j] >= 0) labelled[j] = gradient_of(of.label[j], j, labelled[j]);
      }
      // report: end
    } else {
      float shift_by_sum[V];
#pragma unroll
      for (int j = 0; j < V; j++) shift_by_sum[j] = inverse[j] * shift[j];
      const auto gradient_of = [&](int c, int j, float e) {
        return e * (slopes[c] * inverse[j] + shift_by_sum[j]);
      };
#pragma unroll
      for (int c = 0; c < K; c++) {
#pragma unroll
        for (int j = 0; j < V; j++) of.exponential[c][j] = gradient_of(c, j, of.exponential[c][j]);
      }
#pragma unroll
      for (int j = 0; j < V; j++) {
        if (of.label[j] >= 0) labelled[j] = gradient_of(of.label[j], j, labelled[j]);
      }
    }
    const unsigned gradient_stride = rematerialized(unsigned(p.grad_map.class_stride));
    T* const gradient =
        static_cast<T*>(p.grad_input) + image * p.grad_map.image_stride + start + at;
#pragma unroll
    for (int c = 0; c < K; c++) {
      if (!present(c)) continue;
      Vector<T, V> result;
#pragma unroll
      for (int j = 0; j < V; j++) result[j] = from_accumulate<T>(of.exponential[c][j]);
      pixels.store(gradient + product(c, gradient_stride), result);
    }
    // Once more the labelled class, as one element.
#pragma unroll
    for (int j = 0; j < V; j++) {
      if (of.label[j] < 0) continue;
      gradient[product(of.label[j], gradient_stride) + pixels.distance(j)] =
          from_accumulate<T>(labelled[j] + on_label[j]);
    }
    // Of an ignored pixel, products with 0 that are not 0.
    bool any = false;
#pragma unroll
    for (int j = 0; j < V; j++) {
      any |= of.label[j] == kIgnored && !(finite && of.softmax[j].sum < kInfinity<float>);
    }
    if (!any) continue;
    // report: begin rare
#pragma unroll 1
    for (int c = 0; c < classes; c++) {
#pragma unroll
      for (int j = 0; j < V; j++) {
        if (of.label[j] != kIgnored || !pixels.has(j)) continue;
        gradient[product(c, gradient_stride) + pixels.distance(j)] = from_accumulate<T>(0.f);
      }
    }
    // report: end
  }
  // report: end
}

}  // namespace

void launch_planar_gradient(const DiceParams& params, const ImageWork& work, Stream stream) {
  const auto run = [&](auto t) {
    using T = decltype(t);
    if constexpr (!std::is_same_v<T, double>) {
      with_planar_variant<T>(params, [&](auto variant) {
        launch(dice_gradient_planar_registers_kernel<T, decltype(variant)>,
               work.images * work.blocks, kThreads, 0, stream, params, work,
               ExactDiceShares(params));
      });
    }
  };
  with_dtype("dice_gradient", params.dtype, run);
}

}  // namespace segunc::cuda
