/* The two products of attention for a few queries and a block of tokens.  What one number is made of does not depend
 * on the tile it is computed in: a score is sixteen chains over the numbers of a row and their sum (v16_sum), a mixed
 * value is one chain over the tokens in their order. */

/* Queries in one tile; rows of queries are filled up to a multiple of it, but for a single one. */
#define OMNIC_TILE_ROWS 4

#if defined(OMNIC_HAS_AVX512)
#define OMNIC_TILE_KEYS 4
#define OMNIC_TILE_WIDE 4
#else
#define OMNIC_TILE_KEYS 1
#define OMNIC_TILE_WIDE 1
#endif

/* scores[r][t] of four queries (each `width` numbers, one after another) and tokens from .. to - 1. */
OMNIC_INLINE void omnic_scores4(const float *q, int64_t width, const float *keys, int64_t stride, int64_t from,
                                int64_t to, float *scores, int64_t ld) {
  int64_t t = from;
#if OMNIC_TILE_KEYS > 1
  for (; t + OMNIC_TILE_KEYS <= to; t += OMNIC_TILE_KEYS) {
    const float *k = keys + t * stride;
    v16 sum[OMNIC_TILE_KEYS][4];
    OMNIC_UNROLL
    for (int j = 0; j < OMNIC_TILE_KEYS; j++) {
      OMNIC_UNROLL
      for (int r = 0; r < 4; r++) sum[j][r] = v16_zero();
    }
    for (int64_t i = 0; i < width; i += 16) {
      OMNIC_UNROLL
      for (int j = 0; j < OMNIC_TILE_KEYS; j++) {
        v16 key = v16_load(k + j * stride + i);
        OMNIC_UNROLL
        for (int r = 0; r < 4; r++) sum[j][r] = v16_fma(v16_load(q + r * width + i), key, sum[j][r]);
      }
    }
    OMNIC_UNROLL
    for (int j = 0; j < OMNIC_TILE_KEYS; j++) {
      float out[4];
      v16_sum4(sum[j][0], sum[j][1], sum[j][2], sum[j][3], out);
      OMNIC_UNROLL
      for (int r = 0; r < 4; r++) scores[r * ld + t + j] = out[r];
    }
  }
#endif
  for (; t < to; t++) {
    const float *k = keys + t * stride;
    v16 s0 = v16_zero(), s1 = s0, s2 = s0, s3 = s0;
    for (int64_t i = 0; i < width; i += 16) {
      v16 key = v16_load(k + i);
      s0 = v16_fma(v16_load(q + i), key, s0);
      s1 = v16_fma(v16_load(q + width + i), key, s1);
      s2 = v16_fma(v16_load(q + 2 * width + i), key, s2);
      s3 = v16_fma(v16_load(q + 3 * width + i), key, s3);
    }
    float out[4];
    v16_sum4(s0, s1, s2, s3, out);
    OMNIC_UNROLL
    for (int r = 0; r < 4; r++) scores[r * ld + t] = out[r];
  }
}

/* The same of two queries and three tokens at a time: fewer loads for each product, worth it in rows of many numbers,
 * where the sums of the lanes at the end do not count. */
OMNIC_INLINE void omnic_scores2(const float *q, int64_t width, const float *keys, int64_t stride, int64_t from,
                                int64_t to, float *scores, int64_t ld) {
  int64_t t = from;
  for (; t + 3 <= to; t += 3) {
    const float *k = keys + t * stride;
    v16 a0 = v16_zero(), a1 = a0, a2 = a0, b0 = a0, b1 = a0, b2 = a0;
    for (int64_t i = 0; i < width; i += 16) {
      v16 x = v16_load(q + i), y = v16_load(q + width + i), key = v16_load(k + i);
      a0 = v16_fma(x, key, a0);
      b0 = v16_fma(y, key, b0);
      key = v16_load(k + stride + i);
      a1 = v16_fma(x, key, a1);
      b1 = v16_fma(y, key, b1);
      key = v16_load(k + 2 * stride + i);
      a2 = v16_fma(x, key, a2);
      b2 = v16_fma(y, key, b2);
    }
    float out[8];
    v16_sum4(a0, a1, a2, b0, out);
    v16_sum4(b1, b2, b1, b2, out + 4);
    scores[t] = out[0], scores[t + 1] = out[1], scores[t + 2] = out[2];
    scores[ld + t] = out[3], scores[ld + t + 1] = out[4], scores[ld + t + 2] = out[5];
  }
  for (; t < to; t++) {
    v16 a = v16_zero(), b = a;
    for (int64_t i = 0; i < width; i += 16) {
      v16 key = v16_load(keys + t * stride + i);
      a = v16_fma(v16_load(q + i), key, a);
      b = v16_fma(v16_load(q + width + i), key, b);
    }
    scores[t] = v16_sum(a), scores[ld + t] = v16_sum(b);
  }
}

/* The same of one query: four tokens at a time. */
OMNIC_INLINE void omnic_scores1(const float *q, int64_t width, const float *keys, int64_t stride, int64_t from,
                                int64_t to, float *scores) {
  int64_t t = from;
  for (; t + 4 <= to; t += 4) {
    const float *k = keys + t * stride;
    v16 s0 = v16_zero(), s1 = s0, s2 = s0, s3 = s0;
    for (int64_t i = 0; i < width; i += 16) {
      v16 query = v16_load(q + i);
      s0 = v16_fma(query, v16_load(k + i), s0);
      s1 = v16_fma(query, v16_load(k + stride + i), s1);
      s2 = v16_fma(query, v16_load(k + 2 * stride + i), s2);
      s3 = v16_fma(query, v16_load(k + 3 * stride + i), s3);
    }
    v16_sum4(s0, s1, s2, s3, scores + t);
  }
  for (; t < to; t++) {
    v16 sum = v16_zero();
    for (int64_t i = 0; i < width; i += 16) sum = v16_fma(v16_load(q + i), v16_load(keys + t * stride + i), sum);
    scores[t] = v16_sum(sum);
  }
}

/* mixed[r] = mixed[r] * fade[r] + sum over tokens of weights[r][t] * values[t], for rows of queries in fours, 16 WIDE
 * numbers at a time: that slice of the values stays in the first cache for all rows. */
#define OMNIC_MIX_TILE(WIDE)                                                                                        \
  for (; i + 16 * (WIDE) <= width; i += 16 * (WIDE))                                                                \
    for (int64_t four = 0; four < rows; four += 4) {                                                                \
    const float *weights = all_weights + four * ld, *fade = all_fade + four;                                        \
    float *mixed = all_mixed + four * width;                                                                        \
    v16 sum[4][WIDE];                                                                                               \
    OMNIC_UNROLL                                                                                                    \
    for (int r = 0; r < 4; r++) {                                                                                   \
      OMNIC_UNROLL                                                                                                  \
      for (int j = 0; j < (WIDE); j++)                                                                              \
        sum[r][j] = v16_mul(v16_load(mixed + r * width + i + 16 * j), v16_set(fade[r]));                            \
    }                                                                                                               \
    for (int64_t t = from; t < to; t++) {                                                                           \
      const float *v = values + t * stride + i;                                                                     \
      __builtin_prefetch(v + 16 * (WIDE));                                                                          \
      OMNIC_UNROLL                                                                                                  \
      for (int r = 0; r < 4; r++) {                                                                                 \
        v16 weight = v16_set(weights[r * ld + t]);                                                                  \
        OMNIC_UNROLL                                                                                                \
        for (int j = 0; j < (WIDE); j++) sum[r][j] = v16_fma(weight, v16_load(v + 16 * j), sum[r][j]);              \
      }                                                                                                             \
    }                                                                                                               \
    OMNIC_UNROLL                                                                                                    \
    for (int r = 0; r < 4; r++) {                                                                                   \
      OMNIC_UNROLL                                                                                                  \
      for (int j = 0; j < (WIDE); j++) v16_store(mixed + r * width + i + 16 * j, sum[r][j]);                        \
    }                                                                                                               \
  }

OMNIC_INLINE void omnic_mix4(const float *all_weights, int64_t ld, const float *values, int64_t stride, int64_t from,
                             int64_t to, const float *all_fade, float *all_mixed, int64_t width, int64_t rows) {
  int64_t i = 0;
#if OMNIC_TILE_WIDE > 1
  OMNIC_MIX_TILE(OMNIC_TILE_WIDE)
#endif
  OMNIC_MIX_TILE(1)
}

/* The same of one query, 64 numbers at a time. */
OMNIC_INLINE void omnic_mix1(const float *weights, const float *values, int64_t stride, int64_t from, int64_t to,
                             float fade, float *mixed, int64_t width) {
  v16 factor = v16_set(fade);
  int64_t i = 0;
  for (; i + 64 <= width; i += 64) {
    v16 s0 = v16_mul(v16_load(mixed + i), factor), s1 = v16_mul(v16_load(mixed + i + 16), factor);
    v16 s2 = v16_mul(v16_load(mixed + i + 32), factor), s3 = v16_mul(v16_load(mixed + i + 48), factor);
    for (int64_t t = from; t < to; t++) {
      const float *v = values + t * stride + i;
      v16 weight = v16_set(weights[t]);
      s0 = v16_fma(weight, v16_load(v), s0);
      s1 = v16_fma(weight, v16_load(v + 16), s1);
      s2 = v16_fma(weight, v16_load(v + 32), s2);
      s3 = v16_fma(weight, v16_load(v + 48), s3);
    }
    v16_store(mixed + i, s0);
    v16_store(mixed + i + 16, s1);
    v16_store(mixed + i + 32, s2);
    v16_store(mixed + i + 48, s3);
  }
  for (; i < width; i += 16) {
    v16 sum = v16_mul(v16_load(mixed + i), factor);
    for (int64_t t = from; t < to; t++) sum = v16_fma(v16_set(weights[t]), v16_load(values + t * stride + i), sum);
    v16_store(mixed + i, sum);
  }
}
