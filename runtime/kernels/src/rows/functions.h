/* exp, tanh, erf in f32 and sin, cos in f64, the same bits in every level.
 *
 * The polynomials were fitted by the least largest relative error (Lawson's method).  Largest errors over their ranges,
 * against f64, in units of the last place of the result: exp 1.0, tanh 1.6, erf 1.3 (tests/runtime/kernels/test_rows.py
 * holds them).
 */

/* e^r for |r| <= ln(2) / 2. */
OMNIC_INLINE v16 omnic_exp_near(v16 r) {
  v16 p = v16_set(0x1.9f0816p-13f);
  p = v16_fma(p, r, v16_set(0x1.6d8db2p-10f));
  p = v16_fma(p, r, v16_set(0x1.111272p-7f));
  p = v16_fma(p, r, v16_set(0x1.55548ep-5f));
  p = v16_fma(p, r, v16_set(0x1.555554p-3f));
  p = v16_fma(p, r, v16_set(0.5f));
  p = v16_fma(v16_mul(r, r), p, r);
  return v16_add(p, v16_set(1.0f));
}

/* x - n ln(2) of a whole n, in two parts of ln(2). */
OMNIC_INLINE v16 omnic_exp_rest(v16 x, v16 n) {
  v16 minus = v16_sub(v16_zero(), n);
  return v16_fma(minus, v16_set(0x1.7f7d1cp-20f), v16_fma(minus, v16_set(0x1.62e4p-1f), x));
}

/* e^x; 0 below -87.33 (where the result would leave the normal range), infinity above 88.73. */
OMNIC_INLINE v16 v16_exp(v16 x) {
  v16 low = v16_set(-87.33654f), t = v16_min(v16_max(x, low), v16_set(89.0f));
  v16 n = v16_round(v16_mul(t, v16_set(0x1.715476p+0f)));
  v16 p = v16_scale2(omnic_exp_near(omnic_exp_rest(t, n)), n);
  return v16_if_less(x, low, v16_zero(), p);
}

/* e^x of x <= 0, with fewer steps, since the result is below 2: 0 below -86. */
OMNIC_INLINE v16 omnic_exp_below(v16 x) {
  v16 low = v16_set(-86.0f), t = v16_max(x, low), whole = v16_set(0x1.8p23f);
  v16 z = v16_fma(t, v16_set(0x1.715476p+0f), whole);
  v16 p = v16_power(omnic_exp_near(omnic_exp_rest(t, v16_sub(z, whole))), z);
  return v16_if_less(x, low, v16_zero(), p);
}

OMNIC_INLINE v16 v16_sigmoid(v16 x) {
  v16 one = v16_set(1.0f);
  return v16_div(one, v16_add(one, v16_exp(v16_sub(v16_zero(), x))));
}

OMNIC_INLINE v16 v16_tanh(v16 x) {
  v16 size = v16_abs(x), one = v16_set(1.0f), z = v16_mul(x, x);
  v16 p = v16_set(-0x1.7432e8p-8f);
  p = v16_fma(p, z, v16_set(0x1.51ceacp-6f));
  p = v16_fma(p, z, v16_set(-0x1.b8305ep-5f));
  p = v16_fma(p, z, v16_set(0x1.1106d8p-3f));
  p = v16_fma(p, z, v16_set(-0x1.555532p-2f));
  v16 near = v16_fma(v16_mul(p, z), x, x);
  v16 e = v16_exp(v16_add(size, size));
  v16 far = v16_sub(one, v16_div(v16_set(2.0f), v16_add(e, one)));
  return v16_if_less(size, v16_set(0.625f), near, v16_signed(far, x));
}

OMNIC_INLINE v16 v16_erf(v16 x) {
  v16 size = v16_abs(x), z = v16_mul(x, x);
  v16 p = v16_set(0x1.5e062cp-14f);
  p = v16_fma(p, z, v16_set(-0x1.aaa2d6p-11f));
  p = v16_fma(p, z, v16_set(0x1.54d42ap-8f));
  p = v16_fma(p, z, v16_set(-0x1.b80ff2p-6f));
  p = v16_fma(p, z, v16_set(0x1.ce2e1cp-4f));
  p = v16_fma(p, z, v16_set(-0x1.812744p-2f));
  p = v16_fma(p, z, v16_set(0x1.06eba8p-3f));
  v16 near = v16_fma(p, x, x);
  /* erfc(t) = exp(-t q(t)); from 4 on erf is 1 in f32. */
  v16 t = v16_min(size, v16_set(4.0f)), q = v16_set(0x1.78dd8ep-17f);
  q = v16_fma(q, t, v16_set(-0x1.527c6ap-12f));
  q = v16_fma(q, t, v16_set(0x1.dd6cd8p-9f));
  q = v16_fma(q, t, v16_set(-0x1.85515ep-6f));
  q = v16_fma(q, t, v16_set(0x1.b32574p-4f));
  q = v16_fma(q, t, v16_set(0x1.45328ep-1f));
  q = v16_fma(q, t, v16_set(0x1.20ef1cp+0f));
  v16 far = v16_sub(v16_set(1.0f), v16_exp(v16_sub(v16_zero(), v16_mul(q, t))));
  return v16_if_less(size, v16_set(0.92f), near, v16_signed(far, x));
}

/* cos and sin of count <= OMNIC_ANGLES angles, in f64, each times `magnitude` and rounded to f32.
 * Whole quarter turns are taken off in three parts of pi/2 (exact for |angle| < 2^19 quarter turns, good to 1e-13 for
 * 2^31); the series end at r^13 and r^14, 2e-14 at pi/4.  One loop without branches, so that compilers use lanes. */
#define OMNIC_ANGLES 64
OMNIC_INLINE void omnic_angles(const double *angle, int64_t count, double magnitude, float *cosine, float *sine) {
  for (int64_t i = 0; i < count; i++) {
    const double whole = 0x1.8p52;
    double x = angle[i], shifted = fma(x, 0x1.45f306dc9c883p-1, whole), n = shifted - whole;
    double r = fma(-n, 0x1.921fb544p+0, x);
    r = fma(-n, 0x1.0b4611a6p-34, r);
    r = fma(-n, 0x1.3198a2e037073p-69, r);
    uint64_t word;
    memcpy(&word, &shifted, 8);
    double z = r * r, s = 1.0 / 6227020800.0, c = -1.0 / 87178291200.0;
    s = fma(s, z, -1.0 / 39916800.0);
    s = fma(s, z, 1.0 / 362880.0);
    s = fma(s, z, -1.0 / 5040.0);
    s = fma(s, z, 1.0 / 120.0);
    s = fma(s, z, -1.0 / 6.0);
    s = fma(s * z, r, r);
    c = fma(c, z, 1.0 / 479001600.0);
    c = fma(c, z, -1.0 / 3628800.0);
    c = fma(c, z, 1.0 / 40320.0);
    c = fma(c, z, -1.0 / 720.0);
    c = fma(c, z, 1.0 / 24.0);
    c = fma(c, z, -0.5);
    c = fma(c, z, 1.0);
    /* Odd quarters exchange the two; sine turns its sign in quarters 2 and 3, cosine in 1 and 2. */
    uint64_t odd = 0 - (word & 1), sw, cw, sine_sign = (word & 2) << 62, cosine_sign = ((word + 1) & 2) << 62;
    memcpy(&sw, &s, 8);
    memcpy(&cw, &c, 8);
    uint64_t swap = (sw ^ cw) & odd;
    sw ^= swap ^ sine_sign;
    cw ^= swap ^ cosine_sign;
    memcpy(&s, &sw, 8);
    memcpy(&c, &cw, 8);
    sine[i] = (float)(s * magnitude);
    cosine[i] = (float)(c * magnitude);
  }
}

/* The functions of act and gated_act. */
OMNIC_INLINE v16 omnic_activation(v16 x, int32_t kind) {
  v16 zero = v16_zero(), half = v16_mul(x, v16_set(0.5f));
  switch (kind) {
    case OMNIC_SILU: return v16_mul(x, v16_sigmoid(x));
    case OMNIC_GELU: return v16_fma(half, v16_erf(v16_mul(x, v16_set(0x1.6a09e6p-1f))), half);
    case OMNIC_GELU_TANH: {
      v16 cube = v16_mul(v16_mul(x, x), x);
      v16 inner = v16_mul(v16_fma(cube, v16_set(0.044715f), x), v16_set(0x1.988454p-1f));
      return v16_fma(half, v16_tanh(inner), half);
    }
    case OMNIC_RELU2: x = v16_max(x, zero); return v16_mul(x, x);
    default: return v16_max(x, zero);
  }
}
