/* Whole-number products: codes of weights times codes of 8 bits.  A block is R rows by P panels; its sums live in
 * registers, one chain for each output, so that no result depends on the rows or panels beside it.
 *
 * k is cut into segments, the finer of the weight's and the activations' groups; a segment's sum is exact, in 32 bits,
 * and joins the chain as the header says.  Small codes (4 and 2 bits) are summed 32 at a time, so that AVX2 can keep
 * them in 16 bits.
 *
 * A join is one operation whatever the types are: chain = fma(step * sum, scale * sx, chain), where the step of f32, f16
 * and bf16 scales is 1, the scale of steps is 1, and so is sx where x has one scale for its row: what is not there is an
 * exact 1.  Only steps with one scale of x for the row are summed as whole numbers.
 */

enum { CODES_4 = 0, CODES_2 = 1, CODES_OPEN = 2, CODES_8 = 3 }; /* OPEN: small codes unpacked, one in a byte */

#if !defined(COLS_PAIRED)
/* Unpacked codes lie as the packed ones do, and are multiplied four at a time. */
#define COLS_PAIRED 0
OMNIC_INLINE void cols_pair_store(uint8_t *eight, int v, cols_i first, cols_i second) {
  cols_store(eight + v * COLS * 4, first);
  cols_store(eight + 64 + v * COLS * 4, second);
}
OMNIC_INLINE void cols_paired_step(cols_i (*acc)[CODE_PANELS][COL_VECTORS], const uint8_t *lines, const int8_t *const *x,
                                   int64_t at) {
  (void)acc, (void)lines, (void)x, (void)at;
}
#endif

#define EXACT_NUMBERS 65536              /* rows up to here fit 32 bits whatever their codes are */

typedef struct {
  const omnic_tile *t;
  int64_t segment, segments;             /* numbers, and how many of them */
  int64_t per_weight, per_x;             /* segments of a weight's group, of an activation's */
  int per_row, stepped, zero;
} code_job;

/* What of the weights a block reads: packed panels, or numbers from segment g0 on that were unpacked. */
typedef struct {
  const uint8_t *codes;
  int64_t panel, apart;                  /* the first panel, and how far behind it the others of the block lie */
  int64_t g0, g1;                        /* segments to do */
  int64_t ahead;                         /* bytes to fetch ahead */
} code_part;

/* Four small codes of every column, numbers 4 i .. 4 i + 3 of the 32 numbers that start at `lines`. */
OMNIC_INLINE cols_i small_codes(const int kind, const uint8_t *lines, int i, int v) {
  if (kind == CODES_OPEN) return cols_load(lines + i * 64 + v * COLS * 4);
  if (kind == CODES_4) {
    cols_i line = cols_load(lines + i / 2 * 64 + v * COLS * 4);
    return i % 2 ? cols_high(line) : cols_low(line);
  }
  return cols_pair(cols_load(lines + i / 4 * 64 + v * COLS * 4), i % 4);
}

/* The steps and scales of one group of a panel, of whatever type. */
typedef struct {
  cols_i step[COL_VECTORS];
  cols_f scale[COL_VECTORS];
} code_scales;

OMNIC_STATIC OMNIC_ONCE void any_scales(const code_job *job, int64_t panel, int64_t group, code_scales *out) {
  const omnic_weight *w = job->t->w;
  int64_t at = panel * job->t->shape.groups + group;
  for (int v = 0; v < COL_VECTORS; v++) {
    out->step[v] = cols_step_one();
    out->scale[v] = cols_number(1.0f);
    if (job->stepped)
      out->step[v] = cols_steps((const uint8_t *)w->scales + at * 8, v);
    else
      out->scale[v] = cols_plain(w->scales, w->scale_type, at * 16, v);
  }
}

OMNIC_INLINE void scales_of(const code_job *job, int64_t panel, int64_t group, code_scales *out) {
  const omnic_weight *w = job->t->w;
  int64_t at = panel * job->t->shape.groups + group;
  if (job->stepped) {
    OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) out->step[v] = cols_steps((const uint8_t *)w->scales + at * 8, v);
    OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) out->scale[v] = cols_number(1.0f);
  } else if (w->scale_type == OMNIC_F16) {
    OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) out->step[v] = cols_step_one();
    OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) out->scale[v] = cols_plain(w->scales, OMNIC_F16, at * 16, v);
  } else {
    any_scales(job, panel, group, out);
  }
}

/* Step times sum of numbers from .. to - 1 of a segment. */
OMNIC_INLINE void sum_small(const int kind, const int R, const int P, const code_job *job, const code_part *part,
                            const int8_t *const *x, const int16_t *const *sums, int64_t from, int64_t to,
                            int64_t group, const code_scales *scales, cols_i (*sum)[CODE_PANELS][COL_VECTORS]) {
  const omnic_weight *w = job->t->w;
  const int line_bytes = kind == CODES_4 ? 256 : kind == CODES_2 ? 128 : 512;
  const int64_t apart = part->apart * job->t->shape.panel_bytes;
  const uint8_t *lines = part->codes + (kind == CODES_OPEN ? from - part->g0 * job->segment : from) / 32 * line_bytes;
  OMNIC_UNROLL for (int r = 0; r < R; r++) OMNIC_UNROLL for (int p = 0; p < P; p++)
      OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) sum[r][p][v] = cols_zero();
  do {
    cols_i acc[CODE_ROWS][CODE_PANELS][COL_VECTORS];
    if (w->zeros) {
      OMNIC_UNROLL for (int p = 0; p < P; p++) OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) {
        int64_t at = (part->panel + p * part->apart) * job->t->shape.groups + group;
        cols_i zero = cols_zeros(w->zeros + at * 16, v);
        OMNIC_UNROLL for (int r = 0; r < R; r++) acc[r][p][v] = cols_start(sums[r] + from / 16, zero);
      }
    } else {
      OMNIC_UNROLL for (int r = 0; r < R; r++) {
        cols_i start = cols_start(sums[r] + from / 16, cols_zeros_of(job->zero));
        OMNIC_UNROLL for (int p = 0; p < P; p++) OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) acc[r][p][v] = start;
      }
    }
    if (COLS_PAIRED && kind == CODES_OPEN) cols_paired_step(acc, lines, x, from);
    OMNIC_UNROLL for (int i = 0; i < (COLS_PAIRED && kind == CODES_OPEN ? 0 : 8); i++) {
      cols_i codes[CODE_PANELS][COL_VECTORS];
      OMNIC_UNROLL for (int p = 0; p < P; p++) {
        const uint8_t *line = lines + p * apart;
        if (kind != CODES_OPEN && R == 1 && i * line_bytes % 512 == 0)
          __builtin_prefetch(line + i * line_bytes / 8 + part->ahead);
        OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) codes[p][v] = small_codes(kind, line, i, v);
      }
      OMNIC_UNROLL for (int r = 0; r < R; r++) {
        cols_i four = cols_spread(x[r] + from + i * 4);
        OMNIC_UNROLL for (int p = 0; p < P; p++) OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++)
            acc[r][p][v] = cols_step(acc[r][p][v], codes[p][v], four);
      }
    }
    OMNIC_UNROLL for (int r = 0; r < R; r++) OMNIC_UNROLL for (int p = 0; p < P; p++)
        OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++)
          sum[r][p][v] = cols_add(sum[r][p][v], cols_stepped(acc[r][p][v], scales[p].step[v]));
    lines += line_bytes;
  } while ((from += 32) < to);
}

/* The same of codes of 8 bits. */
OMNIC_INLINE void sum_bytes(const int R, const int P, const code_job *job, const code_part *part, const int8_t *const *x,
                            const int16_t *const *sums, int64_t from, int64_t to, int64_t group,
                            const code_scales *scales, cols_i (*sum)[CODE_PANELS][COL_VECTORS]) {
  const omnic_weight *w = job->t->w;
  const int64_t apart = part->apart * job->t->shape.panel_bytes;
  OMNIC_UNROLL for (int r = 0; r < R; r++) OMNIC_UNROLL for (int p = 0; p < P; p++)
      OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) sum[r][p][v] = cols_zero();
  for (int64_t i = from / 4; i * 4 < to; i++) {
    cols_i codes[CODE_PANELS][COL_VECTORS];
    OMNIC_UNROLL for (int p = 0; p < P; p++) {
      const uint8_t *line = part->codes + p * apart + i * 64;
      if (R == 1) __builtin_prefetch(line + part->ahead);
      OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) codes[p][v] = cols_byte(cols_load(line + v * COLS * 4));
    }
    OMNIC_UNROLL for (int r = 0; r < R; r++) {
      cols_i four = cols_spread(x[r] + i * 4);
      OMNIC_UNROLL for (int p = 0; p < P; p++) OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++)
          sum[r][p][v] = cols_byte_step(sum[r][p][v], codes[p][v], four);
    }
  }
  if (w->zeros || COLS_BYTE_ZERO) {
    for (int r = 0; r < R; r++) {
      int32_t minus = 0;
      for (int64_t s = from / 32; s * 32 < to; s++) minus += sums[r][2 * s] + sums[r][2 * s + 1];
      for (int p = 0; p < P; p++)
        for (int v = 0; v < COL_VECTORS; v++) {
          cols_i zero = cols_whole(COLS_BYTE_ZERO);
          int64_t at = (part->panel + p * part->apart) * job->t->shape.groups + group;
          if (w->zeros) zero = cols_byte_zeros(w->zeros + at * 16, v);
          sum[r][p][v] = cols_add(sum[r][p][v], cols_mul(cols_whole(minus), zero));
        }
    }
  }
  if (!job->stepped) return;
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++)
      for (int v = 0; v < COL_VECTORS; v++) sum[r][p][v] = cols_mul(sum[r][p][v], cols_whole_step(scales[p].step[v]));
}

static const float exact_one[1] = {1.0f};

/* Segments g0 .. g1 - 1 of some rows join their chains [rows][panels][16], which the first segment finds 0. */
OMNIC_INLINE void code_block(const int kind, const int R, const int P, const code_job *job, const code_part *part,
                             int64_t row, int64_t rows, float *chains) {
  const omnic_rows *given = job->t->rows;
  const int whole = job->stepped && job->per_row;
  const int8_t *x[CODE_ROWS];
  const int16_t *sums[CODE_ROWS];
  const float *sx[CODE_ROWS];
  cols_f acc[CODE_ROWS][CODE_PANELS][COL_VECTORS];
  code_scales scales[CODE_PANELS];
  OMNIC_UNROLL for (int r = 0; r < R; r++) { /* a block that is not full computes its last row again */
    int64_t i = job->t->first + row + (r < rows ? r : rows - 1);
    x[r] = given->codes + i * given->stride;
    sums[r] = given->sums + i * (given->stride / 16);
    sx[r] = job->per_row ? exact_one : given->scales + i * given->groups;
    OMNIC_UNROLL for (int p = 0; p < P; p++) OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++)
        acc[r][p][v] = cols_get(chains + (r * P + p) * 16 + v * COLS);
  }
  int64_t group = part->g0 / job->per_weight, gx = part->g0 / job->per_x;
  int64_t of_group = part->g0 % job->per_weight, of_x = part->g0 % job->per_x;
  for (int64_t g = part->g0; g < part->g1; g++) {
    cols_i sum[CODE_ROWS][CODE_PANELS][COL_VECTORS];
    int64_t from = g * job->segment, to = from + job->segment < given->k ? from + job->segment : given->k;
    if (of_group == 0 || g == part->g0)
      OMNIC_UNROLL for (int p = 0; p < P; p++) scales_of(job, part->panel + p * part->apart, group, scales + p);
    if (kind == CODES_8)
      sum_bytes(R, P, job, part, x, sums, from, to, group, scales, sum);
    else
      sum_small(kind, R, P, job, part, x, sums, from, to, group, scales, sum);
    if (whole) {
      OMNIC_UNROLL for (int r = 0; r < R; r++) OMNIC_UNROLL for (int p = 0; p < P; p++)
          OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++)
            acc[r][p][v] = cols_of_bits(cols_add(cols_bits(acc[r][p][v]), sum[r][p][v]));
    } else {
      OMNIC_UNROLL for (int r = 0; r < R; r++) {
        cols_f one = cols_number(sx[r][job->per_row ? 0 : gx]);
        OMNIC_UNROLL for (int p = 0; p < P; p++) OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++)
            acc[r][p][v] = cols_fma(cols_to_f(sum[r][p][v]), cols_times(scales[p].scale[v], one), acc[r][p][v]);
      }
    }
    if (++of_group == job->per_weight) of_group = 0, group++;
    if (++of_x == job->per_x) of_x = 0, gx++;
  }
  OMNIC_UNROLL for (int r = 0; r < R; r++) OMNIC_UNROLL for (int p = 0; p < P; p++)
      OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) cols_put(chains + (r * P + p) * 16 + v * COLS, acc[r][p][v]);
}

/* Write 16 sums, as write_columns does. */
OMNIC_INLINE void write_vectors(const omnic_tile *t, int64_t i, int64_t panel, cols_f *sums) {
  int64_t columns = panel_columns(t, panel), from = (panel - t->panel) * 16;
  if (columns < 16) {
    float out[16];
    for (int v = 0; v < COL_VECTORS; v++) cols_put(out + v * COLS, sums[v]);
    write_columns(t, i, panel, out, columns);
    return;
  }
  float *y = tile_row(t, i) + from;
  OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) {
    cols_f value = sums[v];
    if (t->bias) value = cols_plus(value, cols_get(t->bias + panel * 16 + v * COLS));
    if (t->residual) value = cols_plus(cols_get(t->residual + i * t->ldr + from + v * COLS), value);
    cols_put(y + v * COLS, value);
  }
}

/* The end of the chains of rows i .. i + rows - 1 of a panel: what is common to a row or a column, bias, residual; then
 * memory. */
OMNIC_STATIC OMNIC_ONCE void write_chains(const code_job *job, int64_t panel, int64_t i, int64_t rows,
                                          const float *chains) {
  const omnic_tile *t = job->t;
  float row[16];
  OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) cols_put(row + v * COLS, cols_number(1.0f));
  if (job->stepped) memcpy(row, t->w->row + panel * 16, (size_t)panel_columns(t, panel) * 4);
  for (int64_t end = i + rows; i < end; i++, chains += 16) {
    cols_f sums[COL_VECTORS], s = cols_number(job->per_row ? t->rows->scales[(t->first + i) * t->rows->groups] : 1.0f);
    OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) {
      cols_f chain = cols_get(chains + v * COLS);
      if (job->stepped && job->per_row) chain = cols_to_f(cols_bits(chain));
      sums[v] = cols_times(chain, cols_times(cols_get(row + v * COLS), s));
    }
    write_vectors(t, i, panel, sums);
  }
}

#define CODE_BLOCK(name, kind, R, P)                                                                              \
  OMNIC_STATIC void name(const code_job *job, const code_part *part, int64_t row, int64_t rows, float *chains) {  \
    code_block(kind, R, P, job, part, row, rows, chains);                                                         \
  }
#define CODE_BLOCKS(name, kind)       \
  CODE_BLOCK(name##_one, kind, 1, 1)  \
  CODE_BLOCK(name##_pair, kind, 1, 2) \
  CODE_BLOCK(name##_many, kind, CODE_ROWS, 1)
CODE_BLOCKS(codes4, CODES_4)
CODE_BLOCKS(codes2, CODES_2)
CODE_BLOCKS(codes8, CODES_8)
CODE_BLOCK(open_many, CODES_OPEN, CODE_ROWS, 1)

#include "groups.h"

typedef void (*code_function)(const code_job *, const code_part *, int64_t row, int64_t rows, float *chains);
typedef struct {
  code_function one, pair, four;  /* panels of one row */
  code_function two, many, open;  /* rows of one panel */
} code_functions;

/* Unpack numbers k .. k + count - 1 of a panel, one code in a byte. */
OMNIC_STATIC void open_codes(int32_t type, const uint8_t *panel, int64_t k, int64_t count, uint8_t *open) {
  int64_t bytes = type == OMNIC_I4 ? 256 : 128;
  for (int64_t s = k / 32; s * 32 < k + count; s++, open += 512)
    for (int i = 0; i < 8; i += 2)
      for (int v = 0; v < COL_VECTORS; v++) {
        const uint8_t *lines = panel + s * bytes;
        cols_i first = type == OMNIC_I4 ? small_codes(CODES_4, lines, i, v) : small_codes(CODES_2, lines, i, v);
        cols_i second = type == OMNIC_I4 ? small_codes(CODES_4, lines, i + 1, v) : small_codes(CODES_2, lines, i + 1, v);
        cols_pair_store(open + i * 64, v, first, second);
      }
}

/* Many rows: unpack part of a panel once, let all rows pass over it. */
OMNIC_STATIC void code_tile_open(const code_job *job, code_function run) {
  const omnic_tile *t = job->t;
  _Alignas(64) uint8_t open[BLOCK_MOST * 16];
  _Alignas(64) float chains[(CHUNK_MOST + CODE_ROWS) * 16];
  int64_t step = t->way->k_block > job->segment ? t->way->k_block / job->segment : 1;
  for (int64_t panel = t->panel; panel < t->panel + t->panels; panel++) {
    const uint8_t *codes = (const uint8_t *)t->w->codes + panel * t->shape.panel_bytes;
    memset(chains, 0, (size_t)(t->count + CODE_ROWS) * 64);
    for (int64_t g = 0; g < job->segments; g += step) {
      int64_t g1 = g + step < job->segments ? g + step : job->segments;
      int64_t from = g * job->segment, to = g1 * job->segment < t->w->k ? g1 * job->segment : t->w->k;
      open_codes(t->w->type, codes, from, to - from, open);
      code_part part = {.codes = open, .panel = panel, .g0 = g, .g1 = g1};
      for (int64_t row = 0; row < t->count; row += CODE_ROWS)
        run(job, &part, row, t->count - row < CODE_ROWS ? t->count - row : CODE_ROWS, chains + row * 16);
    }
    write_chains(job, panel, 0, t->count, chains);
  }
}

/* One row: `wide` panels at a time, each from a run of its own, so that what is fetched ahead is always needed. */
OMNIC_STATIC void code_tile_row(const code_job *job, const code_functions *run) {
  const omnic_tile *t = job->t;
  _Alignas(64) float chains[CODE_PANELS * 16];
  int64_t wide = t->way->panels == 4 && !run->four ? 2 : t->way->panels, done = 0;
  for (; wide; wide /= 2) {
    int64_t apart = (t->panels - done) / wide;
    for (int64_t i = 0; i < apart; i++) {
      code_part part = {.panel = t->panel + done + i, .apart = apart, .g1 = job->segments, .ahead = t->way->prefetch};
      part.codes = (const uint8_t *)t->w->codes + part.panel * t->shape.panel_bytes;
      memset(chains, 0, sizeof chains);
      (wide == 4 ? run->four : wide == 2 ? run->pair : run->one)(job, &part, 0, 1, chains);
      for (int64_t p = 0; p < wide; p++) write_chains(job, part.panel + p * apart, 0, 1, chains + p * 16);
    }
    done += apart * wide;
  }
}

/* Whether the kernels of this file can do a product. */
OMNIC_INLINE int codes_fit(const omnic_tile *t) {
  const omnic_rows *rows = t->rows;
  int64_t group = t->shape.group, block = rows->act == OMNIC_ACT_I8_ROW || rows->groups == 1 ? group : rows->group;
  return t->w->k <= EXACT_NUMBERS && group % 32 == 0 && block % 32 == 0 && (group % block == 0 || block % group == 0);
}

/* How the segments of a product that fits lie. */
OMNIC_INLINE code_job code_job_of(const omnic_tile *t) {
  const omnic_weight *w = t->w;
  int64_t group = t->shape.group;
  int whole = t->rows->act == OMNIC_ACT_I8_ROW || t->rows->groups == 1;
  int64_t block = whole ? group * t->shape.groups : t->rows->group;
  code_job job = {.t = t, .segment = group < block ? group : block, .per_row = t->rows->act == OMNIC_ACT_I8_ROW,
                  .stepped = w->scale_type == OMNIC_S4, .zero = w->type == OMNIC_I4 ? 8 : 2};
  job.segments = (w->k + job.segment - 1) / job.segment;
  job.per_weight = group / job.segment;
  job.per_x = whole ? job.segments : block / job.segment;
  return job;
}

OMNIC_STATIC void code_tile(const omnic_tile *t) {
  static const code_functions of_steps = {steps_one, steps_pair, steps_four, steps_two, steps_many, steps_open},
                              of_wholes = {wholes_one, wholes_pair, NULL, NULL, wholes_many, wholes_open},
                              of_halves = {halves_one, halves_pair, halves_four, halves_two, halves_many, halves_open},
                              of_type[3] = {{codes8_one, codes8_pair, NULL, NULL, codes8_many, NULL},
                                            {codes4_one, codes4_pair, NULL, NULL, codes4_many, open_many},
                                            {codes2_one, codes2_pair, NULL, NULL, codes2_many, open_many}};
  if (!codes_fit(t)) {
    oracle_tile(t);
    return;
  }
  const omnic_weight *w = t->w;
  code_job job = code_job_of(t);
  const code_functions *run = of_type + (w->type - OMNIC_I8);
  if (w->type == OMNIC_I4 && t->shape.group == 32 && job.segment == 32 && !w->zeros) {
    if (job.stepped && job.per_row) run = &of_wholes;
    if (job.stepped && !job.per_row && job.per_x == 1) run = &of_steps;
    if (w->scale_type == OMNIC_F16 && (job.per_row || job.per_x == 1)) run = &of_halves;
  }
  if (t->count == 1) {
    code_tile_row(&job, run);
    return;
  }
  if (run->open && t->count > 2 * CODE_ROWS && job.segment <= BLOCK_MOST) {
    code_tile_open(&job, run->open);
    return;
  }
  _Alignas(64) float chains[CODE_ROWS * 16];
  for (int64_t panel = t->panel; panel < t->panel + t->panels; panel++) {
    code_part part = {.panel = panel, .g1 = job.segments};
    part.codes = (const uint8_t *)w->codes + panel * t->shape.panel_bytes;
    for (int64_t row = 0; row < t->count;) {
      int64_t left = t->count - row, rows = left < CODE_ROWS ? left : CODE_ROWS;
      memset(chains, 0, sizeof chains);
      (left == 1 ? run->one : left == 2 && run->two ? run->two : run->many)(&job, &part, row, rows, chains);
      write_chains(&job, panel, row, rows, chains);
      row += rows;
    }
  }
}
