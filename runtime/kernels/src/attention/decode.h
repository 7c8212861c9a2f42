/* Rows of a cache as f32 numbers.  The structure of the cache is copied first: what is written might be it, for all
 * that a compiler knows.
 */

/* Rows of plain numbers: READ takes sixteen of them, ONE a single one. */
#define OMNIC_DECODE_PLAIN(TYPE, READ, ONE)                                              \
  {                                                                                      \
    const TYPE *x = (const TYPE *)c.data + at;                                           \
    for (int64_t row = 0; row < rows; row++, x += c.stride_s, out += ld) {               \
      int64_t i = 0;                                                                     \
      for (; i + 16 <= c.d; i += 16) v16_store(out + i, READ(x + i));                    \
      for (; i < c.d; i++) out[i] = ONE(x[i]);                                           \
      for (; i < padded; i++) out[i] = 0.0f;                                             \
    }                                                                                    \
    return;                                                                              \
  }

/* Scales that are read at once: those of a few rows. */
#define OMNIC_SCALES 256

/* count scales from `place` on as f32. */
OMNIC_INLINE void omnic_read_scales(const omnic_cache *c, int64_t place, int64_t count, float *out) {
  int64_t i = 0;
  if (c->scale_type == OMNIC_F16)
    for (; i + 16 <= count; i += 16) v16_store(out + i, v16_from_half((const uint16_t *)c->scales + place + i));
  for (; i < count; i++) out[i] = omnic_scale_at(c, place + i);
}

/* Rows of codes, (code - zero) scale, whose groups fill registers: READ takes sixteen, PER of them to a byte. */
#define OMNIC_DECODE_CODES(TYPE, READ, PER)                                                             \
  {                                                                                                     \
    const TYPE *codes = (const TYPE *)c.data + at / (PER);                                              \
    int64_t stride = c.stride_s / (PER), few = step == groups ? OMNIC_SCALES / groups : 1;              \
    for (int64_t row = 0; row < rows; row += few) {                                                     \
      int64_t count = rows - row < few ? rows - row : few;                                              \
      const float *factor = scales;                                                                     \
      omnic_read_scales(&c, place, count * groups, scales);                                             \
      for (int64_t n = 0; n < count; n++, codes += stride, out += ld, place += step)                    \
        for (int64_t j = 0, i = 0; j < groups; j++, factor++) {                                         \
          v16 shift = v16_set(c.zeros ? (float)c.zeros[place + j] - offset : plain);                    \
          v16 scale = v16_set(*factor);                                                                 \
          for (int64_t last = i + c.group < c.d ? i + c.group : c.d; i < last; i += 16) {               \
            v16 x = READ(codes + i / (PER));                                                            \
            v16_store(out + i, v16_mul(shifted ? v16_sub(x, shift) : x, scale));                        \
          }                                                                                             \
        }                                                                                               \
    }                                                                                                   \
    return;                                                                                             \
  }

/* `rows` rows, one stride after another from element `at` on, as f32 rows `ld` apart, filled up with zeros to `padded`
 * numbers. */
OMNIC_STATIC void OMNIC_FN(decode_rows)(const omnic_cache *cache, int64_t at, int64_t rows, float *out, int64_t ld,
                                        int64_t padded) {
  const omnic_cache c = *cache;
  /* Plain numbers have no groups: of a program their length is 0. */
  int64_t groups = c.group > 0 ? omnic_groups(&c) : 0, place = at / c.d * groups, step = c.stride_s / c.d * groups;
  float plain = c.type == OMNIC_I8 ? 0.0f : 8.0f, offset = c.type == OMNIC_I8 ? 128.0f : 0.0f;
  int shifted = c.zeros || c.type == OMNIC_I4, full = c.group % 16 == 0 && c.d % 16 == 0 && groups <= OMNIC_SCALES;
  float scales[OMNIC_SCALES];
  if (c.type == OMNIC_F32) OMNIC_DECODE_PLAIN(float, v16_load, )
  if (c.type == OMNIC_F16) OMNIC_DECODE_PLAIN(uint16_t, v16_from_half, omnic_half)
  if (c.type == OMNIC_BF16) OMNIC_DECODE_PLAIN(uint16_t, v16_from_bfloat, omnic_bfloat)
  if (c.type == OMNIC_I8 && full) OMNIC_DECODE_CODES(int8_t, v16_from_i8, 1)
  if (c.type == OMNIC_I4 && full) OMNIC_DECODE_CODES(uint8_t, v16_from_u4, 2)
  for (int64_t row = 0; row < rows; row++, at += c.stride_s, out += ld, place += step)
    for (int64_t i = 0; i < padded; i++) {
      out[i] = 0.0f;
      if (i >= c.d) continue;
      float zero = c.zeros ? (float)c.zeros[place + i / c.group] - offset : plain;
      float code = c.type == OMNIC_I8 ? (float)((const int8_t *)c.data)[at + i]
                                      : (float)(((const uint8_t *)c.data)[(at + i) / 2] >> (4 * ((at + i) & 1)) & 15);
      out[i] = (code - zero) * omnic_scale_at(&c, place + i / c.group);
    }
}
