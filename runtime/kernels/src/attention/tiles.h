/* The two products of attention for a few queries and a block of tokens.  What one number is made of does not depend on
 * the tile that it is computed in: a score is two chains of fused multiply-adds, over the even and the odd numbers of a
 * row in their order, and their sum; a mixed value is one chain over the tokens in theirs.
 */

/* Tokens of a block as f32 rows: number i of token t is at[t * stride + i], for i < n.  `next` is where the rows of the
 * next block begin, if they are read from memory as they lie. */
typedef struct {
  const float *at, *next;
  int64_t stride, n;
} omnic_tokens;

/* Queries whose pairs of numbers fill the lanes, and tokens of a tile: with these the tile fills the registers. */
#define OMNIC_TOGETHER 8
#if defined(OMNIC_HAS_AVX512)
#define OMNIC_TILE_TOKENS 12
#else
#define OMNIC_TILE_TOKENS 6
#endif

/* Ask for `count` lines of a cache, which no CPU foresees where rows are read side by side. */
OMNIC_INLINE void omnic_foretell(const float *x, int count) {
  OMNIC_UNROLL
  for (int i = 0; i < count; i++) __builtin_prefetch(x + 16 * i, 0, 2);
}

/* Scores of COUNT tokens from `t` on for eight queries from `r` on: a pair of numbers of each query meets a pair of a
 * token.  queries[i / 2][query][i & 1] are the numbers of eight; keys lie in one part or two. */
#define OMNIC_SCORE_TILE(COUNT)                                                                             \
  for (int64_t r = 0; r < count; r += OMNIC_TOGETHER) {                                                     \
    v16 sum[COUNT];                                                                                         \
    OMNIC_UNROLL                                                                                            \
    for (int j = 0; j < (COUNT); j++) sum[j] = v16_zero();                                                  \
    const float *q = queries + r * width;                                                                   \
    for (const omnic_tokens *part = keys; part < keys + parts; part++) {                                    \
      int64_t stride = part->stride;                                                                        \
      const float *key = part->at + t * stride, *last = key + part->n;                                      \
      /* Each step of the first queries asks for as many numbers of the next block as it uses. */           \
      int asks = part->next && r == 0;                                                                      \
      const float *next = asks ? part->next + t * stride : key;                                             \
      int64_t step = asks ? 2 * (COUNT) : 0;                                                                \
      for (; key < last; key += 2, q += 16, next += step) {                                                 \
        v16 x = v16_load(q);                                                                                \
        omnic_foretell(next, 1);                                                                            \
        OMNIC_UNROLL                                                                                        \
        for (int j = 0; j < (COUNT); j++) sum[j] = v16_fma(v16_set_pair(key + j * stride), x, sum[j]);      \
      }                                                                                                     \
    }                                                                                                       \
    OMNIC_UNROLL                                                                                            \
    for (int j = 0; j < (COUNT); j++) v16_store_pairs(scores + (t + j) * ld + r, sum[j]);                   \
  }

/* scores[t][query] of `count` queries of `width` numbers and the tokens from .. to - 1.  The last tile begins early
 * enough to be whole. */
OMNIC_INLINE void omnic_scores(const float *queries, int64_t count, int64_t width, const omnic_tokens *keys, int parts,
                               int64_t from, int64_t to, float *scores, int64_t ld) {
  int64_t t = from;
  if (to - from >= OMNIC_TILE_TOKENS)
    for (; t < to; t += OMNIC_TILE_TOKENS) {
      if (t > to - OMNIC_TILE_TOKENS) t = to - OMNIC_TILE_TOKENS;
      OMNIC_SCORE_TILE(OMNIC_TILE_TOKENS)
    }
  for (; t < to; t++) OMNIC_SCORE_TILE(1)
}

/* The same for one query or two: a register holds sixteen tokens, whose rows are turned as they are read.
 * queries[r][i], scores[r][t].  Where there are fewer than sixteen tokens the others of their sixteen are read too. */
OMNIC_INLINE void omnic_scores_few(const float *queries, int64_t width, int rows, const omnic_tokens *keys, int parts,
                                   int64_t from, int64_t to, float *scores) {
  int whole = to - from >= 16;
  for (int64_t t = whole ? from : from / 16 * 16; t < to; t += 16) {
    if (whole && t > to - 16) t = to - 16;
    v16 even[2], odd[2];
    OMNIC_UNROLL
    for (int r = 0; r < rows; r++) even[r] = odd[r] = v16_zero();
    const float *q = queries;
    for (const omnic_tokens *part = keys; part < keys + parts; part++) {
      const float *key = part->at + t * part->stride;
      for (int64_t i = 0; i < part->n; i += 8, q += 8) {
        v16 turned[8];
        v16_turned(key + i, part->stride, turned);
        if (part->next) omnic_foretell(part->next + t * part->stride + 16 * i, 8);
        OMNIC_UNROLL
        for (int j = 0; j < 8; j += 2) {
          OMNIC_UNROLL
          for (int r = 0; r < rows; r++) {
            even[r] = v16_fma(v16_set(q[r * width + j]), turned[j], even[r]);
            odd[r] = v16_fma(v16_set(q[r * width + j + 1]), turned[j + 1], odd[r]);
          }
        }
      }
    }
    OMNIC_UNROLL
    for (int r = 0; r < rows; r++) v16_store(scores + r * OMNIC_BLOCK + t, v16_add(even[r], odd[r]));
  }
}

/* mixed[r] = mixed[r] * fade[r] + sum over tokens of weights[r][t] * values[t] for ROWS queries and 16 WIDE numbers of
 * the values from i on, as far as there are so many. */
#define OMNIC_MIX(ROWS, WIDE)                                                                                      \
  for (; i + 16 * (WIDE) <= width; i += 16 * (WIDE))                                                               \
    for (int64_t row = 0; row < rows; row += (ROWS)) {                                                             \
      float *y = mixed + row * width + i;                                                                          \
      v16 sum[ROWS][WIDE];                                                                                         \
      OMNIC_UNROLL                                                                                                 \
      for (int r = 0; r < (ROWS); r++) {                                                                           \
        OMNIC_UNROLL                                                                                               \
        for (int j = 0; j < (WIDE); j++)                                                                           \
          sum[r][j] = v16_mul(v16_load(y + r * width + 16 * j), v16_set(fade[row + r]));                           \
      }                                                                                                            \
      const float *v = values->at + from * values->stride + i, *w = weights + row * row_step + from * token_step;  \
      int64_t ahead = values->next && row == 0 ? values->next - values->at : 0;                                    \
      for (int64_t t = from; t < to; t++, v += values->stride, w += token_step) {                                  \
        if (ahead) omnic_foretell(v + ahead, WIDE);                                                                \
        OMNIC_UNROLL                                                                                               \
        for (int r = 0; r < (ROWS); r++) {                                                                         \
          v16 weight = v16_set(w[r * row_step]);                                                                   \
          OMNIC_UNROLL                                                                                             \
          for (int j = 0; j < (WIDE); j++) sum[r][j] = v16_fma(weight, v16_load(v + 16 * j), sum[r][j]);           \
        }                                                                                                          \
      }                                                                                                            \
      OMNIC_UNROLL                                                                                                 \
      for (int r = 0; r < (ROWS); r++) {                                                                           \
        OMNIC_UNROLL                                                                                               \
        for (int j = 0; j < (WIDE); j++) v16_store(y + r * width + 16 * j, sum[r][j]);                             \
      }                                                                                                            \
    }

/* Queries in fours (their rows are filled up), or one, or two; the weight of query r and token t is
 * weights[r * row_step + t * token_step].  Slices of the values stay in the first cache for all queries. */
OMNIC_INLINE void omnic_mix(const float *weights, int64_t row_step, int64_t token_step, const omnic_tokens *values,
                            int64_t from, int64_t to, const float *fade, float *mixed, int64_t width, int64_t rows) {
  int64_t i = 0;
  if (rows == 1) {
    OMNIC_MIX(1, 4)
    OMNIC_MIX(1, 1)
  } else if (rows == 2) {
    OMNIC_MIX(2, 2)
    OMNIC_MIX(2, 1)
  } else {
#if defined(OMNIC_HAS_AVX512)
    OMNIC_MIX(4, 4)
#endif
    OMNIC_MIX(4, 1)
  }
}
