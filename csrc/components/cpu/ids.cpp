// Numbers of components on a CPU, in the raster order of their first pixels.
#include "slabs.h"

namespace segunc {
inline namespace SEGUNC_VARIANT {
namespace {

using namespace slabs;

// ids: [parts], -1 for those that an earlier slab's part took in.
void number_slab(const Group& g, int64_t s, int32_t* ids) {
  const Slab& slab = g.slab(s);
  std::fill_n(ids, slab.parts, 0);
  const Border* border = g.borders_of(s);
  for (int32_t i = 0; i < slab.borders; ++i)
    if (border[i].root != g.border_id(s, i)) ids[border[i].part] = -1;
  int32_t id = slab.first_id;
  for (int32_t i = 0; i < slab.parts; ++i)
    if (ids[i] == 0) ids[i] = ++id;
}

}  // namespace

void connected_components(const ComponentsParams& p, const Parallel& parallel) {
  for_groups<int32_t>(
      p.map, parallel, [](const Group&, int64_t, const Sums&, int32_t*) {},
      [&](const Group& g, int32_t* ids) {
        for (int64_t s = 0; s < g.slabs_of(g.images); ++s) {
          Slab& slab = g.slab(s);
          const bool first = s % g.image_slabs == 0;
          slab.first_id = first ? 0 : int32_t(p.counts[g.first_image + s / g.image_slabs]);
          p.counts[g.first_image + s / g.image_slabs] = slab.first_id + slab.parts - slab.joined;
        }
        auto number = [&](int64_t begin, int64_t end) {
          for (int64_t s = begin; s < end; ++s) number_slab(g, s, ids + g.first_pixel(g.slab(s)));
        };
        parallel_for(parallel, g.slabs_of(g.images), number);
        auto fill = [&](int64_t begin, int64_t end) {
          for (int64_t s = begin; s < end; ++s) {
            int32_t* own = ids + g.first_pixel(g.slab(s));
            const Border* border = g.borders_of(s);
            for (int32_t i = 0; i < g.slab(s).borders; ++i) {
              if (border[i].root == g.border_id(s, i)) continue;
              const int64_t root = root_of(g.borders.get(), border[i].root);
              const Slab& of_root = g.slab(g.slab_of_border(root));
              own[border[i].part] = ids[g.first_pixel(of_root) + g.borders.get()[root].part];
            }
            fill_slab(g, s, own, p.components + g.batch_pixel(0));
          }
        };
        parallel_for(parallel, g.slabs_of(g.images), fill);
      });
}

}  // namespace SEGUNC_VARIANT
}  // namespace segunc
