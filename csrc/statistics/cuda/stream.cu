// Predictive statistics on a GPU as a stream: one more sample into a running state, and the state
// to maps. The state is that of samples.cu, a mean and squared deviations of every class and the
// sum of the entropies.
#include <type_traits>
#include <utility>

#include "../../common/device/integer.h"
#include "../../common/device/interpolation.h"
#include "../../common/device/warp_team.h"
#include "../../common/device/work.h"
#include "kernels.h"
#include "pixel.h"
#include "policy.h"

namespace segunc::cuda {
namespace {

using namespace statistics;

// ---- Launch policy ----

// Where nothing but maps is kept.
constexpr int kMapThreads = 256;  // tuning

// More classes than there are have little weight beside the state that is read and written.
using StateBuckets = std::integer_sequence<int, 16, 20, 24, 32>;  // tuning

// ---- accumulate ----

// The state is planar and contiguous whatever the logits are.
template <class A>
struct State {
  A* mean;
  A* squared_deviations;
  A* entropy_sum;
  A inverse_count;
  bool first;  // there is nothing to read yet
};

// index: of the pixel; first: of the owner's first class in the state, the classes of which are
// class_stride apart. The first Least registers always have a class.
template <int Least, int K, class Owner>
SEGUNC_DEVICE void add_to_state(const Owner& owner, const State<float>& state, int64_t index,
                                int64_t first, unsigned class_stride, bool inside,
                                float (&value)[K][1]) {
  const auto present = [&](int i) { return i < Least || i < owner.owned; };
  float* const mean = state.mean + first;
  float* const squared_deviations = state.squared_deviations + first;
  Moments<K, 1> moments;
  clear(moments);
  const bool reads = inside && !state.first;
  if (reads) {
    if (owner.leads()) moments.entropy_sum[0] = state.entropy_sum[index];
#pragma unroll
    for (int i = 0; i < K; i++) {
      if (!present(i)) continue;
      moments.mean[i][0] = mean[product(i, class_stride)];
      moments.squared_deviations[i][0] = squared_deviations[product(i, class_stride)];
    }
  }
  add_sample(owner, state.inverse_count, value, moments);
  if (!inside) return;
  if (owner.leads()) state.entropy_sum[index] = moments.entropy_sum[0];
#pragma unroll
  for (int i = 0; i < K; i++) {
    if (!present(i)) continue;
    mean[product(i, class_stride)] = moments.mean[i][0];
    squared_deviations[product(i, class_stride)] = moments.squared_deviations[i][0];
  }
}

template <class T, int K, int Least>
__global__ void __launch_bounds__(Policy::kRegisterThreads, kResidentBlocks<K + 8>)
    accumulate_planar_registers_kernel(const T* logits, const ClassMap map,
                                       const State<float> state, const Work work) {
  const Pixel owner(int(map.classes));
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t pixel;
    const int64_t image = work.tiles_per_image.divide(tile, pixel);
    pixel = pixel * work.tile + thread();
    if (pixel >= map.pixels) continue;
    float value[K][1];
    load_logits<Least>(logits + image * map.image_stride + pixel,
                       rematerialized(unsigned(map.class_stride)), owner.owned, value);
    add_to_state<Least>(owner, state, image * map.pixels + pixel,
                        image * map.classes * map.pixels + pixel,
                        rematerialized(unsigned(map.pixels)), true, value);
  }
}

template <class T, int K>
__global__ void __launch_bounds__(Policy::kInterpolatedThreads, kInterpolatedBlocks<K>)
    accumulate_interpolated_kernel(const T* logits, const InterpolatedPixels<float> pixels,
                                   const State<float> state, const Work work,
                                   const WarpTeams teams) {
  SEGUNC_SHARED(words, WarpTeam::Words);
  const PixelWarps owner(teams, words);
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    int64_t pixel;
    const int64_t image = work.tiles_per_image.divide(tile, pixel);
    pixel = pixel * work.tile + owner.pixel();
    const bool inside = pixel < pixels.count;
    float value[K][1];
    load_logits(pixels.at(image, pixel), logits + owner.first * pixels.map.class_stride,
                rematerialized(pixels.map.class_stride), inside ? owner.owned : 0, value);
    add_to_state<1>(owner, state, image * pixels.count + pixel,
                    (image * teams.classes + owner.first) * pixels.count + pixel,
                    rematerialized(unsigned(pixels.count)), inside, value);
  }
}

template <class T, class Pixels>
__global__ void __launch_bounds__(kMapThreads, 2)
    accumulate_strided_kernel(const T* logits, const Pixels pixels, const int64_t classes,
                              const int64_t class_stride, const State<accumulate_t<T>> state,
                              const Work work, const Divisor pixels_of_image) {
  using A = accumulate_t<T>;
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    if (index >= work.pixels) continue;
    int64_t in_image;
    const int64_t image = pixels_of_image.divide(index, in_image);
    const auto pixel = pixels.at(image, in_image);
    const auto logit = [&](int64_t c) { return pixel.logit(logits + c * class_stride); };
    const int64_t first = image * classes * pixels.count + in_image;
    const auto softmax = online_softmax<A>(classes, logit);
    const A inverse_sum = inverse(softmax.sum);
    A dot = 0;
#pragma unroll 4
    for (int64_t c = 0; c < classes; c++) {
      const int64_t at = first + c * pixels.count;
      A mean = 0, squared_deviations = 0;
      if (!state.first) {
        mean = state.mean[at];
        squared_deviations = state.squared_deviations[at];
      }
      const A d = logit(c) - softmax.maximum;
      const A exponential = math::exp_nonpositive(d);
      dot += math::weighted_exponent(exponential, d);
      math::accumulate_moments(rounded_product(exponential, inverse_sum), state.inverse_count, mean,
                               squared_deviations);
      state.mean[at] = mean;
      state.squared_deviations[at] = squared_deviations;
    }
    const A before = state.first ? A(0) : state.entropy_sum[index];
    state.entropy_sum[index] =
        before + math::softmax_entropy(math::log_positive(softmax.sum), dot, inverse_sum);
  }
}

// ---- finalize ----

// Reads the means, and the squared deviations of the predicted class alone.
template <class A>
__global__ void __launch_bounds__(kMapThreads)
    finalize_kernel(const FinalizeParams p, const Work work, const InverseCounts<A> inverse,
                    const Divisor pixels_of_image) {
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    if (index >= work.pixels) continue;
    int64_t pixel;
    const int64_t image = pixels_of_image.divide(index, pixel);
    const int64_t first = image * p.classes * p.pixels + pixel;
    const A* mean = static_cast<const A*>(p.mean) + first;
    Prediction<A> best{mean[0], A(0), 0};
    A entropy = 0;
#pragma unroll 8
    for (int64_t c = 0; c < p.classes; c++) {
      const A class_mean = mean[c * p.pixels];
      entropy += math::entropy_term(class_mean);
      best.consider_next(class_mean, A(0), int(c));
    }
    best.squared_deviations =
        static_cast<const A*>(p.squared_deviations)[first + best.label * p.pixels];
    store_maps(p.maps, index, best.label,
               pixel_maps(best.mean, best.squared_deviations, entropy,
                          static_cast<const A*>(p.entropy_sum)[index], inverse));
  }
}

// ---- launch and dispatch ----

template <class T>
void launch_accumulate(const AccumulateParams& p, Stream stream) {
  using A = accumulate_t<T>;
  const T* logits = static_cast<const T*>(p.sample);
  const State<A> state{static_cast<A*>(p.mean), static_cast<A*>(p.squared_deviations),
                       static_cast<A*>(p.entropy_sum), A(1.0 / double(p.count)), p.count == 1};
  bool done = false;
  if constexpr (!std::is_same_v<T, double>) {
    const Strategy strategy = strategy_of(p.map, p.interpolation, p.dtype);
    if (strategy == Strategy::interpolated) {
      const InterpolatedPixels<float> pixels(p.map, p.interpolation);
      done =
          with_warp_teams(p, StateBuckets(), Policy::kMaxBlocks,
                          [&](auto bucket, const Work& work, const WarpTeams& teams) {
                            launch(accumulate_interpolated_kernel<T, bucket()>, work.blocks,
                                   teams.threads(), 0, stream, logits, pixels, state, work, teams);
                          });
    } else if (strategy == Strategy::planar_registers) {
      const Work work =
          make_work(p.map.images, p.map.pixels, Policy::kRegisterThreads, Policy::kMaxBlocks);
      done = with_bucket(p.map.classes, StateBuckets(), [&](auto bucket) {
        constexpr int K = bucket(), kLeast = largest_bucket_below(K, StateBuckets()) + 1;
        launch(accumulate_planar_registers_kernel<T, K, kLeast>, work.blocks,
               Policy::kRegisterThreads, 0, stream, logits, p.map, state, work);
      });
    }
  }
  if (!done) {
    with_pixels<A>(p, [&](auto pixels) {
      const Work work = make_work(1, p.map.images * pixels.count, kMapThreads, Policy::kMaxBlocks);
      launch(accumulate_strided_kernel<T, decltype(pixels)>, work.blocks, kMapThreads, 0, stream,
             logits, pixels, p.map.classes, p.map.class_stride, state, work, Divisor(pixels.count));
    });
  }
}

template <class A>
void launch_finalize(const FinalizeParams& p, Stream stream) {
  const Work work = make_work(1, p.images * p.pixels, kMapThreads, Policy::kMaxBlocks);
  launch(finalize_kernel<A>, work.blocks, kMapThreads, 0, stream, p, work,
         InverseCounts<A>(p.count), Divisor(p.pixels));
}

}  // namespace

void accumulate(const AccumulateParams& params, Stream stream) {
  if (is_empty(params.map)) return;
  with_dtype("accumulate", params.dtype,
             [&](auto t) { launch_accumulate<decltype(t)>(params, stream); });
}

void finalize(const FinalizeParams& params, Stream stream) {
  if (params.images == 0 || params.classes == 0 || params.pixels == 0) return;
  if (params.dtype == Dtype::f64) {
    launch_finalize<double>(params, stream);
  } else {
    launch_finalize<float>(params, stream);
  }
}

}  // namespace segunc::cuda
