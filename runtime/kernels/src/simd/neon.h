/* The lanes as four registers of NEON. */
typedef struct {
  float32x4_t q[4];
} v16;

#define OMNIC_QUADS \
  OMNIC_UNROLL      \
  for (int i = 0; i < 4; i++)

OMNIC_INLINE v16 v16_set(float x) {
  v16 r;
  OMNIC_QUADS r.q[i] = vdupq_n_f32(x);
  return r;
}
OMNIC_INLINE v16 v16_load(const float *p) {
  v16 r;
  OMNIC_QUADS r.q[i] = vld1q_f32(p + 4 * i);
  return r;
}
OMNIC_INLINE void v16_store(float *p, v16 x) { OMNIC_QUADS vst1q_f32(p + 4 * i, x.q[i]); }
OMNIC_INLINE v16 v16_add(v16 a, v16 b) {
  OMNIC_QUADS a.q[i] = vaddq_f32(a.q[i], b.q[i]);
  return a;
}
OMNIC_INLINE v16 v16_sub(v16 a, v16 b) {
  OMNIC_QUADS a.q[i] = vsubq_f32(a.q[i], b.q[i]);
  return a;
}
OMNIC_INLINE v16 v16_mul(v16 a, v16 b) {
  OMNIC_QUADS a.q[i] = vmulq_f32(a.q[i], b.q[i]);
  return a;
}
OMNIC_INLINE v16 v16_div(v16 a, v16 b) {
  OMNIC_QUADS a.q[i] = vdivq_f32(a.q[i], b.q[i]);
  return a;
}
OMNIC_INLINE v16 v16_fma(v16 a, v16 b, v16 c) {
  OMNIC_QUADS c.q[i] = vfmaq_f32(c.q[i], a.q[i], b.q[i]);
  return c;
}
/* A comparison and a choice, for fmax of NEON gives a NaN where x86 gives the second number. */
OMNIC_INLINE v16 v16_max(v16 a, v16 b) {
  OMNIC_QUADS a.q[i] = vbslq_f32(vcgtq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]);
  return a;
}
OMNIC_INLINE v16 v16_min(v16 a, v16 b) {
  OMNIC_QUADS a.q[i] = vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]);
  return a;
}
OMNIC_INLINE v16 v16_abs(v16 a) {
  OMNIC_QUADS a.q[i] = vabsq_f32(a.q[i]);
  return a;
}
OMNIC_INLINE v16 v16_signed(v16 a, v16 b) {
  OMNIC_QUADS a.q[i] = vbslq_f32(vdupq_n_u32(0x80000000u), b.q[i], a.q[i]);
  return a;
}
OMNIC_INLINE v16 v16_if_less(v16 a, v16 b, v16 x, v16 y) {
  OMNIC_QUADS y.q[i] = vbslq_f32(vcltq_f32(a.q[i], b.q[i]), x.q[i], y.q[i]);
  return y;
}
OMNIC_INLINE v16 v16_round(v16 a) {
  OMNIC_QUADS a.q[i] = vrndnq_f32(a.q[i]);
  return a;
}
OMNIC_INLINE v16 v16_scale2(v16 x, v16 n) {
  OMNIC_QUADS {
    int32x4_t whole = vcvtq_s32_f32(n.q[i]), half = vshrq_n_s32(whole, 1), bias = vdupq_n_s32(127);
    int32x4_t first = vshlq_n_s32(vaddq_s32(half, bias), 23);
    int32x4_t second = vshlq_n_s32(vaddq_s32(vsubq_s32(whole, half), bias), 23);
    x.q[i] = vmulq_f32(vmulq_f32(x.q[i], vreinterpretq_f32_s32(first)), vreinterpretq_f32_s32(second));
  }
  return x;
}
OMNIC_INLINE float v16_sum(v16 x) {
  float32x4_t low = vaddq_f32(x.q[0], x.q[2]), high = vaddq_f32(x.q[1], x.q[3]);
  float32x4_t pairs = vpaddq_f32(low, high); /* 01 23 45 67 */
  float32x4_t fours = vpaddq_f32(pairs, pairs);
  return vgetq_lane_f32(fours, 0) + vgetq_lane_f32(fours, 1);
}
OMNIC_INLINE float v16_peak(v16 x) {
  float lane[16], r;
  v16_store(lane, x);
  r = lane[0];
  for (int i = 1; i < 16; i++) r = r > lane[i] ? r : lane[i];
  return r;
}
OMNIC_INLINE void v16_sum4(v16 a, v16 b, v16 c, v16 d, float *out) {
  float32x4_t pa = vpaddq_f32(vaddq_f32(a.q[0], a.q[2]), vaddq_f32(a.q[1], a.q[3]));
  float32x4_t pb = vpaddq_f32(vaddq_f32(b.q[0], b.q[2]), vaddq_f32(b.q[1], b.q[3]));
  float32x4_t pc = vpaddq_f32(vaddq_f32(c.q[0], c.q[2]), vaddq_f32(c.q[1], c.q[3]));
  float32x4_t pd = vpaddq_f32(vaddq_f32(d.q[0], d.q[2]), vaddq_f32(d.q[1], d.q[3]));
  vst1q_f32(out, vpaddq_f32(vpaddq_f32(pa, pb), vpaddq_f32(pc, pd)));
}
OMNIC_INLINE v16 v16_from_bytes(int8x16_t bytes) {
  int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
  v16 r;
  r.q[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)));
  r.q[1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(low)));
  r.q[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)));
  r.q[3] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)));
  return r;
}
OMNIC_INLINE v16 v16_from_i8(const int8_t *p) { return v16_from_bytes(vld1q_s8(p)); }
OMNIC_INLINE v16 v16_from_u4(const uint8_t *p) {
  uint8x8_t packed = vld1_u8(p);
  uint8x8_t low = vand_u8(packed, vdup_n_u8(15)), high = vshr_n_u8(packed, 4);
  return v16_from_bytes(vreinterpretq_s8_u8(vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high))));
}
OMNIC_INLINE v16 v16_from_half(const uint16_t *p) {
  v16 r;
  OMNIC_QUADS r.q[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
  return r;
}
OMNIC_INLINE v16 v16_from_bfloat(const uint16_t *p) {
  v16 r;
  OMNIC_QUADS r.q[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
  return r;
}
OMNIC_INLINE v16 v16_power(v16 p, v16 z) {
  OMNIC_QUADS p.q[i] = vreinterpretq_f32_s32(
      vaddq_s32(vreinterpretq_s32_f32(p.q[i]), vshlq_n_s32(vreinterpretq_s32_f32(z.q[i]), 23)));
  return p;
}
OMNIC_INLINE void v16_turned(const float *p, int64_t stride, v16 *out) {
  OMNIC_QUADS {
    OMNIC_UNROLL
    for (int j = 0; j < 8; j += 4) {
      const float *row = p + 4 * i * stride + j;
      float32x4_t a = vld1q_f32(row), b = vld1q_f32(row + stride);
      float32x4_t c = vld1q_f32(row + 2 * stride), d = vld1q_f32(row + 3 * stride);
      float64x2_t ab = vreinterpretq_f64_f32(vtrn1q_f32(a, b)), cd = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
      out[j].q[i] = vreinterpretq_f32_f64(vtrn1q_f64(ab, cd));
      out[j + 2].q[i] = vreinterpretq_f32_f64(vtrn2q_f64(ab, cd));
      ab = vreinterpretq_f64_f32(vtrn2q_f32(a, b)), cd = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
      out[j + 1].q[i] = vreinterpretq_f32_f64(vtrn1q_f64(ab, cd));
      out[j + 3].q[i] = vreinterpretq_f32_f64(vtrn2q_f64(ab, cd));
    }
  }
}
OMNIC_INLINE v16 v16_set_pair(const float *p) {
  v16 r;
  float32x2_t pair = vld1_f32(p);
  OMNIC_QUADS r.q[i] = vcombine_f32(pair, pair);
  return r;
}
OMNIC_INLINE void v16_store_pairs(float *p, v16 x) {
  vst1q_f32(p, vpaddq_f32(x.q[0], x.q[1]));
  vst1q_f32(p + 4, vpaddq_f32(x.q[2], x.q[3]));
}
