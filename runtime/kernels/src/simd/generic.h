/* The lanes in plain C. */
typedef struct {
  float lane[16];
} v16;

#define OMNIC_LANES for (int i = 0; i < 16; i++)

OMNIC_INLINE v16 v16_set(float x) {
  v16 r;
  OMNIC_LANES r.lane[i] = x;
  return r;
}
OMNIC_INLINE v16 v16_load(const float *p) {
  v16 r;
  OMNIC_LANES r.lane[i] = p[i];
  return r;
}
OMNIC_INLINE void v16_store(float *p, v16 x) { OMNIC_LANES p[i] = x.lane[i]; }
OMNIC_INLINE v16 v16_add(v16 a, v16 b) {
  OMNIC_LANES a.lane[i] += b.lane[i];
  return a;
}
OMNIC_INLINE v16 v16_sub(v16 a, v16 b) {
  OMNIC_LANES a.lane[i] -= b.lane[i];
  return a;
}
OMNIC_INLINE v16 v16_mul(v16 a, v16 b) {
  OMNIC_LANES a.lane[i] *= b.lane[i];
  return a;
}
OMNIC_INLINE v16 v16_div(v16 a, v16 b) {
  OMNIC_LANES a.lane[i] /= b.lane[i];
  return a;
}
/* a b + c, rounded once. */
OMNIC_INLINE v16 v16_fma(v16 a, v16 b, v16 c) {
  OMNIC_LANES c.lane[i] = fmaf(a.lane[i], b.lane[i], c.lane[i]);
  return c;
}
/* The second where they are equal or one is no number, as x86 has it. */
OMNIC_INLINE v16 v16_max(v16 a, v16 b) {
  OMNIC_LANES a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
OMNIC_INLINE v16 v16_min(v16 a, v16 b) {
  OMNIC_LANES a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
OMNIC_INLINE v16 v16_abs(v16 a) {
  OMNIC_LANES a.lane[i] = fabsf(a.lane[i]);
  return a;
}
/* The magnitude of a with the sign of b. */
OMNIC_INLINE v16 v16_signed(v16 a, v16 b) {
  OMNIC_LANES a.lane[i] = copysignf(a.lane[i], b.lane[i]);
  return a;
}
/* x where a < b, else y. */
OMNIC_INLINE v16 v16_if_less(v16 a, v16 b, v16 x, v16 y) {
  OMNIC_LANES y.lane[i] = a.lane[i] < b.lane[i] ? x.lane[i] : y.lane[i];
  return y;
}
/* The whole number nearest to |x| < 2^22, half to even. */
OMNIC_INLINE v16 v16_round(v16 a) {
  OMNIC_LANES a.lane[i] = (a.lane[i] + 0x1.8p23f) - 0x1.8p23f;
  return a;
}
/* x 2^n for whole n in -252..254, in two steps. */
OMNIC_INLINE v16 v16_scale2(v16 x, v16 n) {
  OMNIC_LANES {
    int32_t whole = (int32_t)n.lane[i], half = whole >> 1;
    uint32_t first = (uint32_t)(half + 127) << 23, second = (uint32_t)(whole - half + 127) << 23;
    float a, b;
    memcpy(&a, &first, 4);
    memcpy(&b, &second, 4);
    x.lane[i] = x.lane[i] * a * b;
  }
  return x;
}
/* The sum of the lanes: l + 8, then neighbours, then neighbours of pairs, then the two halves. */
OMNIC_INLINE float v16_sum(v16 x) {
  float t[8];
  for (int i = 0; i < 8; i++) t[i] = x.lane[i] + x.lane[i + 8];
  return ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
}
OMNIC_INLINE float v16_peak(v16 x) {
  float r = x.lane[0];
  for (int i = 1; i < 16; i++) r = r > x.lane[i] ? r : x.lane[i];
  return r;
}
/* Four sums at once. */
OMNIC_INLINE void v16_sum4(v16 a, v16 b, v16 c, v16 d, float *out) {
  out[0] = v16_sum(a), out[1] = v16_sum(b), out[2] = v16_sum(c), out[3] = v16_sum(d);
}
OMNIC_INLINE v16 v16_from_i8(const int8_t *p) {
  v16 r;
  OMNIC_LANES r.lane[i] = (float)p[i];
  return r;
}
/* Sixteen codes of 4 bits, the earlier one low: 0..15. */
OMNIC_INLINE v16 v16_from_u4(const uint8_t *p) {
  v16 r;
  OMNIC_LANES r.lane[i] = (float)(p[i >> 1] >> (4 * (i & 1)) & 15);
  return r;
}
OMNIC_INLINE float omnic_half(uint16_t bits);
OMNIC_INLINE v16 v16_from_half(const uint16_t *p) {
  v16 r;
  OMNIC_LANES r.lane[i] = omnic_half(p[i]);
  return r;
}
OMNIC_INLINE v16 v16_from_bfloat(const uint16_t *p) {
  v16 r;
  OMNIC_LANES {
    uint32_t word = (uint32_t)p[i] << 16;
    memcpy(&r.lane[i], &word, 4);
  }
  return r;
}
/* p 2^n of a normal p and result, where n is what the low bits of z = n + 1.5 2^23 count. */
OMNIC_INLINE v16 v16_power(v16 p, v16 z) {
  OMNIC_LANES {
    uint32_t word, count;
    memcpy(&word, &p.lane[i], 4);
    memcpy(&count, &z.lane[i], 4);
    word += count << 23;
    memcpy(&p.lane[i], &word, 4);
  }
  return p;
}
/* Eight numbers of each of sixteen rows, turned: lane l of out[i] is number i of row l. */
OMNIC_INLINE void v16_turned(const float *p, int64_t stride, v16 *out) {
  OMNIC_LANES for (int j = 0; j < 8; j++) out[j].lane[i] = p[i * stride + j];
}
/* Two numbers in turn. */
OMNIC_INLINE v16 v16_set_pair(const float *p) {
  v16 r;
  OMNIC_LANES r.lane[i] = p[i & 1];
  return r;
}
/* The sums of neighbours, eight. */
OMNIC_INLINE void v16_store_pairs(float *p, v16 x) {
  for (int i = 0; i < 8; i++) p[i] = x.lane[2 * i] + x.lane[2 * i + 1];
}
