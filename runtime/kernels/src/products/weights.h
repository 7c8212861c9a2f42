/* How a packed weight lies in memory (see the header), and the numbers of one output, one at a time. */

/* What would make a copy of itself wherever it is called. */
#define OMNIC_ONCE __attribute__((noinline))

typedef struct {
  int64_t panels;       /* ceil(n / 16) */
  int64_t panel_bytes;  /* codes of one panel */
  int64_t groups;       /* scales of one column */
  int64_t group;        /* numbers of a group, never beyond k rounded up to 64 */
} omnic_shape;

OMNIC_INLINE int64_t product_round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
OMNIC_INLINE int is_plain(const omnic_weight *w) { return w->type <= OMNIC_BF16; }

OMNIC_INLINE omnic_shape weight_shape(const omnic_weight *w) {
  omnic_shape shape = {.panels = (w->n + 15) / 16};
  int64_t k = w->k;
  switch (w->type) {
    case OMNIC_F32: shape.panel_bytes = k * 64; break;
    case OMNIC_F16:
    case OMNIC_BF16: shape.panel_bytes = k * 32; break;
    case OMNIC_I8: shape.panel_bytes = product_round_up(k, 4) * 16; break;
    case OMNIC_I4: shape.panel_bytes = product_round_up(k, 32) * 8; break;
    default: shape.panel_bytes = product_round_up(k, 64) * 4; break;
  }
  int whole = is_plain(w) || w->group >= k;
  shape.group = whole ? product_round_up(k, 64) : w->group;
  shape.groups = whole ? 1 : (k + w->group - 1) / w->group;
  return shape;
}

/* The number at `index` of an array of a plain type. */
OMNIC_INLINE float plain_at(const void *data, int32_t type, int64_t index) {
  if (type == OMNIC_F32) return ((const float *)data)[index];
  uint16_t half = ((const uint16_t *)data)[index];
  return type == OMNIC_F16 ? omnic_half(half) : omnic_bfloat(half);
}

/* Code of output n and number k of its row, as the layouts keep it without sign: 0..3, 0..15 or 0..255. */
OMNIC_INLINE int32_t code_at(const omnic_weight *w, const omnic_shape *shape, int64_t n, int64_t k) {
  const uint8_t *panel = (const uint8_t *)w->codes + n / 16 * shape->panel_bytes;
  int64_t c = n % 16 * 4 + k % 4;
  if (w->type == OMNIC_I8) return (uint8_t)(panel[k / 4 * 64 + c] ^ 0x80);
  if (w->type == OMNIC_I4) return panel[k / 8 * 64 + c] >> (k / 4 % 2 * 4) & 15;
  return panel[k / 16 * 64 + c] >> (k / 4 % 4 * 2) & 3;
}

/* The code that stands for 0. */
OMNIC_INLINE int32_t zero_at(const omnic_weight *w, const omnic_shape *shape, int64_t n, int64_t group) {
  if (w->zeros) return w->zeros[(n / 16 * shape->groups + group) * 16 + n % 16];
  return w->type == OMNIC_I8 ? 128 : w->type == OMNIC_I4 ? 8 : 2;
}

/* The scale of a group; of S4 the step, without the factor of the row. */
OMNIC_INLINE float scale_at(const omnic_weight *w, const omnic_shape *shape, int64_t n, int64_t group) {
  int64_t at = n / 16 * shape->groups + group, c = n % 16;
  if (w->scale_type != OMNIC_S4) return plain_at(w->scales, w->scale_type, at * 16 + c);
  return (float)(((const uint8_t *)w->scales)[at * 8 + c % 8] >> (c / 8 * 4) & 15);
}
