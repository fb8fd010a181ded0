// What the CPU library tells of itself, and the schemas of what the CUDA library does. The
// operators are the rooms': see csrc/*/register_cpu.cpp and register_cuda.cpp.
#include <torch/csrc/stable/library.h>

#include <string>

#include "common/cpu/isa.h"

namespace segunc {
namespace {

std::string cpu_isa() { return cpu::name(cpu::isa()); }

std::string cpu_isas() {
#define SEGUNC_APPEND(VARIANT, NAME, ...) " " NAME
  return std::string(SEGUNC_ISAS(SEGUNC_APPEND)).substr(1);
}

}  // namespace
}  // namespace segunc

STABLE_TORCH_LIBRARY(segunc_ops, m) {
  m.def("cpu_isa() -> str");
  m.def("cpu_isas() -> str");
  m.def("cuda_targets() -> str");
  m.def("cuda_versions() -> (int driver, int runtime)");
  m.def("check() -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(segunc_ops, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&segunc::cpu_isa));
  m.impl("cpu_isas", TORCH_BOX(&segunc::cpu_isas));
}
