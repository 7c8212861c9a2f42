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

/* SIMDe 0.7 gives this name the arguments of its masked form. */
#undef _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)

/* What SIMDe 0.7 lacks, in two halves of 256 bits. */
#define OMNIC_HALVES(name, out, from, type, half_out, size, operation) \
  static inline out name(from a) {                                     \
    out whole;                                                         \
    for (int i = 0; i < 2; i++) {                                      \
      type half;                                                       \
      memcpy(&half, (const char *)&a + (size) * i, (size));            \
      half_out part = operation(half);                                 \
      memcpy((char *)&whole + 32 * i, &part, 32);                      \
    }                                                                  \
    return whole;                                                      \
  }
OMNIC_HALVES(omnic_cvtps_epi32, __m512i, __m512, __m256, __m256i, 32, _mm256_cvtps_epi32)
OMNIC_HALVES(omnic_cvtepi32_ps, __m512, __m512i, __m256i, __m256, 32, _mm256_cvtepi32_ps)
OMNIC_HALVES(omnic_cvtph_ps, __m512, __m256i, __m128i, __m256, 16, _mm256_cvtph_ps)
OMNIC_HALVES(omnic_cvtepu16_epi32, __m512i, __m256i, __m128i, __m256i, 16, _mm256_cvtepu16_epi32)
static inline __m512i omnic_cvtepu8_epi32(__m128i a) { return omnic_cvtepu16_epi32(_mm256_cvtepu8_epi16(a)); }
static inline __m512i omnic_cvtepi8_epi32(__m128i a) {
  __m256i part[2] = {_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(a, a))};
  __m512i whole;
  memcpy(&whole, part, 64);
  return whole;
}
static inline __m512i omnic_srai_epi32(__m512i a, int count) {
  __m256i part[2];
  memcpy(part, &a, 64);
  for (int i = 0; i < 2; i++) part[i] = _mm256_srai_epi32(part[i], count);
  memcpy(&a, part, 64);
  return a;
}
#define _mm512_cvtps_epi32(a) omnic_cvtps_epi32(a)
#define _mm512_cvtepi32_ps(a) omnic_cvtepi32_ps(a)
#define _mm512_cvtph_ps(a) omnic_cvtph_ps(a)
#define _mm512_cvtepu16_epi32(a) omnic_cvtepu16_epi32(a)
#define _mm512_cvtepu8_epi32(a) omnic_cvtepu8_epi32(a)
#define _mm512_cvtepi8_epi32(a) omnic_cvtepi8_epi32(a)
#define _mm512_srai_epi32(a, count) omnic_srai_epi32(a, count)

#include "amx.h"
