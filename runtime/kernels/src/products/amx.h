/* Products in tiles of AMX: 16 rows by 16 columns by 64 bytes of k, two row blocks by two panels at a time.
 *
 * Whole numbers: codes lie in a panel as a tile wants them, signed, so codes of 8 bits are read where they are and small
 * codes are unpacked.  A segment has its own sums; where it is no multiple of 64, tiles are 32 bytes deep.  With steps
 * (S4) and one scale of x for a row, code times step is a number of 8 bits again (at most 8 * 15), so the whole row is
 * one segment; that is exact.
 * Activations in bf16: weights are rounded to bf16 too, sums are f32, in the order of the tiles.
 */

#define AMX_BYTES 512  /* most of a row of x that are multiplied before the next part of the weights is unpacked */
/* Compilers do not see what the tile instructions read and write. */
#define AMX_BARRIER() __asm__ volatile("" ::: "memory")

typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
} amx_config;

/* Tiles 0 .. 3 are sums, 4 and 5 rows of `depth` bytes, 6 and 7 columns of as many. */
OMNIC_STATIC void amx_begin(int depth) {
  amx_config config = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    config.rows[i] = (uint8_t)(i < 6 ? 16 : depth / 4);
    config.bytes[i] = (uint16_t)(i == 4 || i == 5 ? depth : 64);
  }
  AMX_BARRIER();
  _tile_loadconfig(&config);
  AMX_BARRIER();
}

/* Sums [2 row blocks][2 panels][16][16] of rows a0 (and a1) times panels b0, b1: `bytes` of each row. */
#define AMX_STEPS(name, product)                                                                                     \
  OMNIC_STATIC void name(const char *a0, const char *a1, int64_t stride, const char *b0, const char *b1, int64_t bytes, \
                         int64_t depth, int32_t *sums, int fresh) {                                                  \
    AMX_BARRIER();                                                                                                   \
    if (fresh) {                                                                                                     \
      _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);                                                    \
    } else {                                                                                                         \
      _tile_loadd(0, sums, 64); _tile_loadd(1, sums + 256, 64);                                                      \
      _tile_loadd(2, sums + 512, 64); _tile_loadd(3, sums + 768, 64);                                                \
    }                                                                                                                \
    for (int64_t i = 0; i < bytes; i += depth) {                                                                     \
      _tile_loadd(6, b0 + i * 16, 64);                                                                               \
      _tile_loadd(4, a0 + i, stride);                                                                                \
      product(0, 4, 6);                                                                                              \
      _tile_loadd(7, b1 + i * 16, 64);                                                                               \
      product(1, 4, 7);                                                                                              \
      if (a1) {                                                                                                      \
        _tile_loadd(5, a1 + i, stride);                                                                              \
        product(2, 5, 6);                                                                                            \
        product(3, 5, 7);                                                                                            \
      }                                                                                                              \
    }                                                                                                                \
    _tile_stored(0, sums, 64); _tile_stored(1, sums + 256, 64);                                                      \
    if (a1) {                                                                                                        \
      _tile_stored(2, sums + 512, 64); _tile_stored(3, sums + 768, 64);                                              \
    }                                                                                                                \
    AMX_BARRIER();                                                                                                   \
  }
AMX_STEPS(amx_whole_steps, _tile_dpbssd)
AMX_STEPS(amx_bf16_steps, _tile_dpbf16ps)

/* What one task needs: unpacked weights of two panels, the rows of a last block that is not full, sums. */
typedef struct {
  _Alignas(64) char open[2][AMX_BYTES * 16];
  _Alignas(64) char tail[16][AMX_BYTES];
  _Alignas(64) int32_t sums[TILE_ROWS / 32][2][2][256];
  _Alignas(64) float chains[2][TILE_ROWS][16];
} amx_memory;

OMNIC_INLINE int64_t amx_block(const omnic_tile *t) { return t->way->k_block < AMX_BYTES ? t->way->k_block : AMX_BYTES; }

OMNIC_INLINE int32_t *amx_sums(amx_memory *memory, int64_t i, int64_t p) {
  return memory->sums[i / 32][i / 16 % 2][p] + i % 16 * 16;
}

/* All rows of the tile times two panels, `bytes` of each row from byte `from` on (multiples of `depth`). */
OMNIC_STATIC void amx_pass(const omnic_tile *t, amx_memory *memory, const char *x, int64_t row_bytes, int64_t from,
                           int64_t bytes, int64_t depth, const char *b0, const char *b1, int fresh, int bf16) {
  const char *rows = x + t->first * row_bytes + from;
  int64_t whole = t->count / 16 * 16;
  if (whole < t->count)
    for (int64_t i = whole; i < t->count; i++) memcpy(memory->tail[i - whole], rows + i * row_bytes, (size_t)bytes);
  for (int64_t i = 0; i < t->count; i += 32) {
    int32_t *sums = memory->sums[i / 32][0][0];
    void (*steps)(const char *, const char *, int64_t, const char *, const char *, int64_t, int64_t, int32_t *,
                  int) =
        bf16 ? amx_bf16_steps : amx_whole_steps;
    if (i + 32 <= whole) {
      steps(rows + i * row_bytes, rows + (i + 16) * row_bytes, row_bytes, b0, b1, bytes, depth, sums, fresh);
      continue;
    }
    if (i + 16 <= whole) {
      steps(rows + i * row_bytes, NULL, row_bytes, b0, b1, bytes, depth, sums, fresh);
      if (whole < t->count) steps(memory->tail[0], NULL, AMX_BYTES, b0, b1, bytes, depth, sums + 512, fresh);
    } else {
      steps(memory->tail[0], NULL, AMX_BYTES, b0, b1, bytes, depth, sums, fresh);
    }
  }
}

/* The lines of four numbers that a panel has. */
OMNIC_INLINE int64_t panel_lines(const omnic_weight *w) {
  return w->type == OMNIC_I8 ? (w->k + 3) / 4 : w->type == OMNIC_I4 ? (w->k + 31) / 32 * 8 : (w->k + 63) / 64 * 16;
}

/* Four codes of every column without sign; beyond the panel's end any. */
OMNIC_INLINE cols_i amx_codes_at(const omnic_weight *w, const uint8_t *codes, int64_t line, int64_t lines) {
  if (line >= lines) return cols_zero();
  if (w->type == OMNIC_I8) return cols_flip(cols_load(codes + line * 64));
  if (w->type == OMNIC_I4) return small_codes(CODES_4, codes + line / 8 * 256, (int)(line % 8), 0);
  return small_codes(CODES_2, codes + line / 8 * 128, (int)(line % 8), 0);
}

/* The zero points of a group in all four bytes of their columns. */
OMNIC_INLINE cols_i amx_zeros(const omnic_tile *t, int64_t panel, int64_t group) {
  const omnic_weight *w = t->w;
  if (w->zeros) {
    cols_i zeros = cols_byte_zeros(w->zeros + (panel * t->shape.groups + group) * 16, 0);
    zeros = _mm512_or_si512(zeros, _mm512_slli_epi32(zeros, 8));
    return _mm512_or_si512(zeros, _mm512_slli_epi32(zeros, 16));
  }
  return _mm512_set1_epi8((char)(w->type == OMNIC_I8 ? 128 : w->type == OMNIC_I4 ? 8 : 2));
}

/* Bytes times their column's step, as bytes. */
OMNIC_INLINE cols_i amx_fold(cols_i codes, cols_i steps) {
  cols_i pairs = _mm512_or_si512(steps, _mm512_slli_epi32(steps, 16));
  cols_i even = _mm512_mullo_epi16(_mm512_srai_epi16(_mm512_slli_epi16(codes, 8), 8), pairs);
  cols_i odd = _mm512_mullo_epi16(_mm512_srai_epi16(codes, 8), pairs);
  return _mm512_or_si512(_mm512_and_si512(even, _mm512_set1_epi16(255)), _mm512_slli_epi16(odd, 8));
}

/* Signed bytes of numbers k .. k + count - 1 of a panel, as tiles: where they lie, or unpacked. */
OMNIC_STATIC const char *amx_open_codes(const omnic_tile *t, int64_t panel, int64_t k, int64_t count, int fold, char *open) {
  const omnic_weight *w = t->w;
  const uint8_t *codes = (const uint8_t *)w->codes + panel * t->shape.panel_bytes;
  int64_t lines = panel_lines(w);
  if (w->type == OMNIC_I8 && (k + count) / 4 <= lines) return (const char *)codes + k * 16;
  for (int64_t from = k; from < k + count; from += 32) {
    int64_t group = from / t->shape.group < t->shape.groups ? from / t->shape.group : t->shape.groups - 1;
    cols_i zeros = amx_zeros(t, panel, group), steps = cols_zero();
    if (fold) steps = cols_steps((const uint8_t *)w->scales + (panel * t->shape.groups + group) * 8, 0);
    for (int64_t i = 0; i < 8; i++) {
      cols_i four = _mm512_sub_epi8(amx_codes_at(w, codes, from / 4 + i, lines), zeros);
      cols_store(open + (from - k) * 16 + i * 64, fold ? amx_fold(four, steps) : four);
    }
  }
  return open;
}

/* Two numbers of every column as bf16, the first one low; half to even. */
OMNIC_INLINE cols_i amx_bf16_pair(cols_f first, cols_f second) {
  cols_i a = cols_bits(first), b = cols_bits(second), one = cols_whole(1), half = cols_whole(0x7fff);
  a = cols_add(a, cols_add(half, _mm512_and_si512(_mm512_srli_epi32(a, 16), one)));
  b = cols_add(b, cols_add(half, _mm512_and_si512(_mm512_srli_epi32(b, 16), one)));
  return _mm512_or_si512(_mm512_srli_epi32(a, 16), _mm512_and_si512(b, cols_whole((int32_t)0xffff0000u)));
}

/* Numbers k .. k + count - 1 of a panel in bf16, as tiles; zeros beyond the row's end. */
OMNIC_STATIC void amx_open_bf16(const omnic_tile *t, int64_t panel, int64_t k, int64_t count, char *open) {
  const omnic_weight *w = t->w;
  const uint8_t *codes = (const uint8_t *)w->codes + panel * t->shape.panel_bytes;
  if (is_plain(w)) {
    for (int64_t at = k; at < k + count; at += 2) {
      cols_f first = at < w->k ? cols_plain(codes, w->type, at * 16, 0) : cols_number(0.0f);
      cols_f second = at + 1 < w->k ? cols_plain(codes, w->type, (at + 1) * 16, 0) : cols_number(0.0f);
      cols_store(open + (at - k) * 32, amx_bf16_pair(first, second));
    }
    return;
  }
  float some[16] = {0};
  if (w->scale_type == OMNIC_S4) memcpy(some, w->row + panel * 16, (size_t)panel_columns(t, panel) * 4);
  for (int64_t at = k; at < k + count; at += 4) {
    cols_f four[4];
    for (int64_t j = 0; j < 4; j++) { /* a group may end between the four numbers of a line */
      if (at + j >= w->k) {
        four[j] = cols_number(0.0f);
        continue;
      }
      int64_t group = (at + j) / t->shape.group, of = panel * t->shape.groups + group;
      cols_f zeros = cols_code(amx_zeros(t, panel, group), 0), scale;
      if (w->scale_type == OMNIC_S4)
        scale = cols_times(cols_to_f(cols_steps((const uint8_t *)w->scales + of * 8, 0)), cols_get(some));
      else
        scale = cols_plain(w->scales, w->scale_type, of * 16, 0);
      cols_f code = cols_code(amx_codes_at(w, codes, at / 4, panel_lines(w)), (int)j);
      four[j] = cols_times(_mm512_sub_ps(code, zeros), scale);
    }
    cols_store(open + (at - k) * 32, amx_bf16_pair(four[0], four[1]));
    cols_store(open + (at - k) * 32 + 64, amx_bf16_pair(four[2], four[3]));
  }
}

OMNIC_STATIC void amx_tile_bf16(const omnic_tile *t, amx_memory *memory) {
  const omnic_rows *rows = t->rows;
  int64_t end = t->panel + t->panels, k = product_round_up(t->w->k, 32), step = amx_block(t) / 2;
  for (int64_t panel = t->panel; panel < end; panel += 2) {
    int64_t two = panel + 1 < end;
    for (int64_t from = 0; from < k; from += step) {
      int64_t count = k - from < step ? k - from : step;
      for (int64_t p = 0; p <= two; p++) amx_open_bf16(t, panel + p, from, count, memory->open[p]);
      amx_pass(t, memory, (const char *)rows->bf16, rows->stride * 2, from * 2, count * 2, 64, memory->open[0],
               memory->open[two], from == 0, 1);
    }
    for (int64_t p = 0; p <= two; p++)
      for (int64_t i = 0; i < t->count; i++) {
        cols_f sums = cols_of_bits(cols_load(amx_sums(memory, i, p)));
        write_vectors(t, i, panel + p, &sums);
      }
  }
}

/* One more segment of all rows and two panels joins the chains. */
OMNIC_STATIC void amx_join(const code_job *job, amx_memory *memory, int64_t panel, int64_t panels, int64_t g) {
  const omnic_tile *t = job->t;
  const omnic_rows *rows = t->rows;
  for (int64_t p = 0; p < panels; p++) {
    code_scales scales;
    any_scales(job, panel + p, g / job->per_weight, &scales);
    for (int64_t i = 0; i < t->count; i++) {
      float *chain = memory->chains[p][i];
      cols_i sum = cols_stepped(cols_load(amx_sums(memory, i, p)), scales.step[0]);
      cols_f acc = g ? cols_get(chain) : cols_number(0.0f);
      if (job->stepped && job->per_row) {
        cols_put(chain, cols_of_bits(cols_add(cols_bits(acc), sum)));
      } else {
        float one = job->per_row ? 1.0f : rows->scales[(t->first + i) * rows->groups + g / job->per_x];
        cols_put(chain, cols_fma(cols_to_f(sum), cols_times(scales.scale[0], cols_number(one)), acc));
      }
    }
  }
}

/* Code times step in 8 bits. */
OMNIC_INLINE int amx_folds(const code_job *job) {
  const omnic_weight *w = job->t->w;
  return job->stepped && job->per_row && !w->zeros && w->type != OMNIC_I8;
}

/* Bytes of k in a tile. */
OMNIC_INLINE int amx_depth(const code_job *job) { return job->segment % 64 && !amx_folds(job) ? 32 : 64; }

OMNIC_STATIC void amx_tile_codes(const code_job *job, amx_memory *memory) {
  const omnic_tile *t = job->t;
  const int fold = amx_folds(job);
  const omnic_rows *rows = t->rows;
  int64_t depth = amx_depth(job), end = t->panel + t->panels, k = product_round_up(t->w->k, depth);
  int64_t segment = fold ? k : job->segment, block = amx_block(t);
  for (int64_t panel = t->panel; panel < end; panel += 2) {
    int64_t two = panel + 1 < end;
    for (int64_t start = 0, g = 0; start < k; start += segment, g++) {
      int64_t stop = start + segment < k ? start + segment : k;
      for (int64_t from = start; from < stop; from += block) {
        int64_t count = stop - from < block ? stop - from : block;
        const char *b[2];
        for (int64_t p = 0; p <= two; p++) b[p] = amx_open_codes(t, panel + p, from, count, fold, memory->open[p]);
        amx_pass(t, memory, (const char *)rows->codes, rows->stride, from, count, depth, b[0], b[two], from == start, 0);
      }
      if (!fold) amx_join(job, memory, panel, 1 + two, g);
    }
    for (int64_t p = 0; p <= two; p++) {
      for (int64_t i = 0; fold && i < t->count; i++) memcpy(memory->chains[p][i], amx_sums(memory, i, p), 64);
      write_chains(job, panel + p, 0, t->count, memory->chains[p][0]);
    }
  }
}

/* Whether AMX does a product: the kernels without tiles must do the rest, or are faster (few rows). */
OMNIC_STATIC int amx_takes(const omnic_tile *t) {
  const omnic_weight *w = t->w;
  if (t->rows->act == OMNIC_ACT_BF16) return 1;
  if (!by_codes(w, t->rows->act) || !codes_fit(t) || t->count < 8) return 0; /* a tile of 16 rows half full */
  code_job job = code_job_of(t);
  if (amx_folds(&job)) return 1;
  return (w->type != OMNIC_I8 || !w->zeros) && (job.segment % 64 == 0 || t->count >= 16);
}

OMNIC_STATIC void amx_tile(const omnic_tile *t) {
  amx_memory memory;
  if (t->rows->act == OMNIC_ACT_BF16) {
    amx_begin(64);
    amx_tile_bf16(t, &memory);
  } else {
    code_job job = code_job_of(t);
    amx_begin(amx_depth(&job));
    amx_tile_codes(&job, &memory);
  }
  _tile_release();
}
