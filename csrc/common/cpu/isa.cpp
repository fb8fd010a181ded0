#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace segunc::cpu {
namespace {

struct Variant {
  Isa isa;
  const char* name;
  bool supported;
};

#if defined(__x86_64__)
#define SEGUNC_SUPPORTED(NAME) (__builtin_cpu_supports(NAME) != 0)
#else
#define SEGUNC_SUPPORTED(NAME) true
#endif

Isa choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
#define SEGUNC_VARIANT_OF(VARIANT, NAME, ...) {Isa::VARIANT, NAME, SEGUNC_SUPPORTED(NAME)},
  const Variant variants[] = {SEGUNC_ISAS(SEGUNC_VARIANT_OF)};
  const char* wanted = std::getenv("SEGUNC_OPS_ISA");
  const Variant* best = nullptr;
  for (const Variant& variant : variants) {
    if (!variant.supported) break;
    best = &variant;
    if (wanted && std::strcmp(wanted, variant.name) == 0) break;
  }
  if (!best)
    throw std::runtime_error(std::string("built for ") + variants[0].name +
                             " processors or better, which this one is not");
  return best->isa;
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* name(Isa isa) {
#define SEGUNC_NAME(VARIANT, NAME, ...) \
  case Isa::VARIANT:                    \
    return NAME;
  switch (isa) { SEGUNC_ISAS(SEGUNC_NAME) }
  return "";
}

}  // namespace segunc::cpu
