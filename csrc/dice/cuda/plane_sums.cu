// The sums over pixels that Dice of regions is made of, and that of their binary cross-entropies,
// on a GPU, of planar logits: one read of the logits, an exponential, an inverse and a logarithm a
// logit.
//
// A thread adds up floats of a few tiles, then doubles; blocks add up those of their threads. A sum
// of floats has at most 64 terms and is off by less than 64 roundings, 4e-6 of it, as no term is
// negative. Sums depend on the sizes alone.
#include "planes.h"
#include "sums.h"

namespace segunc::cuda {
namespace {

// Instructions a logit on sm_90, with masks and weights and the costliest of targets; an H200
// issues 27 for an fp32 logit that is read at the bandwidth of a copy, and 14 for a bf16 one.
// report: budget dice_bce_sums_planes_kernel<float> 65
// report: budget dice_bce_sums_planes_kernel<bfloat16> 66

template <class T>
__global__ void __launch_bounds__(PlanePolicy::kPlaneThreads, 4)
    dice_bce_sums_planes_kernel(const DiceBceParams p, const ImageWork work,
                                const Divisor classes) {
  constexpr int V = PlanePixels::kCount;
  const Plane plane(p, work, classes);
  const float positive = label_weight<float>(p, plane.region, 1);
  const int step = int(work.blocks_of_image.value), tiles = int(work.tiles);
  double predicted_sum = 0, common_sum = 0, surprise_sum = 0;
  int64_t labelled = 0;
  BadTarget bad;
  for (int tile = int(plane.block); tile < tiles;) {
    const int end = tiles - tile > SumsPolicy::kTilesOfRound * step
                        ? tile + SumsPolicy::kTilesOfRound * step
                        : tiles;
    float predicted = 0, common = 0, surprise = 0;
    int labelled_of_round = 0;
    // report: hot 4
    for (; tile < end; tile += step) {
      const int64_t start = int64_t(tile) * PlanePolicy::kTile;
      const int count = tile_pixels(PlanePolicy::kTile, work.pixels - start);
      const int at = int(thread());
      if (at >= count) continue;
      const auto of = load_region<T>(p, PlanePixels(count - at), plane, start + at, bad);
      float mass[V], loss[V];
#pragma unroll
      for (int j = 0; j < V; j++) {
        // Nothing comes from a logit of -inf whose target is 0.
        const float logit = of.counts[j] ? of.logit[j] : -kInfinity<float>;
        const bool is_label = of.label[j] == 1;
        const auto sigmoids = short_sigmoids_of(logit);
        mass[j] = sigmoids.of(logit);
        if (is_label) common += mass[j];
        labelled_of_round += of.label[j];
        loss[j] = cross_entropy_of(sigmoids, logit, is_label, is_label ? positive : 1.f);
      }
      if (p.squared) {
#pragma unroll
        for (int j = 0; j < V; j++) mass[j] *= mass[j];
      }
      if (p.pixel_weight) {
#pragma unroll
        for (int j = 0; j < V; j++) loss[j] *= of.counts[j] ? of.weight[j] : 0.f;
      }
#pragma unroll
      for (int j = 0; j < V; j++) {
        predicted += mass[j];
        surprise += loss[j];
      }
    }
    // report: end
    predicted_sum += double(predicted);
    common_sum += double(common);
    surprise_sum += double(surprise);
    labelled += labelled_of_round;
  }
  bad.report(p.bad_target);

  // Of a row each region has its three sums and its cross-entropy.
  double* const sums = p.partial +
                       (plane.image * work.blocks + plane.block) * (kDiceSums + 1) * classes.value +
                       plane.region;
  const auto store = [&](int which, double sum) {
    sum = block_sum(sum);
    if (thread() == 0) sums[which * classes.value] = sum;
  };
  store(kPredicted, predicted_sum);
  store(kLabelled, double(labelled));
  store(kCommon, common_sum);
  store(kDiceSums, p.cross_entropy ? surprise_sum : 0.0);
}

template <class T>
void launch_sums(const DiceBceParams& p, const ImageWork& work, Stream stream) {
  launch(dice_bce_sums_planes_kernel<T>, work.images * work.blocks, PlanePolicy::kPlaneThreads, 0,
         stream, p, work, Divisor(p.map.classes));
}

}  // namespace

DiceBcePlan plan_dice_bce_sums_of_planes(const DiceBceParams& params) {
  const ImageWork work = make_plane_work(params, PlanePolicy::kMaxSumsBlocks);
  SumsWork rows{work, (kDiceSums + 1) * params.map.classes, params.map.classes, true};
  rows.images = params.map.images;
  return {rows.images * rows.blocks * rows.row, 0,
          [work, rows](const DiceBceParams& p, Stream stream) {
            with_dtype("dice_bce_sums", p.dtype, [&](auto t) {
              if constexpr (!std::is_same_v<decltype(t), double>) {
                launch_sums<decltype(t)>(p, work, stream);
              }
            });
            launch_sums_finish(p, rows, stream);
          }};
}

}  // namespace segunc::cuda
