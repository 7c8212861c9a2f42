/* Intrinsics of AVX-512, VNNI and AMX as functions over AVX2 or plain C (SIMDe, and ours below), so that tests run the
 * sources of those levels on a CPU that lacks them.  Only the emulated variant of the library includes this.
 */
#include <immintrin.h>
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

/* The VEX forms of VNNI, which SIMDe does not name. */
#undef _mm256_dpbusd_avx_epi32
#undef _mm_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32(sum, a, b) simde_mm256_dpbusd_epi32(sum, a, b)
#define _mm_dpbusd_avx_epi32(sum, a, b) simde_mm_dpbusd_epi32(sum, a, b)

#include "amx.h"
