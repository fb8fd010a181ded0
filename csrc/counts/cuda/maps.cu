// Counts behind metrics on a GPU, from maps of the prediction: a thread a pixel.
#include "../../common/device/labels.h"
#include "../../common/device/work.h"
#include "kernels.h"
#include "tables.h"

namespace segunc::cuda {
namespace {

using namespace counting;

constexpr int kMapThreads = 256;  // tuning

template <class A>
__global__ void __launch_bounds__(kMapThreads, 4)
    map_counts_kernel(const MapCountsParams p, const Work work, const Counting<A> to) {
  uint32_t* const words = dynamic_shared<uint32_t>();
  clear_words(words, to.shared.words);
  BadTarget bad;
  for (int64_t tile = block_index(); tile < work.tiles; tile += grid_size()) {
    const int64_t index = tile * work.tile + thread();
    int label[1] = {kOutside}, best[1] = {0};
    if (index < p.pixels) {
      label[0] =
          label_of(load_index(p.target, p.target_type, index), p.classes, p.ignore_index, bad);
    }
    if (label[0] >= 0) {
      const int64_t predicted = load_index(p.prediction, p.prediction_type, index);
      if (predicted >= 0 && predicted < p.classes) {
        best[0] = int(predicted);
      } else {
        bad.remember(predicted);
        label[0] = kIgnored;
      }
    }
    count_predictions(to, words, [&](int) { return index; }, label, best);
    if (to.state.calibration) {
      const A confidence = label[0] >= 0 ? static_cast<const A*>(p.confidence)[index] : A(0);
      count_confidences<1>(to, words, label, best, {confidence});
    }
  }
  bad.report(p.bad_target);
  add_to_state(to, words);
}

template <class A>
void launch_map_counts(const MapCountsParams& p, Stream stream) {
  const auto to = make_counting<A>(p, p.classes);
  const Work work = make_work(1, p.pixels, kMapThreads, TablePolicy::kMaxBlocks);
  launch(map_counts_kernel<A>, work.blocks, kMapThreads, to.shared.words * sizeof(uint32_t), stream,
         p, work, to);
}

}  // namespace

void map_counts(const MapCountsParams& params, Stream stream) {
  if (params.pixels == 0) return;
  if (params.dtype == Dtype::f64) {
    launch_map_counts<double>(params, stream);
  } else {
    launch_map_counts<float>(params, stream);
  }
}

}  // namespace segunc::cuda
