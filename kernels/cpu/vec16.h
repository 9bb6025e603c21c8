/* kernels/cpu/vec16.h - 16 float lanes, whatever the machine has: the one vector type of isa_*.c.
 *
 * A file isa_*.c is compiled once per instruction set with SP_ISA (the word) and SP_ISA_<word>
 * defined; this header picks the implementation. Every function does the same IEEE operation on
 * each lane, so the bits do not depend on the pick:
 *
 *   vec16_avx512.h  one __m512             vec16_avx2.h  two __m256
 *   vec16_plain.h   float[16] and loops, with __builtin_fmaf: any C11 machine (aarch64 compilers
 *                   turn the loops into NEON)
 *
 * Each of them gives, for lanes i = 0..15 (n: how many lanes take part, 0..16):
 *   v16_zero v16_set v16_load v16_load_n(p, n) v16_store v16_store_n      the rest loads as 0
 *   v16_add v16_sub v16_mul v16_div v16_fma(a, b, c) = a b + c
 *   v16_max(a, b) = a > b ? a : b, so b where one is NaN
 *   v16_lt_sel(a, b, x, y) = a < b ? x : y, and v16_le_sel
 *   v16_range_sel(lo, hi, x, y) = lo <= i < hi ? x : y
 *   v16_abs v16_copysign(magnitude, sign)
 *   v16_bits v16_of_bits and on v16i: v16i_set add sub shl shr sar and; v16_of_int
 *   v16_load_bf16 v16_load_f16 (+ _n), v16_store_bf16_n v16_store_f16_n   as dtype.h rounds
 *   v16_pair(p, &lo, &hi): 32 bf16 at p, lanes interleaved: (lo0, hi0, lo1, hi1, ...)
 *   v16_tree(a): l[i] += l[i+8], then 4, 2, 1; v16_tree_rows(a): lane i = tree of a[i], i < 16
 *   v16_transpose(a): 16 x 16 in place
 *
 * Thread: any; pure functions. */
#pragma once

#include "kernels/cpu/vec16_base.h"

#if defined(SP_ISA_avx512)
#include "kernels/cpu/vec16_avx512.h"
#elif defined(SP_ISA_avx2)
#include "kernels/cpu/vec16_avx2.h"
#else
#include "kernels/cpu/vec16_plain.h"
#endif
