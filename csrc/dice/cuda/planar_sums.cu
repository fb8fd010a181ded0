// The sums over pixels that Dice is made of, on a GPU, of planar logits of the target's size and at
// most 32 classes: one read of the logits, an exponential a logit.
//
// Of m(p_c) a thread adds up its own pixels in registers, of p_c [y = c] in a column of shared
// memory, a class a row. After a few tiles, so that floats stay exact enough, the block adds up
// each row in a fixed order and goes on in doubles. Pixels of a class are counted by atomics. So
// sums depend on the sizes alone.
//
// A round ends by adding up rows, which takes as many instructions as half a tile. A sum of floats
// has at most 16 * V terms of a thread, 8 of its neighbours and 2 more: with V = 2 it is off by
// less than 42 roundings, 2.5e-6 of it, all terms being positive.
#include "planar.h"

namespace segunc::cuda {
namespace {

// Derived from machine code and occupancy, not yet measured on a GPU.
//
// Instructions are the budget. At the bandwidth of a copy an H200 issues 27 for an fp32 logit that
// is read, all of its slots used, and 14 for a bf16 one. With int64 targets and the cross-entropy,
// sm_90 takes (fp32 / bf16)
//   11.6 / 12.6  with 19 classes, in 96 registers, so that 640 threads are resident
//   12.6 / 14.5  with 21, where the compiler does not know their number
//   15.8 / 18.1  with 19, where pixels are no aligned vectors, either
// 7 or 8 of which are a logit's, the rest a pixel's: with 2 classes it is 57 / 59.
constexpr int kThreads = PlanarPolicy::kPlanarThreads;

// Instructions a logit on sm_90.
// report: budget dice_sums_planar_registers_kernel<float, *Adjacent*, 2, 2* 60
// report: budget dice_sums_planar_registers_kernel<float, *Adjacent*, 19, 19* 13
// report: budget dice_sums_planar_registers_kernel<float, *Adjacent*, 24, 17* 14
// report: budget dice_sums_planar_registers_kernel<float, *Spaced*, 24, 9* 18
// report: budget dice_sums_planar_registers_kernel<bfloat16, *Adjacent*, 2, 2* 62
// report: budget dice_sums_planar_registers_kernel<bfloat16, *Adjacent*, 19, 19* 14
// report: budget dice_sums_planar_registers_kernel<bfloat16, *Adjacent*, 24, 17* 16
// report: budget dice_sums_planar_registers_kernel<bfloat16, *Spaced*, 24, 9* 20

// Resident blocks that the compiler has to leave registers for, as many as it can without spilling.
template <int Classes>
constexpr int kPlanarSumsBlocks = Classes > 24   ? 3
                                  : Classes > 19 ? 4
                                  : Classes > 8  ? 5
                                                 : 6;  // tuning

// Columns of a block, a class a row. Four neighbouring threads add up a row, each a quarter of it.
template <int K>
struct SumsColumns {
  struct alignas(16) Rows {
    float of[K][kThreads];
  };
  static constexpr int kThreadsOfRow = kThreads / kMaxPlanarClasses;
  static constexpr int kQuarter = kThreads / kThreadsOfRow;
  static constexpr int kVector = 4;
  static_assert(K <= kMaxPlanarClasses);

  Rows& rows;

  SEGUNC_DEVICE float& of(int c) const { return rows.of[c][thread()]; }
  SEGUNC_DEVICE void clear() const {
#pragma unroll
    for (int c = 0; c < K; c++) of(c) = 0;
  }
  SEGUNC_DEVICE static int row() { return int(thread()) / kThreadsOfRow; }
  // The thread's part of its row. Neighbours start at different places, for the banks' sake.
  SEGUNC_DEVICE float part_of_row() const {
    if (row() >= K) return 0;
    const float* const part = rows.of[row()] + int(thread()) % kThreadsOfRow * kQuarter;
    Vector<float, kVector> sum{};
#pragma unroll
    for (int i = 0; i < kQuarter; i += kVector) {
      const auto next = load_vector<kVector>(part + (i + int(thread()) * kVector) % kQuarter);
#pragma unroll
      for (int j = 0; j < kVector; j++) sum[j] += next[j];
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  // Of all parts, valid in a row's first thread.
  SEGUNC_DEVICE static double sum_of_row(double part) {
#pragma unroll
    for (unsigned delta = kThreadsOfRow / 2; delta > 0; delta /= 2) {
      part += shuffle_down(kFullMask, part, delta);
    }
    return part;
  }
};

template <class T, class Variant>
__global__ void __launch_bounds__(PlanarPolicy::kPlanarThreads,
                                  kPlanarSumsBlocks<Variant::kClasses>)
    dice_sums_planar_registers_kernel(const DiceParams p, const SumsWork work,
                                      const ExactDiceShares exact) {
  using Pixels = typename Variant::Pixels;
  constexpr int K = Variant::kClasses, V = Pixels::kCount;
  SEGUNC_SHARED(labelled, unsigned[K]);
  SEGUNC_SHARED(rows, typename SumsColumns<K>::Rows);
  const SumsColumns<K> columns{rows};
  const int classes = int(p.map.classes);
  const DiceShares<float> shares(p, exact);
  if (int(thread()) < K) labelled[thread()] = 0;
  barrier();

  int64_t block;
  const int64_t image = work.blocks_of_image.divide(block_index(), block);
  const int step = int(work.blocks_of_image.value), tiles = int(work.tiles);
  double predicted_sum = 0, common_sum = 0, surprise = 0;
  BadTarget bad;
  for (int tile = int(block); tile < tiles;) {
    const int end = tiles - tile > SumsPolicy::kTilesOfRound * step
                        ? tile + SumsPolicy::kTilesOfRound * step
                        : tiles;
    columns.clear();
    float predicted[K] = {};
    // report: hot C * V
    for (; tile < end; tile += step) {
      const int64_t start = int64_t(tile) * (kThreads * V);
      const int count = tile_pixels(kThreads * V, work.pixels - start);
      const int at = Pixels::first(int(thread()));
      if (at >= count) continue;
      PlanarPixels<K, V> of;
      load_pixels<Variant>(p, Pixels(count - at),
                           static_cast<const T*>(p.input) + image * p.map.image_stride + start + at,
                           image * work.pixels + start + at, bad, of);
      clear_ignored(of.label, of.softmax, of.exponential);
      float inverse[V], loss = 0;
#pragma unroll
      for (int j = 0; j < V; j++) {
        inverse[j] = if_valid(of.label[j], inverse_of_sum(of.softmax[j].sum));
        if (p.cross_entropy) {
          loss += if_valid(of.label[j],
                           of.weight[j] * cross_entropy_of(shares, of.label[j], of.softmax[j]));
        }
        if (of.label[j] < 0) continue;
        atomic_add(&labelled[of.label[j]], 1);
        columns.of(of.label[j]) += exponential(of.softmax[j].target_shifted) * inverse[j];
      }
      surprise += double(loss);
      if (p.squared) {
        // report: begin rare squared
#pragma unroll
        for (int c = 0; c < K; c++) {
#pragma unroll
          for (int j = 0; j < V; j++) {
            const float probability = of.exponential[c][j] * inverse[j];
            predicted[c] += probability * probability;
          }
        }
        // report: end
      } else {
#pragma unroll
        for (int c = 0; c < K; c++) {
#pragma unroll
          for (int j = 0; j < V; j++) predicted[c] += of.exponential[c][j] * inverse[j];
        }
      }
    }
    // report: end
    barrier();
    common_sum += double(columns.part_of_row());
    barrier();
#pragma unroll
    for (int c = 0; c < K; c++) columns.of(c) = predicted[c];
    barrier();
    predicted_sum += double(columns.part_of_row());
    barrier();
  }
  bad.report(p.bad_target);

  double* const row = p.partial + int64_t(block_index()) * work.row;
  const int c = columns.row();
  predicted_sum = columns.sum_of_row(predicted_sum);
  common_sum = columns.sum_of_row(common_sum);
  if (int(thread()) % SumsColumns<K>::kThreadsOfRow == 0 && c < classes) {
    row[kPredicted * classes + c] = predicted_sum;
    row[kLabelled * classes + c] = labelled[c];
    row[kCommon * classes + c] = common_sum;
  }
  surprise = block_sum(surprise);
  if (thread() == 0) row[work.row - 1] = surprise;
}

}  // namespace

void launch_planar_sums(const DiceParams& params, const SumsWork& work, Stream stream) {
  const auto run = [&](auto t) {
    using T = decltype(t);
    if constexpr (!std::is_same_v<T, double>) {
      with_planar_variant<T>(params, [&](auto variant) {
        launch(dice_sums_planar_registers_kernel<T, decltype(variant)>, work.images * work.blocks,
               kThreads, 0, stream, params, work, ExactDiceShares(params));
      });
    }
  };
  with_dtype("dice_sums", params.dtype, run);
}

}  // namespace segunc::cuda
