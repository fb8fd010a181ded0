// Which instruction-set variant of the CPU kernels runs.
#pragma once

namespace segunc::cpu {

#if defined(__x86_64__)
enum class Isa { x86_64_v2, x86_64_v3, x86_64_v4 };
#else
enum class Isa { baseline };
#endif

// The best that the processor has, or what SEGUNC_OPS_ISA names if that is less; chosen once.
Isa isa();
const char* name(Isa isa);

}  // namespace segunc::cpu

// Declares the variants of a kernel's entry point, and `segunc::cpu::NAME`, which calls the one in
// use. For the files that are compiled once; the kernels themselves define NAME in their variant.
// PARAMETERS and ARGUMENTS are parenthesised lists.
#if defined(__x86_64__)
#define SEGUNC_CPU_FUNCTION(NAME, PARAMETERS, ARGUMENTS) \
  namespace segunc::x86_64_v2 {                          \
  void NAME PARAMETERS;                                  \
  }                                                      \
  namespace segunc::x86_64_v3 {                          \
  void NAME PARAMETERS;                                  \
  }                                                      \
  namespace segunc::x86_64_v4 {                          \
  void NAME PARAMETERS;                                  \
  }                                                      \
  namespace segunc::cpu {                                \
  inline void NAME PARAMETERS {                          \
    switch (isa()) {                                     \
      case Isa::x86_64_v4:                               \
        return x86_64_v4::NAME ARGUMENTS;                \
      case Isa::x86_64_v3:                               \
        return x86_64_v3::NAME ARGUMENTS;                \
      default:                                           \
        return x86_64_v2::NAME ARGUMENTS;                \
    }                                                    \
  }                                                      \
  }
#else
#define SEGUNC_CPU_FUNCTION(NAME, PARAMETERS, ARGUMENTS)    \
  namespace segunc::baseline {                              \
  void NAME PARAMETERS;                                     \
  }                                                         \
  namespace segunc::cpu {                                   \
  inline void NAME PARAMETERS { baseline::NAME ARGUMENTS; } \
  }
#endif

// A kernel that works on units [begin, end).
#define SEGUNC_CPU_ENTRY(NAME, PARAMS)                                          \
  SEGUNC_CPU_FUNCTION(NAME, (const PARAMS& params, int64_t begin, int64_t end), \
                      (params, begin, end))
