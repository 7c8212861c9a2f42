/* Sixteen f32 lanes at a time, in every level.
 *
 * The sources of rows/ and attention/ are written in these lanes alone: a v16 is one register of AVX-512, two of AVX2,
 * four of NEON, sixteen floats of C.  Every operation rounds as IEEE 754 says and every sum runs in the order that is
 * written here, so all levels give the same bits.
 */
#if defined(OMNIC_HAS_AVX512)
#include "halves_x86.h"
#include "avx512.h"
#elif defined(OMNIC_HAS_AVX2)
#include "halves_x86.h"
#include "avx2.h"
#elif defined(OMNIC_HAS_NEON)
#include "neon.h"
#else
#include "generic.h"
#endif

OMNIC_INLINE v16 v16_zero(void) { return v16_set(0.0f); }

/* The first n (0..16) numbers of p, the rest 0. */
OMNIC_INLINE v16 v16_load_part(const float *p, int64_t n) {
  if (n >= 16) return v16_load(p);
  float part[16] = {0};
  for (int64_t i = 0; i < n; i++) part[i] = p[i];
  return v16_load(part);
}

OMNIC_INLINE void v16_store_part(float *p, v16 x, int64_t n) {
  if (n >= 16) {
    v16_store(p, x);
    return;
  }
  float part[16];
  v16_store(part, x);
  for (int64_t i = 0; i < n; i++) p[i] = part[i];
}

/* Numbers of the types of memory as f32: exact. */
OMNIC_INLINE float omnic_half(uint16_t bits) {
#if defined(OMNIC_HAS_AVX2)
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
#endif
  uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, rest = bits & 0x7fffu, word;
  float f;
  if (rest >= 0x7c00u) {
    word = sign | 0x7f800000u | (rest & 0x3ffu) << 13;
  } else if (rest >= 0x400u) {
    word = sign | ((rest << 13) + 0x38000000u);
  } else {
    float small = (float)rest * 0x1p-24f;
    memcpy(&word, &small, 4);
    word |= sign;
  }
  memcpy(&f, &word, 4);
  return f;
}

OMNIC_INLINE float omnic_bfloat(uint16_t bits) {
  uint32_t word = (uint32_t)bits << 16;
  float f;
  memcpy(&f, &word, 4);
  return f;
}

/* The nearest f16, half to even; beyond its range infinity. */
OMNIC_INLINE uint16_t omnic_to_half(float x) {
  uint32_t word;
  memcpy(&word, &x, 4);
  uint16_t sign = (uint16_t)(word >> 16 & 0x8000u);
  word &= 0x7fffffffu;
  if (word > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (word >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and more */
  if (word >= 0x38800000u) {                                  /* normal: 2^-14 and more */
    word += 0xfffu + (word >> 13 & 1);
    return (uint16_t)(sign | (word - 0x38000000u) >> 13);
  }
  float magnitude;
  memcpy(&magnitude, &word, 4);
  /* Adding 2^-1 puts the last bit of a subnormal half, 2^-24, at the last bit of the sum. */
  magnitude += 0.5f;
  memcpy(&word, &magnitude, 4);
  return (uint16_t)(sign | (word - 0x3f000000u));
}

OMNIC_INLINE uint16_t omnic_to_bfloat(float x) {
  uint32_t word;
  memcpy(&word, &x, 4);
  if ((word & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(word >> 16 | 0x40u);
  return (uint16_t)((word + 0x7fffu + (word >> 16 & 1)) >> 16);
}
