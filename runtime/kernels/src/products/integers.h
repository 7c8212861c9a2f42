/* Whole-number products: codes of weights times codes of 8 bits.  A block is R rows by P panels; its sums live in
 * registers, one chain for each output, so that no result depends on the rows or panels beside it.
 *
 * k is cut into segments, the finer of the weight's and the activations' groups; a segment's sum is exact, in 32 bits,
 * and joins the chain as the header says.  Small codes (4 and 2 bits) are summed 32 at a time, so that AVX2 can keep
 * them in 16 bits.
 */

enum { CODES_4 = 0, CODES_2 = 1, CODES_OPEN = 2, CODES_8 = 3 }; /* OPEN: small codes unpacked, one in a byte */

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
  int64_t panel_bytes;
  int64_t g0, g1;                        /* segments to do */
  int64_t ahead;                         /* bytes to fetch ahead */
  float *between;                        /* chains [rows][16] where not all segments are done at once, else NULL */
} code_part;

/* Four small codes of every column, numbers 4 i .. 4 i + 3 of the segment of 32 numbers that starts at `lines`. */
OMNIC_INLINE cols_i small_codes(const int kind, const uint8_t *lines, int i, int v) {
  if (kind == CODES_OPEN) return cols_load(lines + i * 64 + v * COLS * 4);
  if (kind == CODES_4) {
    cols_i line = cols_load(lines + i / 2 * 64 + v * COLS * 4);
    return i % 2 ? cols_high(line) : cols_low(line);
  }
  return cols_pair(cols_load(lines + i / 4 * 64 + v * COLS * 4), i % 4);
}

OMNIC_INLINE void segment_of_small(const int kind, const int R, const int P, const code_job *job, const code_part *part,
                                   int64_t panel, const int8_t *const *x, const int16_t *const *sums, int64_t from,
                                   int64_t to, int64_t group, const int single, cols_i (*sum)[CODE_PANELS][COL_VECTORS]) {
  const omnic_weight *w = job->t->w;
  const int line_bytes = kind == CODES_4 ? 256 : kind == CODES_2 ? 128 : 512;
  int64_t origin = kind == CODES_OPEN ? part->g0 * job->segment / 32 : 0;
  if (!single) {
    for (int r = 0; r < R; r++)
      for (int p = 0; p < P; p++)
        for (int v = 0; v < COL_VECTORS; v++) sum[r][p][v] = cols_zero();
  }
  int64_t s = from / 32;
  do {
    cols_i acc[CODE_ROWS][CODE_PANELS][COL_VECTORS];
    if (w->zeros) {
      OMNIC_UNROLL for (int p = 0; p < P; p++) {
        const uint8_t *zeros = w->zeros + ((panel + p) * job->t->shape.groups + group) * 16;
        OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) {
          cols_i z = cols_zeros(zeros, v);
          OMNIC_UNROLL for (int r = 0; r < R; r++) acc[r][p][v] = cols_start(sums[r] + 2 * s, z);
        }
      }
    } else {
      cols_i z = cols_zeros_of(job->zero);
      OMNIC_UNROLL for (int r = 0; r < R; r++) {
        cols_i start = cols_start(sums[r] + 2 * s, z);
        OMNIC_UNROLL for (int p = 0; p < P; p++) OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) acc[r][p][v] = start;
      }
    }
    const uint8_t *lines = part->codes + (s - origin) * line_bytes;
    OMNIC_UNROLL for (int i = 0; i < 8; i++) {
      cols_i codes[CODE_PANELS][COL_VECTORS];
      OMNIC_UNROLL for (int p = 0; p < P; p++) {
        if (kind != CODES_OPEN && R < CODE_ROWS && i * line_bytes % 512 == 0)
          __builtin_prefetch(lines + p * part->panel_bytes + i * line_bytes / 8 + part->ahead);
        OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++)
          codes[p][v] = small_codes(kind, lines + p * part->panel_bytes, i, v);
      }
      OMNIC_UNROLL for (int r = 0; r < R; r++) {
        cols_i four = cols_spread(x[r] + s * 32 + i * 4);
        OMNIC_UNROLL for (int p = 0; p < P; p++)
            OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) acc[r][p][v] = cols_step(acc[r][p][v], codes[p][v], four);
      }
    }
    OMNIC_UNROLL for (int r = 0; r < R; r++) OMNIC_UNROLL for (int p = 0; p < P; p++)
        OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++)
            sum[r][p][v] = single ? cols_end(acc[r][p][v]) : cols_add(sum[r][p][v], cols_end(acc[r][p][v]));
  } while (!single && ++s * 32 < to);
}

OMNIC_INLINE void segment_of_bytes(const int R, const int P, const code_job *job, const code_part *part, int64_t panel,
                                   const int8_t *const *x, const int16_t *const *sums, int64_t from, int64_t to,
                                   int64_t group, cols_i (*sum)[CODE_PANELS][COL_VECTORS]) {
  const omnic_weight *w = job->t->w;
  OMNIC_UNROLL for (int r = 0; r < R; r++) OMNIC_UNROLL for (int p = 0; p < P; p++)
      OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) sum[r][p][v] = cols_zero();
  for (int64_t i = from / 4; i * 4 < to; i++) {
    cols_i codes[CODE_PANELS][COL_VECTORS];
    OMNIC_UNROLL for (int p = 0; p < P; p++) {
      const uint8_t *line = part->codes + p * part->panel_bytes + i * 64;
      if (R < CODE_ROWS) __builtin_prefetch(line + part->ahead);
      OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) codes[p][v] = cols_byte(cols_load(line + v * COLS * 4));
    }
    OMNIC_UNROLL for (int r = 0; r < R; r++) {
      cols_i four = cols_spread(x[r] + i * 4);
      OMNIC_UNROLL for (int p = 0; p < P; p++)
          OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) sum[r][p][v] = cols_byte_step(sum[r][p][v], codes[p][v], four);
    }
  }
  if (!w->zeros && !COLS_BYTE_ZERO) return;
  for (int r = 0; r < R; r++) {
    int32_t minus = 0;
    for (int64_t s = from / 32; s * 32 < to; s++) minus += sums[r][2 * s] + sums[r][2 * s + 1];
    cols_i spread = cols_whole(minus);
    for (int p = 0; p < P; p++)
      for (int v = 0; v < COL_VECTORS; v++) {
        const uint8_t *zeros = w->zeros + ((panel + p) * job->t->shape.groups + group) * 16;
        cols_i z = w->zeros ? cols_byte_zeros(zeros, v) : cols_whole(COLS_BYTE_ZERO);
        sum[r][p][v] = cols_add(sum[r][p][v], cols_mul(spread, z));
      }
  }
}

/* One more segment joins the chains: of group `group` of the weights, `gx` of the activations. */
OMNIC_INLINE void join_segment(const int R, const int P, const code_job *job, int64_t panel, int64_t group,
                               int64_t gx, const float *const *sx, cols_i (*sum)[CODE_PANELS][COL_VECTORS],
                               cols_f (*acc)[CODE_PANELS][COL_VECTORS]) {
  const omnic_weight *w = job->t->w;
  OMNIC_UNROLL for (int p = 0; p < P; p++) {
    int64_t at = (panel + p) * job->t->shape.groups + group;
    OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) {
      if (job->stepped) {
        cols_i steps = cols_steps((const uint8_t *)w->scales + at * 8, v);
        OMNIC_UNROLL for (int r = 0; r < R; r++) {
          cols_i whole = cols_mul(sum[r][p][v], steps);
          if (job->per_row)
            acc[r][p][v] = cols_of_bits(cols_add(cols_bits(acc[r][p][v]), whole));
          else
            acc[r][p][v] = cols_fma(cols_to_f(whole), cols_number(sx[r][gx]), acc[r][p][v]);
        }
      } else {
        cols_f scale = cols_plain(w->scales, w->scale_type, at * 16, v);
        OMNIC_UNROLL for (int r = 0; r < R; r++) {
          cols_f both = job->per_row ? scale : cols_times(scale, cols_number(sx[r][gx]));
          acc[r][p][v] = cols_fma(cols_to_f(sum[r][p][v]), both, acc[r][p][v]);
        }
      }
    }
  }
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

/* The end of the chains: what is common to a row or a column, bias, residual; then memory. */
OMNIC_INLINE void write_block(const int R, const int P, const code_job *job, int64_t panel, int64_t row, int64_t rows,
                              const float *const *sx, cols_f (*acc)[CODE_PANELS][COL_VECTORS]) {
  const omnic_tile *t = job->t;
  OMNIC_UNROLL for (int p = 0; p < P; p++) {
    cols_f factors[COL_VECTORS];
    OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) factors[v] = cols_number(1.0f);
    if (job->stepped) {
      int64_t columns = panel_columns(t, panel + p);
      float some[16] = {0};
      const float *all = t->w->row + (panel + p) * 16;
      if (columns < 16) memcpy(some, all, (size_t)columns * 4);
      for (int v = 0; v < COL_VECTORS; v++) factors[v] = cols_get((columns < 16 ? some : all) + v * COLS);
    }
    OMNIC_UNROLL for (int r = 0; r < R; r++) {
      if (r >= rows) break;
      cols_f s = cols_number(sx[r][0]);
      OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) {
        cols_f value = acc[r][p][v];
        if (job->stepped && job->per_row)
          value = cols_times(cols_to_f(cols_bits(value)), cols_times(factors[v], s));
        else if (job->stepped)
          value = cols_times(value, factors[v]);
        else if (job->per_row)
          value = cols_times(value, s);
        acc[r][p][v] = value;
      }
      write_vectors(t, row + r, panel + p, acc[r][p]);
    }
  }
}

OMNIC_INLINE void code_block(const int kind, const int R, const int P, const int single, const code_job *job,
                             const code_part *part, int64_t panel, int64_t row, int64_t rows) {
  const omnic_rows *given = job->t->rows;
  const int8_t *x[CODE_ROWS];
  const int16_t *sums[CODE_ROWS];
  const float *sx[CODE_ROWS];
  cols_f acc[CODE_ROWS][CODE_PANELS][COL_VECTORS];
  for (int r = 0; r < R; r++) { /* a block that is not full computes its last row again */
    int64_t i = job->t->first + row + (r < rows ? r : rows - 1);
    x[r] = given->codes + i * given->stride;
    sums[r] = given->sums + i * (given->stride / 16);
    sx[r] = given->scales + i * given->groups;
    for (int p = 0; p < P; p++)
      for (int v = 0; v < COL_VECTORS; v++)
        acc[r][p][v] = part->g0 ? cols_get(part->between + (row + r) * 16 + v * COLS) : cols_number(0.0f);
  }
  int64_t group = part->g0 / job->per_weight, gx = part->g0 / job->per_x;
  int64_t of_group = part->g0 % job->per_weight, of_x = part->g0 % job->per_x;
  for (int64_t g = part->g0; g < part->g1; g++) {
    cols_i sum[CODE_ROWS][CODE_PANELS][COL_VECTORS];
    int64_t from = g * job->segment, to = from + job->segment < given->k ? from + job->segment : given->k;
    if (kind == CODES_8)
      segment_of_bytes(R, P, job, part, panel, x, sums, from, to, group, sum);
    else
      segment_of_small(kind, R, P, job, part, panel, x, sums, from, to, group, single, sum);
    join_segment(R, P, job, panel, group, gx, sx, sum, acc);
    if (++of_group == job->per_weight) of_group = 0, group++;
    if (++of_x == job->per_x) of_x = 0, gx++;
  }
  if (part->g1 == job->segments) {
    write_block(R, P, job, panel, row, rows, sx, acc);
    return;
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < COL_VECTORS; v++) cols_put(part->between + (row + r) * 16 + v * COLS, acc[r][0][v]);
}

#define CODE_BLOCK(name, kind, R, P, single)                                                                       \
  OMNIC_STATIC void name(const code_job *job, const code_part *part, int64_t panel, int64_t row, int64_t rows) {   \
    code_block(kind, R, P, single, job, part, panel, row, rows);                                                   \
  }
#define CODE_BLOCKS(name, kind, single)                 \
  CODE_BLOCK(name##_four, kind, 1, 4, single)           \
  CODE_BLOCK(name##_pair, kind, 1, 2, single)           \
  CODE_BLOCK(name##_one, kind, 1, 1, single)            \
  CODE_BLOCK(name##_two, kind, 2, 1, single)            \
  CODE_BLOCK(name##_many, kind, CODE_ROWS, 1, single)
CODE_BLOCKS(codes4, CODES_4, 0)
CODE_BLOCKS(codes4_single, CODES_4, 1)
CODE_BLOCKS(codes2, CODES_2, 0)
CODE_BLOCKS(codes8, CODES_8, 0)
CODE_BLOCK(open_many, CODES_OPEN, CODE_ROWS, 1, 0)
CODE_BLOCK(open_single_many, CODES_OPEN, CODE_ROWS, 1, 1)

typedef void (*code_function)(const code_job *, const code_part *, int64_t panel, int64_t row, int64_t rows);
typedef struct {
  code_function four, pair, one, two, many; /* panels of one row; rows */
} code_functions;

/* Unpack numbers k .. k + count - 1 of a panel, one code in a byte. */
OMNIC_STATIC void open_codes(int32_t type, const uint8_t *panel, int64_t k, int64_t count, uint8_t *open) {
  int kind = type == OMNIC_I4 ? CODES_4 : CODES_2;
  int64_t bytes = type == OMNIC_I4 ? 256 : 128;
  for (int64_t s = k / 32; s * 32 < k + count; s++)
    for (int i = 0; i < 8; i++)
      for (int v = 0; v < COL_VECTORS; v++) {
        cols_i codes = small_codes(kind, panel + s * bytes, i, v);
        cols_store(open + (s - k / 32) * 512 + i * 64 + v * COLS * 4, codes);
      }
}

/* Many rows: unpack part of a panel once, let all rows pass over it. */
OMNIC_STATIC void code_tile_open(const code_job *job) {
  const omnic_tile *t = job->t;
  _Alignas(64) uint8_t open[BLOCK_MOST * 16];
  _Alignas(64) float between[(CHUNK_MOST + CODE_ROWS) * 16];
  code_function run = job->segment == 32 ? open_single_many : open_many;
  int64_t step = t->way->k_block > job->segment ? t->way->k_block / job->segment : 1;
  for (int64_t panel = t->panel; panel < t->panel + t->panels; panel++) {
    const uint8_t *codes = (const uint8_t *)t->w->codes + panel * t->shape.panel_bytes;
    for (int64_t g = 0; g < job->segments; g += step) {
      int64_t g1 = g + step < job->segments ? g + step : job->segments;
      int64_t from = g * job->segment, to = g1 * job->segment < t->w->k ? g1 * job->segment : t->w->k;
      open_codes(t->w->type, codes, from, to - from, open);
      code_part part = {open, 0, g, g1, 0, between};
      for (int64_t row = 0; row < t->count; row += CODE_ROWS)
        run(job, &part, panel, row, t->count - row < CODE_ROWS ? t->count - row : CODE_ROWS);
    }
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
  static const code_functions of_kind[4] = {
      {codes4_four, codes4_pair, codes4_one, codes4_two, codes4_many},
      {codes2_four, codes2_pair, codes2_one, codes2_two, codes2_many},
      {codes8_four, codes8_pair, codes8_one, codes8_two, codes8_many},
      {codes4_single_four, codes4_single_pair, codes4_single_one, codes4_single_two, codes4_single_many}};
  if (!codes_fit(t)) {
    oracle_tile(t);
    return;
  }
  const omnic_weight *w = t->w;
  code_job job = code_job_of(t);
  if (w->type != OMNIC_I8 && t->count > 2 * CODE_ROWS && job.segment <= BLOCK_MOST) {
    code_tile_open(&job);
    return;
  }
  const code_functions *run = of_kind + (w->type == OMNIC_I8 ? 2 : w->type == OMNIC_I2 ? 1 : job.segment == 32 ? 3 : 0);
  int64_t last = t->panel + t->panels;
  for (int64_t panel = t->panel; panel < last;) {
    int64_t wide = t->count == 1 ? t->way->panels : 1;
    while (panel + wide > last) wide /= 2;
    code_part part = {(const uint8_t *)w->codes + panel * t->shape.panel_bytes, t->shape.panel_bytes, 0, job.segments,
                      t->way->prefetch, NULL};
    for (int64_t row = 0; row < t->count;) {
      int64_t left = t->count - row;
      if (left == 1)
        (wide == 4 ? run->four : wide == 2 ? run->pair : run->one)(&job, &part, panel, row, 1);
      else if (left == 2)
        run->two(&job, &part, panel, row, 2);
      else
        run->many(&job, &part, panel, row, left < CODE_ROWS ? left : CODE_ROWS);
      row += left == 1 ? 1 : left == 2 ? 2 : CODE_ROWS;
    }
    panel += wide;
  }
}
