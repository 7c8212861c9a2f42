/* The 16 columns of a panel in one vector of 512 bits: AVX-512 with VNNI. */

typedef __m512i cols_i; /* 16 columns of 4 bytes, or 16 whole numbers */
typedef __m512 cols_f;
#define COLS 16
#define COL_VECTORS 1
#define CODE_ROWS 8
#define CODE_PANELS 4        /* panels in flight for a single row, at most */
#define PANELS_IN_FLIGHT 4
#define BYTES_AHEAD 2048
#define VALUE_ROWS 8
#define VALUE_PANELS 8

OMNIC_INLINE cols_i cols_load(const void *p) { return _mm512_loadu_si512(p); }
OMNIC_INLINE void cols_store(void *p, cols_i v) { _mm512_storeu_si512(p, v); }
OMNIC_INLINE cols_i cols_low(cols_i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
OMNIC_INLINE cols_i cols_high(cols_i v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
OMNIC_INLINE cols_i cols_pair(cols_i v, int place) {
  return _mm512_and_si512(_mm512_srli_epi16(v, (unsigned)(2 * place)), _mm512_set1_epi8(3));
}
/* The same four codes of x for every column. */
OMNIC_INLINE cols_i cols_spread(const void *x) {
  int32_t four;
  memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}
OMNIC_INLINE cols_i cols_zero(void) { return _mm512_setzero_si512(); }
OMNIC_INLINE cols_i cols_whole(int32_t value) { return _mm512_set1_epi32(value); }
OMNIC_INLINE cols_i cols_add(cols_i a, cols_i b) { return _mm512_add_epi32(a, b); }
OMNIC_INLINE cols_i cols_mul(cols_i a, cols_i b) { return _mm512_mullo_epi32(a, b); }

/* Zero points of 16 columns as pairs of 16 bits. */
OMNIC_INLINE cols_i cols_byte_zeros(const uint8_t *zeros, int v) {
  (void)v;
  return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)zeros));
}
OMNIC_INLINE cols_i cols_zeros(const uint8_t *zeros, int v) {
  __m512i z = cols_byte_zeros(zeros, v);
  return _mm512_or_si512(z, _mm512_slli_epi32(z, 16));
}
OMNIC_INLINE cols_i cols_zeros_of(int zero) { return _mm512_set1_epi16((short)zero); }

/* A segment starts at minus zero times the sum of x. */
OMNIC_INLINE cols_i cols_start(const int16_t *sums, cols_i zeros) { return _mm512_madd_epi16(cols_spread(sums), zeros); }
OMNIC_INLINE cols_i cols_step(cols_i acc, cols_i codes, cols_i x) { return _mm512_dpbusd_epi32(acc, codes, x); }
OMNIC_INLINE cols_i cols_end(cols_i acc) { return acc; }
/* Steps lie as whole numbers. */
OMNIC_INLINE cols_i cols_step_one(void) { return _mm512_set1_epi32(1); }
OMNIC_INLINE cols_i cols_whole_step(cols_i step) { return step; }
OMNIC_INLINE cols_i cols_stepped(cols_i acc, cols_i step) { return _mm512_mullo_epi32(acc, step); }
/* Codes of 8 bits, as code + 128. */
#define COLS_BYTE_ZERO 128
OMNIC_INLINE cols_i cols_flip(cols_i codes) { return _mm512_xor_si512(codes, _mm512_set1_epi8((char)0x80)); }
OMNIC_INLINE cols_i cols_byte(cols_i codes) { return cols_flip(codes); }
OMNIC_INLINE cols_i cols_byte_step(cols_i acc, cols_i codes, cols_i x) { return _mm512_dpbusd_epi32(acc, codes, x); }

OMNIC_INLINE cols_f cols_to_f(cols_i v) { return _mm512_cvtepi32_ps(v); }
OMNIC_INLINE cols_i cols_bits(cols_f v) { return _mm512_castps_si512(v); }
OMNIC_INLINE cols_f cols_of_bits(cols_i v) { return _mm512_castsi512_ps(v); }
OMNIC_INLINE cols_f cols_number(float value) { return _mm512_set1_ps(value); }
OMNIC_INLINE cols_f cols_fma(cols_f a, cols_f b, cols_f c) { return _mm512_fmadd_ps(a, b, c); }
OMNIC_INLINE cols_f cols_times(cols_f a, cols_f b) { return _mm512_mul_ps(a, b); }
OMNIC_INLINE cols_f cols_plus(cols_f a, cols_f b) { return _mm512_add_ps(a, b); }
OMNIC_INLINE cols_f cols_get(const float *p) { return _mm512_loadu_ps(p); }
OMNIC_INLINE void cols_put(float *p, cols_f v) { _mm512_storeu_ps(p, v); }
/* The 16 numbers at `index` of an array of a plain type. */
OMNIC_INLINE cols_f cols_plain(const void *data, int32_t type, int64_t index, int v) {
  (void)v;
  if (type == OMNIC_F32) return _mm512_loadu_ps((const float *)data + index);
  __m256i half = _mm256_loadu_si256((const __m256i *)((const uint16_t *)data + index));
  if (type == OMNIC_F16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
/* The 16 steps of an S4 group. */
OMNIC_INLINE cols_i cols_steps(const uint8_t *eight, int v) {
  (void)v;
  __m128i bytes = _mm_loadl_epi64((const __m128i *)eight);
  return _mm512_cvtepu8_epi32(_mm_and_si128(_mm_unpacklo_epi64(bytes, _mm_srli_epi16(bytes, 4)), _mm_set1_epi8(15)));
}
/* Byte j (0..3) of every column, as a number. */
OMNIC_INLINE cols_f cols_code(cols_i codes, int j) {
  return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(codes, (unsigned)(8 * j)), _mm512_set1_epi32(255)));
}
