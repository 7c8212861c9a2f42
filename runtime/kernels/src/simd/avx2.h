/* The lanes as two registers of AVX2 with FMA and F16C. */
typedef struct {
  __m256 lo, hi;
} v16;

OMNIC_INLINE v16 v16_of(__m256 lo, __m256 hi) {
  v16 r = {lo, hi};
  return r;
}
OMNIC_INLINE v16 v16_set(float x) { return v16_of(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
OMNIC_INLINE v16 v16_load(const float *p) { return v16_of(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
OMNIC_INLINE void v16_store(float *p, v16 x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
OMNIC_INLINE v16 v16_add(v16 a, v16 b) { return v16_of(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)); }
OMNIC_INLINE v16 v16_sub(v16 a, v16 b) { return v16_of(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)); }
OMNIC_INLINE v16 v16_mul(v16 a, v16 b) { return v16_of(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)); }
OMNIC_INLINE v16 v16_div(v16 a, v16 b) { return v16_of(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)); }
OMNIC_INLINE v16 v16_fma(v16 a, v16 b, v16 c) {
  return v16_of(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
OMNIC_INLINE v16 v16_max(v16 a, v16 b) { return v16_of(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)); }
OMNIC_INLINE v16 v16_min(v16 a, v16 b) { return v16_of(_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)); }
OMNIC_INLINE v16 v16_abs(v16 a) {
  __m256 sign = _mm256_set1_ps(-0.0f);
  return v16_of(_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi));
}
OMNIC_INLINE v16 v16_signed(v16 a, v16 b) {
  __m256 sign = _mm256_set1_ps(-0.0f);
  return v16_of(_mm256_or_ps(_mm256_andnot_ps(sign, a.lo), _mm256_and_ps(sign, b.lo)),
                _mm256_or_ps(_mm256_andnot_ps(sign, a.hi), _mm256_and_ps(sign, b.hi)));
}
OMNIC_INLINE v16 v16_if_less(v16 a, v16 b, v16 x, v16 y) {
  return v16_of(_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
                _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)));
}
OMNIC_INLINE v16 v16_round(v16 a) {
  return v16_of(_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
OMNIC_INLINE __m256 v16_scale2_half(__m256 x, __m256 n) {
  __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
  __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}
OMNIC_INLINE v16 v16_scale2(v16 x, v16 n) {
  return v16_of(v16_scale2_half(x.lo, n.lo), v16_scale2_half(x.hi, n.hi));
}
OMNIC_INLINE float v16_sum(v16 x) {
  __m256 t = _mm256_add_ps(x.lo, x.hi);
  t = _mm256_hadd_ps(t, t);
  t = _mm256_hadd_ps(t, t);
  return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
}
OMNIC_INLINE float v16_peak(v16 x) {
  __m256 t = _mm256_max_ps(x.lo, x.hi);
  __m128 u = _mm_max_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
  u = _mm_max_ps(u, _mm_movehl_ps(u, u));
  return _mm_cvtss_f32(_mm_max_ss(u, _mm_shuffle_ps(u, u, 1)));
}
OMNIC_INLINE void v16_sum4(v16 a, v16 b, v16 c, v16 d, float *out) {
  __m256 ab = _mm256_hadd_ps(_mm256_add_ps(a.lo, a.hi), _mm256_add_ps(b.lo, b.hi));
  __m256 cd = _mm256_hadd_ps(_mm256_add_ps(c.lo, c.hi), _mm256_add_ps(d.lo, d.hi));
  __m256 all = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
OMNIC_INLINE v16 v16_from_bytes(__m128i bytes) {
  return v16_of(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))));
}
OMNIC_INLINE v16 v16_from_i8(const int8_t *p) {
  return v16_of(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8)))));
}
OMNIC_INLINE v16 v16_from_u4(const uint8_t *p) {
  __m128i packed = _mm_loadl_epi64((const __m128i *)p), low = _mm_set1_epi8(15);
  __m128i high = _mm_and_si128(_mm_srli_epi16(packed, 4), low);
  return v16_from_bytes(_mm_unpacklo_epi8(_mm_and_si128(packed, low), high));
}
OMNIC_INLINE v16 v16_from_half(const uint16_t *p) {
  return v16_of(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}
OMNIC_INLINE __m256 v16_from_bfloat_half(const uint16_t *p) {
  __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
OMNIC_INLINE v16 v16_from_bfloat(const uint16_t *p) {
  return v16_of(v16_from_bfloat_half(p), v16_from_bfloat_half(p + 8));
}
OMNIC_INLINE __m256 v16_power_half(__m256 p, __m256 z) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(z), 23)));
}
OMNIC_INLINE v16 v16_power(v16 p, v16 z) { return v16_of(v16_power_half(p.lo, z.lo), v16_power_half(p.hi, z.hi)); }
OMNIC_INLINE void v16_turned(const float *p, int64_t stride, v16 *out) {
  __m256 low[8], high[8];
  omnic_turned8(p, stride, low);
  omnic_turned8(p + 8 * stride, stride, high);
  OMNIC_UNROLL
  for (int i = 0; i < 8; i++) out[i] = v16_of(low[i], high[i]);
}
OMNIC_INLINE v16 v16_set_pair(const float *p) {
  __m256 pair = _mm256_castpd_ps(_mm256_broadcast_sd((const double *)p));
  return v16_of(pair, pair);
}
OMNIC_INLINE void v16_store_pairs(float *p, v16 x) { _mm256_storeu_ps(p, omnic_pairs8(x.lo, x.hi)); }
