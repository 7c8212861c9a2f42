/* rope: the pairs of a row turned by angles that are computed in f64, once for all heads of a token. */

typedef struct {
  int64_t heads, tokens, d, dims;
  const double *freq;
  double magnitude;
  int32_t interleaved;
  const int64_t *positions;
  omnic_view x, y;
} omnic_rope_job;

/* Turn pairs first .. first + count - 1 of one row. */
OMNIC_INLINE void omnic_turn(const omnic_rope_job *job, const float *x, float *y, int64_t first, int64_t count,
                             const float *cosine, const float *sine) {
  if (job->interleaved) {
    for (int64_t i = 0; i < count; i++) {
      float a = x[2 * (first + i)], b = x[2 * (first + i) + 1];
      y[2 * (first + i)] = fmaf(-b, sine[i], a * cosine[i]);
      y[2 * (first + i) + 1] = fmaf(b, cosine[i], a * sine[i]);
    }
    return;
  }
  const float *low = x + first, *high = low + job->dims / 2;
  float *to_low = y + first, *to_high = to_low + job->dims / 2;
  for (int64_t i = 0; i < count; i += 16) {
    int64_t n = count - i;
    v16 a = v16_load_part(low + i, n), b = v16_load_part(high + i, n);
    v16 c = v16_load_part(cosine + i, n), s = v16_load_part(sine + i, n);
    v16_store_part(to_low + i, v16_fma(v16_sub(v16_zero(), b), s, v16_mul(a, c)), n);
    v16_store_part(to_high + i, v16_fma(b, c, v16_mul(a, s)), n);
  }
}

OMNIC_STATIC void OMNIC_FN(rope_rows)(const void *arg, int64_t from, int64_t to) {
  const omnic_rope_job *job = arg;
  double angle[OMNIC_ANGLES];
  float cosine[OMNIC_ANGLES], sine[OMNIC_ANGLES];
  int64_t pairs = job->dims / 2;
  for (int64_t row = from; row < to; row++) {
    int64_t b = row / job->tokens, t = row % job->tokens;
    double position = (double)job->positions[row];
    for (int64_t first = 0; first < pairs; first += OMNIC_ANGLES) {
      int64_t count = pairs - first < OMNIC_ANGLES ? pairs - first : OMNIC_ANGLES;
      for (int64_t i = 0; i < count; i++) angle[i] = position * job->freq[first + i];
      omnic_angles(angle, count, job->magnitude, cosine, sine);
      for (int64_t h = 0; h < job->heads; h++)
        omnic_turn(job, job->x.data + b * job->x.stride_b + h * job->x.stride_h + t * job->x.stride_t,
                   job->y.data + b * job->y.stride_b + h * job->y.stride_h + t * job->y.stride_t, first, count, cosine,
                   sine);
    }
    for (int64_t h = 0; h < job->heads && job->x.data != job->y.data; h++)
      memcpy(job->y.data + b * job->y.stride_b + h * job->y.stride_h + t * job->y.stride_t + job->dims,
             job->x.data + b * job->x.stride_b + h * job->x.stride_h + t * job->x.stride_t + job->dims,
             (size_t)(job->d - job->dims) * sizeof(float));
  }
}

OMNIC_STATIC void OMNIC_FN(rope)(const omnic_call *call, int64_t batch, int64_t heads, int64_t tokens, int64_t d,
                                 int64_t dims, const double *freq, double magnitude, int32_t interleaved,
                                 const int64_t *positions, omnic_view x, omnic_view y) {
  omnic_rope_job job = {heads, tokens, d, dims, freq, magnitude, interleaved, positions, x, y};
  OMNIC_FN(share)(call, OMNIC_FN(rope_rows), &job, batch * tokens, heads * d + 8 * dims);
}
