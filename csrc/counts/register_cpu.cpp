// Counts: their schemas, and who implements them on a CPU.
#include <array>
#include <mutex>

#include "../common/cpu/backend.h"
#include "binding.h"

SEGUNC_CPU_ENTRY(counts_units, CountsParams)
SEGUNC_CPU_ENTRY(map_counts_units, MapCountsParams)
SEGUNC_CPU_ENTRY(patch_rows, PatchCountsParams)
SEGUNC_CPU_ENTRY(class_sizes_units, ClassSizesParams)

namespace segunc {
namespace {

// Runs units of work that add integers to tables: each thread to its own, which `place` puts into
// its parameters. They are merged when all are done and `check` has found no reason to throw, so an
// error leaves the tables as they were.
template <class Params, size_t Count, class Place, class Check>
void count_apart(int64_t units, int64_t grain, void (*run)(const Params&, int64_t, int64_t),
                 const Params& params, const std::array<TableSpan, Count>& tables, Place place,
                 Check check) {
  int64_t size = 0;
  for (const TableSpan& table : tables) size += table.data ? table.size : 0;
  std::mutex mutex;
  std::vector<std::vector<int64_t>> parts;
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> part(size);
    Params mine = params;
    place(mine, part.data());
    run(mine, begin, end);
    const std::lock_guard<std::mutex> lock(mutex);
    parts.push_back(std::move(part));
  });
  check();
  for (const std::vector<int64_t>& part : parts) {
    const int64_t* from = part.data();
    for (const TableSpan& table : tables) {
      if (!table.data) continue;
      for (int64_t i = 0; i < table.size; ++i) table.data[i] += from[i];
      from += table.size;
    }
  }
}

// Points every wanted table into a thread's own memory.
void place_tables(CountTables& tables, int64_t classes, int64_t* memory) {
  const auto spans = spans_of(tables, classes);
  size_t i = 0;
  for (int64_t** table : {&tables.confusion, &tables.uncertainty, &tables.calibration,
                          &tables.scores, &tables.histogram}) {
    if (*table) *table = memory, memory += spans[i].size;
    ++i;
  }
}

struct Cpu : cpu::Backend {
  using Backend::Backend;

  void counts(CountsParams& p) const {
    const int64_t classes = p.map.classes;
    cpu::BadClass bad_target;
    p.bad_target = &bad_target.pixel;
    count_apart(
        result_units(p.map, p.interpolation), 1, cpu::counts_units, p, spans_of(p.tables, classes),
        [&](CountsParams& mine, int64_t* memory) { place_tables(mine.tables, classes, memory); },
        [&] { bad_target.raise("target", p.target, p.target_type, classes, p.ignore_index); });
  }
  void map_counts(MapCountsParams& p) const {
    cpu::BadClass bad_target, bad_prediction;
    p.bad_target = &bad_target.pixel;
    p.bad_prediction = &bad_prediction.pixel;
    count_apart(
        units_of(p.pixels), 1, cpu::map_counts_units, p, spans_of(p.tables, p.classes),
        [&](MapCountsParams& mine, int64_t* memory) {
          place_tables(mine.tables, p.classes, memory);
        },
        [&] {
          bad_target.raise("target", p.target, p.target_type, p.classes, p.ignore_index);
          bad_prediction.raise("prediction", p.prediction, p.prediction_type, p.classes);
        });
  }
  void patch_counts(const PatchCountsParams& p) const {
    const std::array<TableSpan, 1> tables{{{p.counts, p.count * kPatchCounts}}};
    constexpr int64_t kGrain = 8;  // rows of patches
    count_apart(
        p.images * (p.rows / p.window), kGrain, cpu::patch_rows, p, tables,
        [](PatchCountsParams& mine, int64_t* memory) { mine.counts = memory; }, [] {});
  }
  void class_sizes(const ClassSizesParams& p) const {
    const std::array<TableSpan, 1> tables{{{p.sizes, p.images * p.classes}}};
    constexpr int64_t kGrain = 16;  // units
    count_apart(
        p.images * units_of(p.pixels), kGrain, cpu::class_sizes_units, p, tables,
        [](ClassSizesParams& mine, int64_t* memory) { mine.sizes = memory; }, [] {});
  }
};

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_FRAGMENT(segunc_ops, m) {
  m.def(
      "accumulate_counts_(Tensor input, Tensor target, Tensor? uncertainty, SymInt ignore_index, "
      "bool probabilities, bool align_corners, Tensor(a!)? confusion, "
      "Tensor(b!)? uncertainty_sums, Tensor(c!)? calibration, Tensor(d!)? scores, "
      "Tensor(e!)? histogram, Tensor(f!)? outcome) -> ()");
  m.def(
      "accumulate_map_counts_(Tensor prediction, Tensor? confidence, Tensor target, "
      "Tensor? uncertainty, SymInt num_classes, SymInt ignore_index, Tensor(a!)? confusion, "
      "Tensor(b!)? uncertainty_sums, Tensor(c!)? calibration, Tensor(d!)? histogram, "
      "Tensor(e!)? outcome) -> ()");
  m.def(
      "accumulate_patch_counts_(Tensor outcome, Tensor uncertainty, Tensor thresholds, "
      "SymInt window, float accuracy_threshold, Tensor(a!) counts) -> ()");
  m.def("accumulate_class_sizes_(Tensor target, SymInt ignore_index, Tensor(a!) sizes) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CPU, m) {
  using namespace segunc;
  m.impl("accumulate_counts_", TORCH_BOX(&accumulate_counts<Cpu>));
  m.impl("accumulate_map_counts_", TORCH_BOX(&accumulate_map_counts<Cpu>));
  m.impl("accumulate_patch_counts_", TORCH_BOX(&accumulate_patch_counts<Cpu>));
  m.impl("accumulate_class_sizes_", TORCH_BOX(&accumulate_class_sizes<Cpu>));
}
