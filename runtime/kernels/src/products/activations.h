/* What a product makes of its activations before it starts: codes of 8 bits with their scales, bf16, or other f32. */

enum { AS_VALUES = 1, AS_CODES = 2, AS_BF16 = 4 };

typedef struct {
  int64_t m, k;
  int32_t act;
  int64_t group, groups;   /* numbers that share a scale of codes, and how many scales a row has */
  const float *x;          /* rows as given: row i at x + i ldx, or x + offsets[i] */
  int64_t ldx;
  const int64_t *offsets;
  const float *values;     /* what a float product reads; x itself, or rows of k rounded as `act` says */
  int64_t ldv;
  const int64_t *value_offsets;
  int64_t stride;          /* codes and bf16 numbers of a row: k rounded up to 64 with zeros, and a line more, so that
                              the rows of a block do not fall into one set of the cache */
  int8_t *codes;           /* [m][stride] */
  float *scales;           /* [m][groups] */
  int16_t *sums;           /* [m][stride / 32][2]: of 32 codes, minus the sums of those with k mod 4 < 2, and the rest */
  uint16_t *bf16;          /* [m][stride] */
} omnic_rows;

OMNIC_INLINE int64_t row_stride(int64_t k) { return product_round_up(k, 64) + 64; }

OMNIC_INLINE const float *given_row(const omnic_rows *rows, int64_t i) {
  return rows->x + (rows->offsets ? rows->offsets[i] : i * rows->ldx);
}
OMNIC_INLINE const float *value_row(const omnic_rows *rows, int64_t i) {
  return rows->values + (rows->value_offsets ? rows->value_offsets[i] : i * rows->ldv);
}

/* The step of symmetric codes: max|x| / 127, or 1.  The largest magnitude is found on the bits, whose order is that of
 * the magnitudes, so that compilers may do it in any order. */
OMNIC_INLINE float code_step(const float *x, int64_t count) {
  int32_t most = 0;
  for (int64_t i = 0; i < count; i++) {
    int32_t bits;
    memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  float peak;
  memcpy(&peak, &most, sizeof peak);
  float step = peak / 127.0f;
  return step > 0.0f ? step : 1.0f;
}

OMNIC_STATIC OMNIC_ONCE float any_code_step(const float *x, int64_t count) { return code_step(x, count); }

/* round_half_even(x / step), by the float whose unit is 1; clamped, since a denormal step rounds coarsely. */
OMNIC_INLINE float code_of(float x, float step) {
  float units = x / step;
  units = units < 127.0f ? units : 127.0f;
  units = units > -127.0f ? units : -127.0f;
  return (units + 12582912.0f) - 12582912.0f;
}

OMNIC_INLINE void codes_of(const float *x, int64_t count, float step, int8_t *codes) {
  for (int64_t i = 0; i < count; i++) codes[i] = (int8_t)(int32_t)code_of(x[i], step);
}

/* 32 codes at a time with a count known to the compiler: most groups are a multiple of it. */
OMNIC_STATIC void encode_group(const float *x, int64_t count, int8_t *codes, float *scale) {
  if (count == 32) {
    *scale = code_step(x, 32);
    codes_of(x, 32, *scale, codes);
    return;
  }
  *scale = any_code_step(x, count);
  int64_t whole = count / 32 * 32;
  for (int64_t i = 0; i < whole; i += 32) codes_of(x + i, 32, *scale, codes + i);
  for (int64_t i = whole; i < count; i++) codes[i] = (int8_t)(int32_t)code_of(x[i], *scale);
}

/* Four codes at a time, as two numbers of 16 bits: codes + 128 have no sign. */
OMNIC_STATIC void sum_codes(const int8_t *codes, int64_t blocks, int16_t *sums) {
  for (int64_t b = 0; b < blocks; b++) {
    uint32_t four[8], total = 0;
    memcpy(four, codes + b * 32, 32);
    for (int i = 0; i < 8; i++) {
      uint32_t plus = four[i] ^ 0x80808080u;
      total += (plus & 0x00ff00ffu) + (plus >> 8 & 0x00ff00ffu);
    }
    sums[2 * b] = (int16_t)(16 * 128 - (int32_t)(total & 0xffff));
    sums[2 * b + 1] = (int16_t)(16 * 128 - (int32_t)(total >> 16));
  }
}

/* Fill row i of what `kinds` names. */
OMNIC_STATIC void prepare_row(const omnic_rows *rows, int32_t kinds, int64_t i) {
  const float *x = given_row(rows, i);
  int64_t k = rows->k, stride = rows->stride;
  if (kinds & AS_CODES) {
    int8_t *codes = rows->codes + i * stride;
    for (int64_t g = 0; g < rows->groups; g++) {
      int64_t from = g * rows->group, count = k - from < rows->group ? k - from : rows->group;
      encode_group(x + from, count, codes + from, rows->scales + i * rows->groups + g);
    }
    memset(codes + k, 0, (size_t)(stride - k));
    sum_codes(codes, stride / 32, rows->sums + i * (stride / 16));
  }
  if (kinds & AS_BF16) {
    uint16_t *out = rows->bf16 + i * stride;
    for (int64_t j = 0; j < k; j++) out[j] = omnic_to_bfloat(x[j]);
    memset(out + k, 0, (size_t)(stride - k) * 2);
  }
  if ((kinds & AS_VALUES) && rows->act != OMNIC_ACT_F32) {
    float *out = (float *)rows->values + i * rows->ldv;
    if (rows->act == OMNIC_ACT_BF16) {
      for (int64_t j = 0; j < k; j++) out[j] = omnic_bfloat(omnic_to_bfloat(x[j]));
      return;
    }
    for (int64_t g = 0; g < rows->groups; g++) {
      int64_t from = g * rows->group, to = k - from < rows->group ? k : from + rows->group;
      float step = any_code_step(x + from, to - from);
      for (int64_t j = from; j < to; j++) out[j] = code_of(x[j], step) * step;
    }
  }
}

typedef struct {
  const omnic_rows *rows;
  int32_t kinds;
  int64_t per;
} omnic_prepare_job;

OMNIC_STATIC void prepare_task(void *arg, int64_t task) {
  const omnic_prepare_job *job = arg;
  int64_t end = (task + 1) * job->per < job->rows->m ? (task + 1) * job->per : job->rows->m;
  for (int64_t i = task * job->per; i < end; i++) prepare_row(job->rows, job->kinds, i);
}

/* Bytes of memory that come one after another, each start on a line. */
typedef struct {
  char *at;
} omnic_arena;

OMNIC_INLINE void *take(omnic_arena *arena, int64_t bytes) {
  void *start = arena->at;
  arena->at += product_round_up(bytes, 64);
  return start;
}

/* Describe m rows, take their memory from the arena, and fill them on the pool. */
OMNIC_STATIC omnic_rows prepare(omnic_pool *pool, const omnic_tuning *way, omnic_arena *arena, int32_t kinds,
                                const float *x, int64_t m, int64_t ldx, const int64_t *offsets, int64_t k, int32_t act,
                                int64_t act_group) {
  int64_t group = act == OMNIC_ACT_I8_GROUP && act_group < k ? act_group : k;
  int64_t stride = row_stride(k);
  omnic_rows rows = {.m = m, .k = k, .act = act, .group = group, .groups = (k + group - 1) / group,
                     .x = x, .ldx = ldx, .offsets = offsets, .stride = stride,
                     .values = x, .ldv = ldx, .value_offsets = offsets};
  if (kinds & AS_CODES) {
    rows.codes = take(arena, m * stride);
    rows.scales = take(arena, m * rows.groups * 4);
    rows.sums = take(arena, m * stride / 8);
  }
  if (kinds & AS_BF16) rows.bf16 = take(arena, m * stride * 2);
  if ((kinds & AS_VALUES) && act != OMNIC_ACT_F32) {
    rows.values = take(arena, m * k * 4);
    rows.ldv = k;
    rows.value_offsets = NULL;
  }
  if (!(kinds & (AS_CODES | AS_BF16)) && act == OMNIC_ACT_F32) return rows;
  omnic_prepare_job job = {&rows, kinds, 8};
  run_tasks(m > 8 ? pool : NULL, way, prepare_task, &job, (m + 7) / 8);
  return rows;
}
