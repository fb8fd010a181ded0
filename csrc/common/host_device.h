// What lets one formula serve g++ and nvcc, and several instruction sets in one library.
#pragma once

// Every header that a kernel includes puts its inline functions into a namespace named after the
// translation unit's target: otherwise the linker keeps one body of each, and an old processor
// could be handed the AVX-512 one.
#ifndef SEGUNC_VARIANT
#define SEGUNC_VARIANT generic
#endif

#ifdef __CUDACC__
#define SEGUNC_HD __host__ __device__ __forceinline__
#else
#define SEGUNC_HD [[gnu::always_inline]] inline
#endif
