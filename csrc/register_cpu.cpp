// Who implements the operators on a CPU.
#include <climits>
#include <mutex>

#include "common/cpu/isa.h"
#include "common/cpu/memory.h"
#include "common/cpu/parallel.h"
#include "common/cpu/units.h"
#include "components/binding.h"
#include "counts/binding.h"
#include "cross_entropy/binding.h"
#include "cross_entropy/cpu/bands.h"
#include "scale/binding.h"
#include "statistics/binding.h"

SEGUNC_CPU_ENTRY(cross_entropy_units, CrossEntropyParams)
SEGUNC_CPU_ENTRY(normalizer_units, NormalizerParams)
SEGUNC_CPU_ENTRY(scale_elements, ScaleParams)
SEGUNC_CPU_ENTRY(statistics_units, StatisticsParams)
SEGUNC_CPU_ENTRY(accumulate_units, AccumulateParams)
SEGUNC_CPU_ENTRY(finalize_units, FinalizeParams)
SEGUNC_CPU_FUNCTION(connected_components,
                    (const ComponentsParams& params, const Parallel& parallel), (params, parallel))
SEGUNC_CPU_FUNCTION(component_mean, (const ComponentMeanParams& params, const Parallel& parallel),
                    (params, parallel))
SEGUNC_CPU_FUNCTION(upsampled_cross_entropy,
                    (const UpsampledCrossEntropyParams& params, const Parallel& parallel),
                    (params, parallel))
SEGUNC_CPU_ENTRY(counts_units, CountsParams)
SEGUNC_CPU_ENTRY(map_counts_units, MapCountsParams)
SEGUNC_CPU_ENTRY(patch_rows, PatchCountsParams)

namespace segunc {
namespace {

// Runs units of work on torch's threads.
template <class Params>
void parallel(int64_t units, void (*run)(const Params&, int64_t, int64_t), const Params& params,
              int64_t grain = 1) {
  torch::stable::parallel_for(0, units, grain,
                              [&](int64_t begin, int64_t end) { run(params, begin, end); });
}

// The same for kernels that have several phases.
constexpr Parallel kThreads{
    [](int64_t count, void (*body)(void*, int64_t, int64_t), void* context) {
      torch::stable::parallel_for(0, count, 1,
                                  [&](int64_t begin, int64_t end) { body(context, begin, end); });
    }};

double ordered_sum(const double* partial, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += partial[i];
  return sum;
}

[[noreturn]] void fail_class(const char* name, int64_t classes, const std::string& otherwise,
                             const void* data, IndexType type, int64_t pixel) {
  throw std::out_of_range(std::string(name) + ": expected a class in [0, " +
                          std::to_string(classes) + ")" + otherwise + ", got " +
                          std::to_string(load_index(data, type, pixel)));
}

std::string or_ignored(int64_t ignore_index) { return " or " + std::to_string(ignore_index); }

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

// Runs a loss, which records the first bad target, and raises it.
template <class Params, class Run>
void check_targets(Params& p, Run run) {
  int64_t bad_pixel = INT64_MAX;
  p.bad_target = &bad_pixel;
  run();
  if (bad_pixel != INT64_MAX)
    fail_class("target", p.map.classes, or_ignored(p.ignore_index), p.target, p.target_type,
               bad_pixel);
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

struct Cpu {
  explicit Cpu(const Tensor&) {}

  static void prepare(void* fresh, int64_t bytes) { cpu::advise_huge_pages(fresh, bytes); }

  void fill(Tensor& scalar, double value) const {
    *static_cast<double*>(scalar.mutable_data_ptr()) = value;
  }

  int64_t normalizer_partials(const NormalizerParams& p) const { return units_of(p.count); }
  void normalizer(const NormalizerParams& p, double* normalizer) const {
    parallel(normalizer_partials(p), cpu::normalizer_units, p);
    *normalizer = ordered_sum(p.partial, normalizer_partials(p));
  }

  int64_t cross_entropy_partials(const CrossEntropyParams& p) const {
    return p.map.images * units_of(p.map.pixels);
  }
  void cross_entropy(CrossEntropyParams& p) const {
    check_targets(p, [&] { parallel(cross_entropy_partials(p), cpu::cross_entropy_units, p); });
  }
  int64_t upsampled_cross_entropy_partials(const UpsampledCrossEntropyParams& p) const {
    return Bands(p).units();
  }
  void upsampled_cross_entropy(UpsampledCrossEntropyParams& p) const {
    check_targets(p, [&] { cpu::upsampled_cross_entropy(p, kThreads); });
  }
  void finish_loss(const double* partial, int64_t count, const double* normalizer, void* loss,
                   Dtype dtype) const {
    const double sum = ordered_sum(partial, count) / (normalizer ? *normalizer : 1);
    if (dtype == Dtype::f64)
      *static_cast<double*>(loss) = sum;
    else
      *static_cast<float*>(loss) = float(sum);
  }

  void scale(const ScaleParams& p) const {
    const double factor = p.factor_dtype == Dtype::f64 ? *static_cast<const double*>(p.factor)
                                                       : *static_cast<const float*>(p.factor);
    if (factor != 1) parallel(p.count, cpu::scale_elements, p, 1 << 15);
  }

  void statistics(const StatisticsParams& p) const {
    parallel(result_units(p.map, p.interpolation), cpu::statistics_units, p);
  }
  void accumulate(const AccumulateParams& p) const {
    parallel(result_units(p.map, p.interpolation), cpu::accumulate_units, p);
  }
  void finalize(const FinalizeParams& p) const {
    parallel(p.images * units_of(p.pixels), cpu::finalize_units, p);
  }

  static int64_t scratch_bytes(const UpsampledCrossEntropyParams& p) {
    return Bands(p).scratch_bytes(p);
  }
  // The kernels have their own, of which they touch only what they need.
  template <class Params>
  static int64_t scratch_bytes(const Params&) {
    return 0;
  }
  void components(const ComponentsParams& p) const { cpu::connected_components(p, kThreads); }
  void component_mean(const ComponentMeanParams& p) const { cpu::component_mean(p, kThreads); }
  void counts(CountsParams& p) const {
    int64_t bad_pixel = INT64_MAX;
    p.bad_target = &bad_pixel;
    const int64_t classes = p.map.classes;
    count_apart(
        result_units(p.map, p.interpolation), 1, cpu::counts_units, p, spans_of(p.tables, classes),
        [&](CountsParams& mine, int64_t* memory) { place_tables(mine.tables, classes, memory); },
        [&] {
          if (bad_pixel != INT64_MAX)
            fail_class("target", classes, or_ignored(p.ignore_index), p.target, p.target_type,
                       bad_pixel);
        });
  }
  void map_counts(MapCountsParams& p) const {
    int64_t bad_pixel = INT64_MAX, bad_prediction = INT64_MAX;
    p.bad_target = &bad_pixel;
    p.bad_prediction = &bad_prediction;
    count_apart(
        units_of(p.pixels), 1, cpu::map_counts_units, p, spans_of(p.tables, p.classes),
        [&](MapCountsParams& mine, int64_t* memory) {
          place_tables(mine.tables, p.classes, memory);
        },
        [&] {
          if (bad_pixel != INT64_MAX)
            fail_class("target", p.classes, or_ignored(p.ignore_index), p.target, p.target_type,
                       bad_pixel);
          if (bad_prediction != INT64_MAX)
            fail_class("prediction", p.classes, "", p.prediction, p.prediction_type,
                       bad_prediction);
        });
  }
  void patch_counts(const PatchCountsParams& p) const {
    const std::array<TableSpan, 1> tables{{{p.counts, p.count * kPatchCounts}}};
    constexpr int64_t kGrain = 8;  // rows of patches
    count_apart(
        p.images * (p.rows / p.window), kGrain, cpu::patch_rows, p, tables,
        [](PatchCountsParams& mine, int64_t* memory) { mine.counts = memory; }, [] {});
  }
};

std::string cpu_isa() { return cpu::name(cpu::isa()); }

std::string cpu_isas() {
  std::string names;
#if defined(__x86_64__)
  for (const auto isa : {cpu::Isa::x86_64_v2, cpu::Isa::x86_64_v3, cpu::Isa::x86_64_v4})
#else
  for (const auto isa : {cpu::Isa::baseline})
#endif
    names += std::string(names.empty() ? "" : " ") + cpu::name(isa);
  return names;
}

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CPU, m) {
  using namespace segunc;
  m.impl("cross_entropy_forward", TORCH_BOX(&cross_entropy_forward<Cpu>));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward<Cpu>));
  m.impl("upsampled_cross_entropy_forward", TORCH_BOX(&upsampled_cross_entropy_forward<Cpu>));
  m.impl("upsampled_cross_entropy_backward", TORCH_BOX(&upsampled_cross_entropy_backward<Cpu>));
  m.impl("scale_", TORCH_BOX(&scale<Cpu>));
  m.impl("predictive_statistics", TORCH_BOX(&predictive_statistics<Cpu>));
  m.impl("accumulate_statistics_", TORCH_BOX(&accumulate_statistics<Cpu>));
  m.impl("finalize_statistics", TORCH_BOX(&finalize_statistics<Cpu>));
  m.impl("connected_components", TORCH_BOX(&connected_components<Cpu>));
  m.impl("component_mean", TORCH_BOX(&component_mean<Cpu>));
  m.impl("accumulate_counts_", TORCH_BOX(&accumulate_counts<Cpu>));
  m.impl("accumulate_map_counts_", TORCH_BOX(&accumulate_map_counts<Cpu>));
  m.impl("accumulate_patch_counts_", TORCH_BOX(&accumulate_patch_counts<Cpu>));
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&segunc::cpu_isa));
  m.impl("cpu_isas", TORCH_BOX(&segunc::cpu_isas));
}
