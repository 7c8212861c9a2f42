/* The products in plain C, one output at a time: what every level must give, and what it does for shapes that its own
 * kernels do not take (groups that are no multiple of 32, rows so long that whole-number sums need 64 bits). */

/* Whole numbers: sums of codes times codes are exact within a segment, which ends where a group of either side does. */
OMNIC_STATIC float oracle_codes(const omnic_tile *t, int64_t row, int64_t n) {
  const omnic_weight *w = t->w;
  const omnic_rows *rows = t->rows;
  const int8_t *x = rows->codes + row * rows->stride;
  const float *sx = rows->scales + row * rows->groups;
  int per_row = rows->act == OMNIC_ACT_I8_ROW, stepped = w->scale_type == OMNIC_S4;
  int64_t total = 0;
  float acc = 0.0f;
  for (int64_t from = 0, to; from < w->k; from = to) {
    int64_t group = from / t->shape.group;
    to = (group + 1) * t->shape.group;
    if (!per_row && (from / rows->group + 1) * rows->group < to) to = (from / rows->group + 1) * rows->group;
    if (to > w->k) to = w->k;
    int32_t zero = zero_at(w, &t->shape, n, group);
    int64_t sum = 0;
    for (int64_t k = from; k < to; k++) sum += (code_at(w, &t->shape, n, k) - zero) * x[k];
    float scale = scale_at(w, &t->shape, n, group);
    if (stepped && per_row)
      total += (int64_t)scale * sum;
    else if (stepped)
      acc = fmaf((float)((int64_t)scale * sum), sx[from / rows->group], acc);
    else if (per_row)
      acc = fmaf((float)sum, scale, acc);
    else
      acc = fmaf((float)sum, scale * sx[from / rows->group], acc);
  }
  if (stepped) return per_row ? (float)total * (w->row[n] * sx[0]) : acc * w->row[n];
  return per_row ? acc * sx[0] : acc;
}

/* f32: one chain in ascending k; of a quantised weight one chain for each group, and one over the groups. */
OMNIC_STATIC float oracle_values(const omnic_tile *t, int64_t row, int64_t n) {
  const omnic_weight *w = t->w;
  const float *x = value_row(t->rows, row);
  float acc = 0.0f;
  if (is_plain(w)) {
    for (int64_t k = 0; k < w->k; k++) acc = fmaf(x[k], plain_at(w->codes, w->type, (n / 16 * w->k + k) * 16 + n % 16), acc);
    return acc;
  }
  for (int64_t from = 0, group = 0; from < w->k; from += t->shape.group, group++) {
    int64_t to = from + t->shape.group < w->k ? from + t->shape.group : w->k;
    int32_t zero = zero_at(w, &t->shape, n, group);
    float part = 0.0f;
    for (int64_t k = from; k < to; k++) part = fmaf(x[k], (float)(code_at(w, &t->shape, n, k) - zero), part);
    acc = fmaf(part, scale_at(w, &t->shape, n, group), acc);
  }
  return w->scale_type == OMNIC_S4 ? acc * w->row[n] : acc;
}

OMNIC_INLINE int by_codes(const omnic_weight *w, int32_t act) {
  return !is_plain(w) && (act == OMNIC_ACT_I8_ROW || act == OMNIC_ACT_I8_GROUP);
}

OMNIC_STATIC void oracle_tile(const omnic_tile *t) {
  int codes = by_codes(t->w, t->rows->act);
  for (int64_t panel = t->panel; panel < t->panel + t->panels; panel++) {
    int64_t columns = panel_columns(t, panel);
    for (int64_t i = 0; i < t->count; i++) {
      float sums[16];
      for (int64_t c = 0; c < columns; c++) {
        int64_t n = panel * 16 + c;
        sums[c] = codes ? oracle_codes(t, t->first + i, n) : oracle_values(t, t->first + i, n);
      }
      write_columns(t, i, panel, sums, columns);
    }
  }
}
