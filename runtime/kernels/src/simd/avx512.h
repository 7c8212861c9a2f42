/* The lanes as one register of AVX-512. */
typedef __m512 v16;

OMNIC_INLINE v16 v16_set(float x) { return _mm512_set1_ps(x); }
OMNIC_INLINE v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
OMNIC_INLINE void v16_store(float *p, v16 x) { _mm512_storeu_ps(p, x); }
OMNIC_INLINE v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
OMNIC_INLINE v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
OMNIC_INLINE v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
OMNIC_INLINE v16 v16_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
OMNIC_INLINE v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
OMNIC_INLINE v16 v16_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
OMNIC_INLINE v16 v16_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
OMNIC_INLINE v16 v16_abs(v16 a) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff)));
}
OMNIC_INLINE v16 v16_signed(v16 a, v16 b) {
  __m512i sign = _mm512_set1_epi32((int)0x80000000u);
  __m512i magnitude = _mm512_andnot_si512(sign, _mm512_castps_si512(a));
  return _mm512_castsi512_ps(_mm512_or_si512(magnitude, _mm512_and_si512(sign, _mm512_castps_si512(b))));
}
OMNIC_INLINE v16 v16_if_less(v16 a, v16 b, v16 x, v16 y) {
  return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}
OMNIC_INLINE v16 v16_round(v16 a) { return _mm512_roundscale_ps(a, 0); }
OMNIC_INLINE v16 v16_scale2(v16 x, v16 n) {
  __m512i whole = _mm512_cvtps_epi32(n), half = _mm512_srai_epi32(whole, 1), bias = _mm512_set1_epi32(127);
  __m512i first = _mm512_slli_epi32(_mm512_add_epi32(half, bias), 23);
  __m512i second = _mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(whole, half), bias), 23);
  return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_castsi512_ps(first)), _mm512_castsi512_ps(second));
}
OMNIC_INLINE __m256 v16_low(v16 x) { return _mm512_castps512_ps256(x); }
OMNIC_INLINE __m256 v16_high(v16 x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)); }
OMNIC_INLINE __m256 v16_fold(v16 x) { return _mm256_add_ps(v16_low(x), v16_high(x)); }
OMNIC_INLINE float v16_sum(v16 x) {
  __m256 t = v16_fold(x);
  t = _mm256_hadd_ps(t, t);
  t = _mm256_hadd_ps(t, t);
  return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
}
OMNIC_INLINE float v16_peak(v16 x) {
  __m256 t = _mm256_max_ps(v16_low(x), v16_high(x));
  __m128 u = _mm_max_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
  u = _mm_max_ps(u, _mm_movehl_ps(u, u));
  return _mm_cvtss_f32(_mm_max_ss(u, _mm_shuffle_ps(u, u, 1)));
}
OMNIC_INLINE void v16_sum4(v16 a, v16 b, v16 c, v16 d, float *out) {
  __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(v16_fold(a), v16_fold(b)), _mm256_hadd_ps(v16_fold(c), v16_fold(d)));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
OMNIC_INLINE v16 v16_from_i8(const int8_t *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
OMNIC_INLINE v16 v16_from_u4(const uint8_t *p) {
  __m128i packed = _mm_loadl_epi64((const __m128i *)p), low = _mm_set1_epi8(15);
  __m128i high = _mm_and_si128(_mm_srli_epi16(packed, 4), low);
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_unpacklo_epi8(_mm_and_si128(packed, low), high)));
}
OMNIC_INLINE v16 v16_from_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
OMNIC_INLINE v16 v16_from_bfloat(const uint16_t *p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
OMNIC_INLINE v16 v16_power(v16 p, v16 z) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(z), 23)));
}
OMNIC_INLINE void v16_turned(const float *p, int64_t stride, v16 *out) {
  __m256 low[8], high[8];
  omnic_turned8(p, stride, low);
  omnic_turned8(p + 8 * stride, stride, high);
  OMNIC_UNROLL
  for (int i = 0; i < 8; i++) {
    __m512d half = _mm512_castpd256_pd512(_mm256_castps_pd(low[i]));
    out[i] = _mm512_castpd_ps(_mm512_insertf64x4(half, _mm256_castps_pd(high[i]), 1));
  }
}
OMNIC_INLINE v16 v16_set_pair(const float *p) {
  return _mm512_castpd_ps(_mm512_broadcastsd_pd(_mm_loadl_pd(_mm_setzero_pd(), (const double *)p)));
}
OMNIC_INLINE void v16_store_pairs(float *p, v16 x) { _mm256_storeu_ps(p, omnic_pairs8(v16_low(x), v16_high(x))); }
