/* f32 products: every output is one chain of fused multiply-adds in ascending k, so that all levels give the same bits.
 * Of a quantised weight the codes become numbers 128 at a time, each group has its chain, and a chain over the groups
 * takes scale times group.
 */

#define OPEN_VALUES 128     /* numbers of k that are made f32 at a time */

/* R rows times P panels, `count` numbers of k.  data[p]: [count][16] of a plain type, x[r]: [count], chains [r][p][16]. */
OMNIC_INLINE void value_block(const int32_t type, const int R, const int P, const void *const *data, int64_t count,
                              int64_t ahead, const float *const *x, float (*const *chain)[16]) {
  cols_f acc[VALUE_ROWS][VALUE_PANELS][COL_VECTORS];
  OMNIC_UNROLL for (int r = 0; r < R; r++) OMNIC_UNROLL for (int p = 0; p < P; p++)
      OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) acc[r][p][v] = cols_get(chain[r][p] + v * COLS);
  const int64_t bytes = type == OMNIC_F32 ? 64 : 32;
  for (int64_t k = 0; k < count; k++) {
    cols_f w[VALUE_PANELS][COL_VECTORS];
    OMNIC_UNROLL for (int p = 0; p < P; p++) {
      if (R == 1) __builtin_prefetch((const char *)data[p] + k * bytes + ahead);
      OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) w[p][v] = cols_plain(data[p], type, k * 16, v);
    }
    OMNIC_UNROLL for (int r = 0; r < R; r++) {
      cols_f one = cols_number(x[r][k]);
      OMNIC_UNROLL for (int p = 0; p < P; p++)
          OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) acc[r][p][v] = cols_fma(one, w[p][v], acc[r][p][v]);
    }
  }
  OMNIC_UNROLL for (int r = 0; r < R; r++) OMNIC_UNROLL for (int p = 0; p < P; p++)
      OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) cols_put(chain[r][p] + v * COLS, acc[r][p][v]);
}

#define VALUE_BLOCK(name, type, R, P)                                                                      \
  OMNIC_STATIC void name(const void *const *data, int64_t count, int64_t ahead, const float *const *x,     \
                         float (*const *chain)[16]) {                                                      \
    value_block(type, R, P, data, count, ahead, x, chain);                                                 \
  }
#define VALUE_BLOCKS(name, type)                  \
  VALUE_BLOCK(name##_wide, type, 1, VALUE_PANELS) \
  VALUE_BLOCK(name##_one, type, 1, 1)             \
  VALUE_BLOCK(name##_two, type, 2, 1)             \
  VALUE_BLOCK(name##_many, type, VALUE_ROWS, 1)
VALUE_BLOCKS(values32, OMNIC_F32)
VALUE_BLOCKS(values16, OMNIC_F16)
VALUE_BLOCKS(values_b16, OMNIC_BF16)

typedef void (*value_function)(const void *const *, int64_t, int64_t, const float *const *, float (*const *)[16]);
typedef struct {
  value_function wide, one, two, many;
} value_functions;

/* The rows of a tile times `count` numbers of P panels from number k on, added to chains[row][p][16]. */
OMNIC_INLINE void value_rows(const omnic_tile *t, const value_functions *run, int64_t P, const void *const *data, int64_t k,
                             int64_t count, float *chains) {
  for (int64_t row = 0; row < t->count;) {
    int64_t left = t->count - row, rows = left < 3 ? left : VALUE_ROWS;
    const float *x[VALUE_ROWS];
    float spare[16] = {0};
    float(*chain[VALUE_ROWS])[16];
    for (int64_t r = 0; r < rows; r++) { /* rows that are not there compute the last one again, for nothing */
      x[r] = value_row(t->rows, t->first + row + (r < left ? r : left - 1)) + k;
      chain[r] = r < left ? (float(*)[16])(chains + (row + r) * P * 16) : &spare;
    }
    (P > 1 ? run->wide : rows == 1 ? run->one : rows == 2 ? run->two : run->many)(data, count, t->way->prefetch, x, chain);
    row += rows;
  }
}

/* Numbers k .. k + count - 1 of a panel's codes, less their zero points, as f32 [count][16]. */
OMNIC_STATIC void open_values(const omnic_tile *t, int64_t panel, int64_t k, int64_t count, int64_t group, float *open) {
  const omnic_weight *w = t->w;
  const uint8_t *codes = (const uint8_t *)w->codes + panel * t->shape.panel_bytes;
  float zeros[16];
  for (int c = 0; c < 16; c++) zeros[c] = (float)-zero_at(w, &t->shape, panel * 16 + c, group);
  for (int64_t q = k / 4; q * 4 < k + count; q++)
    for (int v = 0; v < COL_VECTORS; v++) {
      cols_i four;
      if (w->type == OMNIC_I8)
        four = cols_flip(cols_load(codes + q * 64 + v * COLS * 4));
      else if (w->type == OMNIC_I4)
        four = small_codes(CODES_4, codes + q / 8 * 256, (int)(q % 8), v);
      else
        four = small_codes(CODES_2, codes + q / 8 * 128, (int)(q % 8), v);
      for (int j = 0; j < 4; j++) {
        int64_t at = q * 4 + j - k;
        if (at < 0 || at >= count) continue;
        cols_put(open + at * 16 + v * COLS, cols_plus(cols_code(four, j), cols_get(zeros + v * COLS)));
      }
    }
}

OMNIC_STATIC void write_values(const omnic_tile *t, int64_t panel, int64_t P, float *chains) {
  for (int64_t p = 0; p < P; p++) {
    int64_t columns = panel_columns(t, panel + p);
    const float *row = t->w->scale_type == OMNIC_S4 && !is_plain(t->w) ? t->w->row + (panel + p) * 16 : NULL;
    for (int64_t i = 0; i < t->count; i++) {
      float *sums = chains + (i * P + p) * 16;
      for (int64_t c = 0; row && c < columns; c++) sums[c] *= row[c];
      write_columns(t, i, panel + p, sums, columns);
    }
  }
}

OMNIC_STATIC void value_tile_plain(const omnic_tile *t) {
  static const value_functions of_type[3] = {{values32_wide, values32_one, values32_two, values32_many},
                                             {values16_wide, values16_one, values16_two, values16_many},
                                             {values_b16_wide, values_b16_one, values_b16_two, values_b16_many}};
  const omnic_weight *w = t->w;
  int64_t bytes = w->type == OMNIC_F32 ? 64 : 32, last = t->panel + t->panels;
  int open = w->type != OMNIC_F32 && t->count > 2 * VALUE_ROWS;
  _Alignas(64) float chains[TILE_ROWS * 16], opened[OPEN_VALUES * 16];
  for (int64_t panel = t->panel; panel < last;) {
    int64_t P = t->count == 1 && panel + VALUE_PANELS <= last ? VALUE_PANELS : 1;
    memset(chains, 0, (size_t)(t->count * P) * 64);
    int64_t step = t->count > VALUE_ROWS ? OPEN_VALUES : w->k;
    for (int64_t k = 0; k < w->k; k += step) {
      int64_t count = w->k - k < step ? w->k - k : step;
      const void *data[VALUE_PANELS];
      for (int64_t p = 0; p < P; p++) data[p] = (const char *)w->codes + (panel + p) * t->shape.panel_bytes + k * bytes;
      if (open) {
        for (int64_t i = 0; i < count; i++)
          for (int v = 0; v < COL_VECTORS; v++) cols_put(opened + i * 16 + v * COLS, cols_plain(data[0], w->type, i * 16, v));
        data[0] = opened;
      }
      value_rows(t, of_type + (open ? OMNIC_F32 : w->type), P, data, k, count, chains);
    }
    write_values(t, panel, P, chains);
    panel += P;
  }
}

OMNIC_STATIC void value_tile_codes(const omnic_tile *t) {
  static const value_functions run = {values32_wide, values32_one, values32_two, values32_many};
  const omnic_weight *w = t->w;
  int64_t last = t->panel + t->panels;
  _Alignas(64) float chains[TILE_ROWS * 16], part[TILE_ROWS * 16], opened[VALUE_PANELS * OPEN_VALUES * 16];
  for (int64_t panel = t->panel; panel < last;) {
    int64_t P = t->count == 1 && panel + VALUE_PANELS <= last ? VALUE_PANELS : 1;
    memset(chains, 0, (size_t)(t->count * P) * 64);
    for (int64_t group = 0; group < t->shape.groups; group++) {
      int64_t from = group * t->shape.group, to = from + t->shape.group < w->k ? from + t->shape.group : w->k;
      memset(part, 0, (size_t)(t->count * P) * 64);
      for (int64_t k = from; k < to; k += OPEN_VALUES) {
        int64_t count = to - k < OPEN_VALUES ? to - k : OPEN_VALUES;
        const void *data[VALUE_PANELS];
        for (int64_t p = 0; p < P; p++) {
          open_values(t, panel + p, k, count, group, opened + p * OPEN_VALUES * 16);
          data[p] = opened + p * OPEN_VALUES * 16;
        }
        value_rows(t, &run, P, data, k, count, part);
      }
      for (int64_t p = 0; p < P; p++)
        for (int v = 0; v < COL_VECTORS; v++) {
          int64_t at = (panel + p) * t->shape.groups + group;
          cols_f scale = w->scale_type == OMNIC_S4 ? cols_to_f(cols_whole_step(cols_steps((const uint8_t *)w->scales + at * 8, v)))
                                                   : cols_plain(w->scales, w->scale_type, at * 16, v);
          for (int64_t i = 0; i < t->count; i++) {
            float *chain = chains + (i * P + p) * 16 + v * COLS;
            cols_put(chain, cols_fma(cols_get(part + (i * P + p) * 16 + v * COLS), scale, cols_get(chain)));
          }
        }
    }
    write_values(t, panel, P, chains);
    panel += P;
  }
}
