// Which instruction-set variant of the CPU kernels runs.
#pragma once

// CMake's: SEGUNC_ISAS(X, ...) is X(variant, "name", ...) of each variant, from worst to best.
#include "isas.h"

namespace segunc::cpu {

#define SEGUNC_ENUMERATOR(VARIANT, ...) VARIANT,
enum class Isa { SEGUNC_ISAS(SEGUNC_ENUMERATOR) };
#undef SEGUNC_ENUMERATOR

// The best that the processor has, or what SEGUNC_OPS_ISA names if that is less; chosen once.
// Throws std::runtime_error where the library has code for none that the processor has.
Isa isa();
const char* name(Isa isa);

}  // namespace segunc::cpu

// Declares the variants of a kernel's entry point, and `segunc::cpu::NAME`, which calls the one in
// use. For the files that are compiled once; the kernels themselves define NAME in their variant.
// PARAMETERS and ARGUMENTS are parenthesised lists.
#define SEGUNC_CPU_FUNCTION(NAME, PARAMETERS, ARGUMENTS)         \
  SEGUNC_ISAS(SEGUNC_DECLARE, NAME, PARAMETERS)                  \
  namespace segunc::cpu {                                        \
  inline void NAME PARAMETERS {                                  \
    switch (isa()) { SEGUNC_ISAS(SEGUNC_CALL, NAME, ARGUMENTS) } \
  }                                                              \
  }
#define SEGUNC_DECLARE(VARIANT, _, NAME, PARAMETERS) \
  namespace segunc::VARIANT {                        \
  void NAME PARAMETERS;                              \
  }
#define SEGUNC_CALL(VARIANT, _, NAME, ARGUMENTS) \
  case Isa::VARIANT:                             \
    return VARIANT::NAME ARGUMENTS;

// A kernel that works on units [begin, end).
#define SEGUNC_CPU_ENTRY(NAME, PARAMS)                                          \
  SEGUNC_CPU_FUNCTION(NAME, (const PARAMS& params, int64_t begin, int64_t end), \
                      (params, begin, end))
