#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace segunc::cpu {

#if defined(__x86_64__)
namespace {
Isa choose() {
  __builtin_cpu_init();
  Isa best = __builtin_cpu_supports("x86-64-v4")   ? Isa::x86_64_v4
             : __builtin_cpu_supports("x86-64-v3") ? Isa::x86_64_v3
                                                   : Isa::x86_64_v2;
  if (const char* wanted = std::getenv("SEGUNC_OPS_ISA"))
    for (Isa less = Isa::x86_64_v2; less < best; less = Isa(int(less) + 1))
      if (std::strcmp(wanted, name(less)) == 0) return less;
  return best;
}
}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::x86_64_v4:
      return "x86-64-v4";
    case Isa::x86_64_v3:
      return "x86-64-v3";
    default:
      return "x86-64-v2";
  }
}
#else
Isa isa() { return Isa::baseline; }
const char* name(Isa) { return "baseline"; }
#endif

}  // namespace segunc::cpu
