/* A tile: some rows of the activations times some panels of a weight, and where the results go.  It is what every
 * driver cuts its work into and what every kernel computes. */

/* Rows whose sums a kernel keeps on its stack, but for whole-number products of small codes, which take CHUNK_MOST. */
#define TILE_ROWS 128

typedef struct {
  const omnic_weight *w;
  omnic_shape shape;
  const omnic_rows *rows;
  const omnic_tuning *way;
  int64_t first, count;      /* rows, at most CHUNK_MOST */
  int64_t panel, panels;
  const float *bias;         /* of all outputs, or NULL */
  const float *residual;     /* row `first`, column 16 panel; or NULL */
  int64_t ldr;
  float *y;                  /* row `first`, column 16 panel */
  int64_t ldy;
  const int64_t *y_offsets;  /* of row i from y instead of i ldy, or NULL */
} omnic_tile;

OMNIC_INLINE float *tile_row(const omnic_tile *t, int64_t i) { return t->y + (t->y_offsets ? t->y_offsets[i] : i * t->ldy); }

/* Rows from .. from + TILE_ROWS - 1 of a tile, or as many as it has. */
OMNIC_INLINE omnic_tile tile_part(const omnic_tile *t, int64_t from) {
  omnic_tile part = *t;
  part.first += from;
  part.count = t->count - from < TILE_ROWS ? t->count - from : TILE_ROWS;
  if (t->residual) part.residual += from * t->ldr;
  if (t->y_offsets)
    part.y_offsets += from;
  else
    part.y += from * t->ldy;
  return part;
}

/* Columns of a panel that the model has. */
OMNIC_INLINE int64_t panel_columns(const omnic_tile *t, int64_t panel) {
  int64_t left = t->w->n - panel * 16;
  return left < 16 ? left : 16;
}

/* Write the 16 sums of row i of the tile: bias, then residual, each one addition. */
OMNIC_INLINE void write_columns(const omnic_tile *t, int64_t i, int64_t panel, const float *sums, int64_t columns) {
  int64_t from = (panel - t->panel) * 16;
  float *y = tile_row(t, i) + from;
  const float *bias = t->bias ? t->bias + panel * 16 : NULL;
  const float *residual = t->residual ? t->residual + i * t->ldr + from : NULL;
  for (int64_t c = 0; c < columns; c++) {
    float value = sums[c];
    if (bias) value = value + bias[c];
    if (residual) value = residual[c] + value;
    y[c] = value;
  }
}
