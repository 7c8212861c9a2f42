/* Rows of a cache: where they lie, and numbers rounded to the cache's type (decode.h reads them back). */

/* The element at which token `token` of row b and head g begins. */
OMNIC_INLINE int64_t omnic_place(const omnic_cache *c, int64_t b, int64_t g, int64_t token) {
  int64_t slot = c->ring ? token % c->slots : token;
  if (c->blocks) slot = (int64_t)c->blocks[b * c->blocks_b + slot / c->block] * c->block + slot % c->block;
  return b * c->stride_b + g * c->stride_g + slot * c->stride_s;
}

/* Tokens from `token` on that lie one stride after another, at most `most`. */
OMNIC_INLINE int64_t omnic_run(const omnic_cache *c, int64_t token, int64_t most) {
  int64_t slot = c->ring ? token % c->slots : token, run = c->slots - slot;
  if (c->blocks && c->block - slot % c->block < run) run = c->block - slot % c->block;
  return run < most ? run : most;
}

OMNIC_INLINE int64_t omnic_groups(const omnic_cache *c) { return (c->d + c->group - 1) / c->group; }

OMNIC_INLINE float omnic_scale_at(const omnic_cache *c, int64_t i) {
  return c->scale_type == OMNIC_F16 ? omnic_half(((const uint16_t *)c->scales)[i]) : ((const float *)c->scales)[i];
}

/* The nearest whole number, half to even, of |x| < 2^22 (larger ones are clamped by who asks). */
OMNIC_INLINE float omnic_nearest(float x) {
  if (x > 65536.0f) return 65536.0f;
  if (x < -65536.0f) return -65536.0f;
  return (x + 0x1.8p23f) - 0x1.8p23f;
}
OMNIC_INLINE float omnic_clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

/* Codes and scale of numbers x[0..n), one group (the rules of omnic.ir.packing: f32 divisions, half to even). */
OMNIC_INLINE void omnic_quantise_group(const omnic_cache *c, const float *x, int64_t n, int64_t at, int64_t first,
                                       int64_t place) {
  float low = 0.0f, high = 0.0f;
  for (int64_t i = 0; i < n; i++) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  int wide = c->type == OMNIC_I8;
  float peak = wide ? 127.0f : 7.0f, levels = wide ? 255.0f : 15.0f, offset = wide ? 128.0f : 8.0f;
  float most = -low > high ? -low : high;
  float value = c->zeros ? (high - low) / levels : most / peak, scale = value;
  if (c->scale_type == OMNIC_F16) {
    uint16_t half = omnic_to_half(value);
    if (half >= 0x7c00u) half = 0x7bffu; /* beyond f16: its largest number, so that nothing becomes infinite */
    ((uint16_t *)c->scales)[place] = half;
    scale = omnic_half(half);
  } else {
    ((float *)c->scales)[place] = value;
  }
  float divisor = scale > 0.0f ? scale : 1.0f, zero = 0.0f;
  if (c->zeros) {
    zero = omnic_clamp(omnic_nearest(-low / divisor), 0.0f, levels);
    c->zeros[place] = (uint8_t)zero;
  }
  for (int64_t i = 0; i < n; i++) {
    float code;
    if (c->zeros)
      code = omnic_clamp(omnic_nearest(x[i] / divisor) + zero, 0.0f, levels) - offset;
    else
      code = scale > 0.0f ? omnic_clamp(omnic_nearest(x[i] / divisor), -peak - 1.0f, peak) : 0.0f;
    if (wide) {
      ((int8_t *)c->data)[at + first + i] = (int8_t)code;
    } else {
      uint8_t *byte = (uint8_t *)c->data + (at + first + i) / 2, nibble = (uint8_t)((int)code + 8);
      *byte = (first + i) & 1 ? (uint8_t)((*byte & 0x0f) | nibble << 4) : (uint8_t)((*byte & 0xf0) | nibble);
    }
  }
}

/* Round x[0..d) into the row at `at`. */
OMNIC_INLINE void omnic_encode_row(const omnic_cache *c, int64_t at, const float *x) {
  int64_t d = c->d;
  if (c->type == OMNIC_F32) {
    memcpy((float *)c->data + at, x, (size_t)d * sizeof *x);
  } else if (c->type == OMNIC_F16) {
    for (int64_t i = 0; i < d; i++) ((uint16_t *)c->data)[at + i] = omnic_to_half(x[i]);
  } else if (c->type == OMNIC_BF16) {
    for (int64_t i = 0; i < d; i++) ((uint16_t *)c->data)[at + i] = omnic_to_bfloat(x[i]);
  } else {
    int64_t groups = omnic_groups(c), place = at / d * groups;
    for (int64_t j = 0; j < groups; j++) {
      int64_t first = j * c->group, n = d - first < c->group ? d - first : c->group;
      omnic_quantise_group(c, x + first, n, at, first, place + j);
    }
  }
}
