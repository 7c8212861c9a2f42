/* What 256-bit registers do for AVX2 and AVX-512 alike. */

/* Eight numbers of each of eight rows, turned. */
OMNIC_INLINE void omnic_turned8(const float *p, int64_t stride, __m256 *out) {
  __m256 x[8];
  OMNIC_UNROLL
  for (int i = 0; i < 4; i++) {
    const float *row = p + i * stride, *below = row + 4 * stride;
    x[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row)), _mm_loadu_ps(below), 1);
    x[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row + 4)), _mm_loadu_ps(below + 4), 1);
  }
  OMNIC_UNROLL
  for (int i = 0; i < 8; i += 4) {
    __m256 a = _mm256_unpacklo_ps(x[i], x[i + 1]), b = _mm256_unpackhi_ps(x[i], x[i + 1]);
    __m256 c = _mm256_unpacklo_ps(x[i + 2], x[i + 3]), d = _mm256_unpackhi_ps(x[i + 2], x[i + 3]);
    out[i] = _mm256_shuffle_ps(a, c, 0x44);
    out[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
    out[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
    out[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
  }
}
/* The sums of neighbours of both, in the order of the lanes. */
OMNIC_INLINE __m256 omnic_pairs8(__m256 low, __m256 high) {
  __m256d sums = _mm256_castps_pd(_mm256_hadd_ps(low, high));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(sums, 0xd8));
}
