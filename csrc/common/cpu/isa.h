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
#if defined(__x86_64__)
#define SEGUNC_CPU_ENTRY(NAME, PARAMS)                                 \
  namespace segunc::x86_64_v2 {                                        \
  void NAME(const PARAMS&, int64_t begin, int64_t end);                \
  }                                                                    \
  namespace segunc::x86_64_v3 {                                        \
  void NAME(const PARAMS&, int64_t begin, int64_t end);                \
  }                                                                    \
  namespace segunc::x86_64_v4 {                                        \
  void NAME(const PARAMS&, int64_t begin, int64_t end);                \
  }                                                                    \
  namespace segunc::cpu {                                              \
  inline void NAME(const PARAMS& params, int64_t begin, int64_t end) { \
    switch (isa()) {                                                   \
      case Isa::x86_64_v4:                                             \
        return x86_64_v4::NAME(params, begin, end);                    \
      case Isa::x86_64_v3:                                             \
        return x86_64_v3::NAME(params, begin, end);                    \
      default:                                                         \
        return x86_64_v2::NAME(params, begin, end);                    \
    }                                                                  \
  }                                                                    \
  }
#else
#define SEGUNC_CPU_ENTRY(NAME, PARAMS)                                 \
  namespace segunc::baseline {                                         \
  void NAME(const PARAMS&, int64_t begin, int64_t end);                \
  }                                                                    \
  namespace segunc::cpu {                                              \
  inline void NAME(const PARAMS& params, int64_t begin, int64_t end) { \
    baseline::NAME(params, begin, end);                                \
  }                                                                    \
  }
#endif
