/* The 16 columns of a panel in two vectors of 256 bits: AVX2, and the dot product of AVX-VNNI where it is there. */

typedef __m256i cols_i; /* 8 columns of 4 bytes, or 8 whole numbers */
typedef __m256 cols_f;
#define COLS 8
#define COL_VECTORS 2
#define CODE_ROWS 4        /* rows of a block of whole-number products: 8 sums, and what a step needs */
#define CODE_PANELS 4        /* panels in flight for a single row, at most */
#define PANELS_IN_FLIGHT 2
#define BYTES_AHEAD 1024
#define VALUE_ROWS 6       /* rows of a block of f32 products: 12 sums hide the latency of two FMA units */
#define VALUE_PANELS 4

OMNIC_INLINE cols_i cols_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
OMNIC_INLINE void cols_store(void *p, cols_i v) { _mm256_storeu_si256((__m256i *)p, v); }
OMNIC_INLINE cols_i cols_low(cols_i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
OMNIC_INLINE cols_i cols_high(cols_i v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)); }
OMNIC_INLINE cols_i cols_pair(cols_i v, int place) {
  return _mm256_and_si256(_mm256_srli_epi16(v, 2 * place), _mm256_set1_epi8(3));
}
/* The same four codes of x for every column. */
OMNIC_INLINE cols_i cols_spread(const void *x) {
  int32_t four;
  memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}
OMNIC_INLINE cols_i cols_zero(void) { return _mm256_setzero_si256(); }
OMNIC_INLINE cols_i cols_whole(int32_t value) { return _mm256_set1_epi32(value); }
OMNIC_INLINE cols_i cols_add(cols_i a, cols_i b) { return _mm256_add_epi32(a, b); }
OMNIC_INLINE cols_i cols_mul(cols_i a, cols_i b) { return _mm256_mullo_epi32(a, b); }

/* Zero points of 8 columns, from vector v of 16 bytes, as pairs of 16 bits. */
OMNIC_INLINE cols_i cols_zeros(const uint8_t *zeros, int v) {
  __m256i z = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(zeros + 8 * v)));
  return _mm256_or_si256(z, _mm256_slli_epi32(z, 16));
}
OMNIC_INLINE cols_i cols_zeros_of(int zero) { return _mm256_set1_epi16((short)zero); }
/* The same as whole numbers, less what cols_byte_step leaves in. */
OMNIC_INLINE cols_i cols_byte_zeros(const uint8_t *zeros, int v) {
#if defined(OMNIC_HAS_AVXVNNI)
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(zeros + 8 * v)));
#else
  return _mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(zeros + 8 * v))), _mm256_set1_epi32(128));
#endif
}

/* A segment: 32 numbers of small codes (0..15).  It starts at minus zero times the sum of x, which lies at `sums` in
 * the two halves that the 16-bit lanes add: so a lane ends within 15 * 127 * 16 and whatever wraps before comes back. */
#if defined(OMNIC_HAS_AVXVNNI)
OMNIC_INLINE cols_i cols_start(const int16_t *sums, cols_i zeros) { return _mm256_madd_epi16(cols_spread(sums), zeros); }
OMNIC_INLINE cols_i cols_step(cols_i acc, cols_i codes, cols_i x) { return _mm256_dpbusd_avx_epi32(acc, codes, x); }
OMNIC_INLINE cols_i cols_end(cols_i acc) { return acc; }
/* Steps lie as whole numbers. */
OMNIC_INLINE cols_i cols_step_one(void) { return _mm256_set1_epi32(1); }
OMNIC_INLINE cols_i cols_whole_step(cols_i step) { return step; }
OMNIC_INLINE cols_i cols_stepped(cols_i acc, cols_i step) { return _mm256_mullo_epi32(acc, step); }
/* Codes of 8 bits, as code + 128. */
#define COLS_BYTE_ZERO 128
OMNIC_INLINE cols_i cols_byte(cols_i codes) { return _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80)); }
OMNIC_INLINE cols_i cols_byte_step(cols_i acc, cols_i codes, cols_i x) { return _mm256_dpbusd_avx_epi32(acc, codes, x); }
#else
OMNIC_INLINE cols_i cols_start(const int16_t *sums, cols_i zeros) { return _mm256_mullo_epi16(cols_spread(sums), zeros); }
OMNIC_INLINE cols_i cols_step(cols_i acc, cols_i codes, cols_i x) {
  acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, x));
  /* Compilers know that whole numbers may be added in any order, and then keep all products for later, in memory. */
  __asm__("" : "+x"(acc));
  return acc;
}
OMNIC_INLINE cols_i cols_end(cols_i acc) { return _mm256_madd_epi16(acc, _mm256_set1_epi16(1)); }
/* Steps lie as pairs of 16 bits: what joins the two halves of a sum multiplies it too. */
OMNIC_INLINE cols_i cols_step_one(void) { return _mm256_set1_epi16(1); }
OMNIC_INLINE cols_i cols_whole_step(cols_i step) { return _mm256_srli_epi32(step, 16); }
OMNIC_INLINE cols_i cols_stepped(cols_i acc, cols_i step) { return _mm256_madd_epi16(acc, step); }
/* Codes of 8 bits with their sign: |w| times x with the sign of w, of which a pair is at most 2 * 128 * 127. */
#define COLS_BYTE_ZERO 0
OMNIC_INLINE cols_i cols_byte(cols_i codes) { return codes; }
OMNIC_INLINE cols_i cols_byte_step(cols_i acc, cols_i codes, cols_i x) {
  __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

OMNIC_INLINE cols_f cols_to_f(cols_i v) { return _mm256_cvtepi32_ps(v); }
OMNIC_INLINE cols_i cols_bits(cols_f v) { return _mm256_castps_si256(v); }
OMNIC_INLINE cols_f cols_of_bits(cols_i v) { return _mm256_castsi256_ps(v); }
OMNIC_INLINE cols_f cols_number(float value) { return _mm256_set1_ps(value); }
OMNIC_INLINE cols_f cols_fma(cols_f a, cols_f b, cols_f c) { return _mm256_fmadd_ps(a, b, c); }
OMNIC_INLINE cols_f cols_times(cols_f a, cols_f b) { return _mm256_mul_ps(a, b); }
OMNIC_INLINE cols_f cols_plus(cols_f a, cols_f b) { return _mm256_add_ps(a, b); }
OMNIC_INLINE cols_f cols_get(const float *p) { return _mm256_loadu_ps(p); }
OMNIC_INLINE void cols_put(float *p, cols_f v) { _mm256_storeu_ps(p, v); }
/* Vector v of the 16 numbers at `index` of an array of a plain type. */
OMNIC_INLINE cols_f cols_plain(const void *data, int32_t type, int64_t index, int v) {
  if (type == OMNIC_F32) return _mm256_loadu_ps((const float *)data + index + 8 * v);
  __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)data + index + 8 * v));
  if (type == OMNIC_F16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
/* Vector v of the 16 steps of an S4 group: the low or the high halves of eight bytes. */
OMNIC_INLINE cols_i cols_steps(const uint8_t *eight, int v) {
#if defined(OMNIC_HAS_AVXVNNI)
  __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)eight)), low = _mm256_set1_epi32(15);
#else
  int64_t all;
  memcpy(&all, eight, 8);
  const __m256i place = _mm256_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1,
                                         4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1);
  __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi64x(all), place), low = _mm256_set1_epi16(15);
#endif
  return v ? _mm256_srli_epi16(bytes, 4) : _mm256_and_si256(bytes, low);
}
/* Byte j (0..3) of every column, as a number. */
OMNIC_INLINE cols_f cols_code(cols_i codes, int j) {
  return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(codes, 8 * j), _mm256_set1_epi32(255)));
}
/* Signed codes of 8 bits as code + 128. */
OMNIC_INLINE cols_i cols_flip(cols_i codes) { return _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80)); }
