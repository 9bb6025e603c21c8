/* kernels/cpu/vec16_base.h - words that vec16.h's implementations share.
 * Thread: any. */
#pragma once

#include "kernels/args.h"

#define SP_INLINE static inline __attribute__((always_inline, unused))

/** Before a loop of constant length over registers. Plain C keeps its loops: there a lane is a loop
 * of its own, and unrolling both takes a compiler minutes. */
#if !defined(SP_ISA_avx512) && !defined(SP_ISA_avx2)
#define UNROLL
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define SP_PASTE_(a, b) a##b
#define SP_PASTE(a, b) SP_PASTE_(a, b)
/** The name of an exported table: SP_ISA_NAME(sp_isa_gemm_) is sp_isa_gemm_avx2 and so on. */
#define SP_ISA_NAME(prefix) SP_PASTE(prefix, SP_ISA)
