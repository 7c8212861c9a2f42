/* The 16 columns of a panel in four vectors of 128 bits: NEON, with sdot where it is there. */

typedef int32x4_t cols_i; /* 4 columns of 4 bytes, or 4 whole numbers */
typedef float32x4_t cols_f;
#define COLS 4
#define COL_VECTORS 4
#define CODE_ROWS 4
#define CODE_PANELS 4        /* panels in flight for a single row, at most */
#define PANELS_IN_FLIGHT 2
#define BYTES_AHEAD 2048
#define VALUE_ROWS 4
#define VALUE_PANELS 2

#define COLS_BYTES(v) vreinterpretq_u8_s32(v)
#define COLS_OF_BYTES(v) vreinterpretq_s32_u8(v)
OMNIC_INLINE cols_i cols_load(const void *p) { return COLS_OF_BYTES(vld1q_u8((const uint8_t *)p)); }
OMNIC_INLINE void cols_store(void *p, cols_i v) { vst1q_u8((uint8_t *)p, COLS_BYTES(v)); }
OMNIC_INLINE cols_i cols_low(cols_i v) { return COLS_OF_BYTES(vandq_u8(COLS_BYTES(v), vdupq_n_u8(15))); }
OMNIC_INLINE cols_i cols_high(cols_i v) { return COLS_OF_BYTES(vshrq_n_u8(COLS_BYTES(v), 4)); }
OMNIC_INLINE cols_i cols_pair(cols_i v, int place) {
  return COLS_OF_BYTES(vandq_u8(vshlq_u8(COLS_BYTES(v), vdupq_n_s8((int8_t)(-2 * place))), vdupq_n_u8(3)));
}
/* The same four codes of x for every column. */
OMNIC_INLINE cols_i cols_spread(const void *x) {
  int32_t four;
  memcpy(&four, x, 4);
  return vdupq_n_s32(four);
}
OMNIC_INLINE cols_i cols_zero(void) { return vdupq_n_s32(0); }
OMNIC_INLINE cols_i cols_whole(int32_t value) { return vdupq_n_s32(value); }
OMNIC_INLINE cols_i cols_add(cols_i a, cols_i b) { return vaddq_s32(a, b); }
OMNIC_INLINE cols_i cols_mul(cols_i a, cols_i b) { return vmulq_s32(a, b); }

/* Zero points of 4 columns, from vector v of 16 bytes. */
OMNIC_INLINE cols_i cols_zeros(const uint8_t *zeros, int v) {
  const int32_t four[4] = {zeros[4 * v], zeros[4 * v + 1], zeros[4 * v + 2], zeros[4 * v + 3]};
  return vld1q_s32(four);
}
OMNIC_INLINE cols_i cols_zeros_of(int zero) { return vdupq_n_s32(zero); }
OMNIC_INLINE cols_i cols_byte_zeros(const uint8_t *zeros, int v) {
  return vsubq_s32(cols_zeros(zeros, v), vdupq_n_s32(128));
}

/* Four products of bytes in every column. */
OMNIC_INLINE cols_i cols_dot(cols_i acc, cols_i codes, cols_i x) {
  int8x16_t a = vreinterpretq_s8_s32(codes), b = vreinterpretq_s8_s32(x);
#if defined(OMNIC_HAS_DOTPROD)
  return vdotq_s32(acc, a, b);
#else
  /* Two products at a time fit 16 bits: at most 2 * 128 * 127. */
  int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_s8(vget_high_s8(a), vget_high_s8(b));
  return vpadalq_s16(acc, vpaddq_s16(low, high));
#endif
}
/* A segment starts at minus zero times the sum of x. */
OMNIC_INLINE cols_i cols_start(const int16_t *sums, cols_i zeros) { return vmulq_n_s32(zeros, sums[0] + sums[1]); }
OMNIC_INLINE cols_i cols_step(cols_i acc, cols_i codes, cols_i x) { return cols_dot(acc, codes, x); }
OMNIC_INLINE cols_i cols_end(cols_i acc) { return acc; }
/* Steps lie as whole numbers. */
OMNIC_INLINE cols_i cols_step_one(void) { return vdupq_n_s32(1); }
OMNIC_INLINE cols_i cols_whole_step(cols_i step) { return step; }
OMNIC_INLINE cols_i cols_stepped(cols_i acc, cols_i step) { return vmulq_s32(acc, step); }
/* Codes of 8 bits with their sign. */
#define COLS_BYTE_ZERO 0
OMNIC_INLINE cols_i cols_flip(cols_i codes) { return COLS_OF_BYTES(veorq_u8(COLS_BYTES(codes), vdupq_n_u8(0x80))); }
OMNIC_INLINE cols_i cols_byte(cols_i codes) { return codes; }
OMNIC_INLINE cols_i cols_byte_step(cols_i acc, cols_i codes, cols_i x) { return cols_dot(acc, codes, x); }

#if defined(OMNIC_HAS_I8MM)
/* smmla multiplies two rows by two columns, eight numbers of each, so unpacked codes lie as [4][8 pairs of columns][2][8]
 * for 32 numbers: the first four numbers of a column and its next four, side by side. */
#define COLS_PAIRED 1
OMNIC_INLINE void cols_pair_store(uint8_t *eight, int v, cols_i first, cols_i second) {
  cols_store(eight + v * 32, vzip1q_s32(first, second));
  cols_store(eight + v * 32 + 16, vzip2q_s32(first, second));
}
/* Add 32 numbers of four rows times 16 columns. */
OMNIC_INLINE void cols_paired_step(cols_i (*acc)[CODE_PANELS][COL_VECTORS], const uint8_t *lines, const int8_t *const *x,
                                   int64_t at) {
  int32x4_t pair[CODE_ROWS / 2][8];
  OMNIC_UNROLL for (int r = 0; r < CODE_ROWS / 2; r++) OMNIC_UNROLL for (int c = 0; c < 8; c++) pair[r][c] = vdupq_n_s32(0);
  OMNIC_UNROLL for (int q = 0; q < 4; q++) {
    int8x16_t two[CODE_ROWS / 2];
    OMNIC_UNROLL for (int r = 0; r < CODE_ROWS / 2; r++)
      two[r] = vcombine_s8(vld1_s8(x[2 * r] + at + q * 8), vld1_s8(x[2 * r + 1] + at + q * 8));
    OMNIC_UNROLL for (int c = 0; c < 8; c++) {
      int8x16_t codes = vreinterpretq_s8_s32(cols_load(lines + q * 128 + c * 16));
      OMNIC_UNROLL for (int r = 0; r < CODE_ROWS / 2; r++) pair[r][c] = vmmlaq_s32(pair[r][c], two[r], codes);
    }
  }
  OMNIC_UNROLL for (int r = 0; r < CODE_ROWS / 2; r++) OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) {
    int64x2_t a = vreinterpretq_s64_s32(pair[r][2 * v]), b = vreinterpretq_s64_s32(pair[r][2 * v + 1]);
    acc[2 * r][0][v] = vaddq_s32(acc[2 * r][0][v], vreinterpretq_s32_s64(vzip1q_s64(a, b)));
    acc[2 * r + 1][0][v] = vaddq_s32(acc[2 * r + 1][0][v], vreinterpretq_s32_s64(vzip2q_s64(a, b)));
  }
}
#endif

OMNIC_INLINE cols_f cols_to_f(cols_i v) { return vcvtq_f32_s32(v); }
OMNIC_INLINE cols_i cols_bits(cols_f v) { return vreinterpretq_s32_f32(v); }
OMNIC_INLINE cols_f cols_of_bits(cols_i v) { return vreinterpretq_f32_s32(v); }
OMNIC_INLINE cols_f cols_number(float value) { return vdupq_n_f32(value); }
OMNIC_INLINE cols_f cols_fma(cols_f a, cols_f b, cols_f c) { return vfmaq_f32(c, a, b); }
OMNIC_INLINE cols_f cols_times(cols_f a, cols_f b) { return vmulq_f32(a, b); }
OMNIC_INLINE cols_f cols_plus(cols_f a, cols_f b) { return vaddq_f32(a, b); }
OMNIC_INLINE cols_f cols_get(const float *p) { return vld1q_f32(p); }
OMNIC_INLINE void cols_put(float *p, cols_f v) { vst1q_f32(p, v); }
/* Vector v of the 16 numbers at `index` of an array of a plain type. */
OMNIC_INLINE cols_f cols_plain(const void *data, int32_t type, int64_t index, int v) {
  if (type == OMNIC_F32) return vld1q_f32((const float *)data + index + 4 * v);
  uint16x4_t half = vld1_u16((const uint16_t *)data + index + 4 * v);
  if (type == OMNIC_F16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
  return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}
/* Vector v of the 16 steps of an S4 group. */
OMNIC_INLINE cols_i cols_steps(const uint8_t *eight, int v) {
  uint8x8_t bytes = vld1_u8(eight);
  uint16x8_t steps = vmovl_u8(v < 2 ? vand_u8(bytes, vdup_n_u8(15)) : vshr_n_u8(bytes, 4));
  return vreinterpretq_s32_u32(vmovl_u16(v % 2 ? vget_high_u16(steps) : vget_low_u16(steps)));
}
/* Byte j (0..3) of every column, as a number. */
OMNIC_INLINE cols_f cols_code(cols_i codes, int j) {
  uint32x4_t bytes = vshlq_u32(vreinterpretq_u32_s32(codes), vdupq_n_s32(-8 * j));
  return vcvtq_f32_u32(vandq_u32(bytes, vdupq_n_u32(255)));
}
