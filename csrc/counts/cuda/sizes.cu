// Pixels of each class and image, on a GPU: a block's tile is counted in shared memory, where a
// warp adds what it has of a class at once, and what it found is added to the image's counts.
#include "../../common/device/labels.h"
#include "../../common/device/work.h"
#include "kernels.h"
#include "tables.h"

namespace segunc::cuda {
namespace {

using namespace counting;

// Tiles of so many pixels a thread: enough to add up before the counts in memory are added to.
constexpr int kSizeThreads = 256, kSizePixels = 16;  // tuning

template <class Index>
SEGUNC_DEVICE void count_classes(const ClassSizesParams& p, const Work& work, uint32_t* words) {
  for (TileWalk walk(work); walk.image < p.images; walk.advance(work)) {
    const int64_t start = int64_t(walk.tile) * (kSizeThreads * kSizePixels);
    const int count = tile_pixels(work.tile, p.pixels - start);
    const Index* target = static_cast<const Index*>(p.target) + walk.image * p.pixels + start;
    int64_t* const sizes = p.sizes + walk.image * p.classes;
    for (int at = int(thread()); at < count; at += kSizeThreads) {
      const int64_t y = int64_t(target[at]);
      if (y == p.ignore_index || uint64_t(y) >= uint64_t(p.classes)) continue;
      if (words) {
        atomic_add(words + y, 1);
      } else {
        atomic_add(sizes + y, 1);
      }
    }
    if (!words) continue;
    barrier();
    for (int c = int(thread()); c < int(p.classes); c += kSizeThreads) {
      add_unless_zero(sizes + c, words[c]);
      words[c] = 0;
    }
    barrier();
  }
}

__global__ void __launch_bounds__(kSizeThreads, 4)
    class_sizes_kernel(const ClassSizesParams p, const Work work, const bool shares) {
  uint32_t* const words = shares ? dynamic_shared<uint32_t>() : nullptr;
  if (shares) clear_words(words, int(p.classes));
  with_index_type(p.target_type, [&](auto y) { count_classes<decltype(y)>(p, work, words); });
}

}  // namespace

void class_sizes(const ClassSizesParams& params, Stream stream) {
  if (params.images == 0 || params.pixels == 0 || params.classes == 0) return;
  const Work work =
      make_work(params.images, params.pixels, kSizeThreads * kSizePixels, TablePolicy::kMaxBlocks);
  const bool shares = params.classes <= TablePolicy::kMaxWords;
  launch(class_sizes_kernel, work.blocks, kSizeThreads,
         shares ? params.classes * sizeof(uint32_t) : 0, stream, params, work, shares);
}

}  // namespace segunc::cuda
