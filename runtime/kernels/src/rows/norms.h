/* rms_norm, layer_norm, softmax, topk: row by row. */

typedef struct {
  const float *x, *weight, *bias;
  float *y;
  int64_t ldx, ldy, d;
  float eps;
} omnic_norm_job;

OMNIC_STATIC void OMNIC_FN(rms_rows)(const void *arg, int64_t first, int64_t last) {
  const omnic_norm_job *job = arg;
  int64_t d = job->d;
  for (int64_t m = first; m < last; m++) {
    const float *x = job->x + m * job->ldx;
    float *y = job->y + m * job->ldy;
    v16 sum = v16_zero();
    for (int64_t i = 0; i < d; i += 16) {
      v16 v = v16_load_part(x + i, d - i);
      sum = v16_fma(v, v, sum);
    }
    v16 factor = v16_set(1.0f / sqrtf(v16_sum(sum) / (float)d + job->eps));
    for (int64_t i = 0; i < d; i += 16) {
      v16 v = v16_mul(v16_load_part(x + i, d - i), factor);
      if (job->weight) v = v16_mul(v, v16_load_part(job->weight + i, d - i));
      v16_store_part(y + i, v, d - i);
    }
  }
}

OMNIC_STATIC void OMNIC_FN(rms_norm)(const omnic_call *call, const float *x, int64_t m, int64_t ldx, int64_t d,
                                     const float *weight, float eps, float *y, int64_t ldy) {
  omnic_norm_job job = {x, weight, NULL, y, ldx, ldy, d, eps};
  OMNIC_FN(share)(call, OMNIC_FN(rms_rows), &job, m, d);
}

OMNIC_STATIC void OMNIC_FN(layer_rows)(const void *arg, int64_t first, int64_t last) {
  const omnic_norm_job *job = arg;
  int64_t d = job->d;
  for (int64_t m = first; m < last; m++) {
    const float *x = job->x + m * job->ldx;
    float *y = job->y + m * job->ldy;
    v16 sum = v16_zero();
    for (int64_t i = 0; i < d; i += 16) sum = v16_add(sum, v16_load_part(x + i, d - i));
    float mean = v16_sum(sum) / (float)d;
    v16 middle = v16_set(mean);
    sum = v16_zero();
    for (int64_t i = 0; i < d; i += 16) {
      v16 v = v16_sub(v16_load_part(x + i, d - i), middle);
      if (d - i < 16) { /* what fills up the last lanes is not of the row */
        float part[16] = {0};
        v16_store_part(part, v, d - i);
        v = v16_load(part);
      }
      sum = v16_fma(v, v, sum);
    }
    v16 factor = v16_set(1.0f / sqrtf(v16_sum(sum) / (float)d + job->eps));
    for (int64_t i = 0; i < d; i += 16) {
      v16 v = v16_mul(v16_sub(v16_load_part(x + i, d - i), middle), factor);
      if (job->weight) v = v16_mul(v, v16_load_part(job->weight + i, d - i));
      if (job->bias) v = v16_add(v, v16_load_part(job->bias + i, d - i));
      v16_store_part(y + i, v, d - i);
    }
  }
}

OMNIC_STATIC void OMNIC_FN(layer_norm)(const omnic_call *call, const float *x, int64_t m, int64_t ldx, int64_t d,
                                       const float *weight, const float *bias, float eps, float *y, int64_t ldy) {
  omnic_norm_job job = {x, weight, bias, y, ldx, ldy, d, eps};
  OMNIC_FN(share)(call, OMNIC_FN(layer_rows), &job, m, d);
}

OMNIC_STATIC void OMNIC_FN(softmax_rows)(const void *arg, int64_t first, int64_t last) {
  const omnic_norm_job *job = arg;
  int64_t d = job->d;
  for (int64_t m = first; m < last; m++) {
    const float *x = job->x + m * d;
    float *y = job->y + m * d, peak = x[0];
    v16 most = v16_set(x[0]), sum = v16_zero();
    for (int64_t i = 0; i + 16 <= d; i += 16) most = v16_max(most, v16_load(x + i));
    peak = v16_peak(most);
    for (int64_t i = d & ~(int64_t)15; i < d; i++) peak = peak > x[i] ? peak : x[i];
    most = v16_set(peak);
    for (int64_t i = 0; i < d; i += 16) {
      v16 e = v16_exp(v16_sub(v16_load_part(x + i, d - i), most));
      v16_store_part(y + i, e, d - i);
      sum = v16_add(sum, v16_load_part(y + i, d - i));
    }
    v16 total = v16_set(v16_sum(sum));
    for (int64_t i = 0; i < d; i += 16)
      v16_store_part(y + i, v16_div(v16_load_part(y + i, d - i), total), d - i);
  }
}

OMNIC_STATIC void OMNIC_FN(softmax)(const omnic_call *call, const float *x, int64_t m, int64_t d, float *y) {
  omnic_norm_job job = {x, NULL, NULL, y, d, d, d, 0.0f};
  if (d > 0) OMNIC_FN(share)(call, OMNIC_FN(softmax_rows), &job, m, 4 * d);
}

typedef struct {
  const float *x;
  int64_t d, k;
  float *values;
  int64_t *indices;
} omnic_topk_job;

OMNIC_STATIC void OMNIC_FN(topk_rows)(const void *arg, int64_t first, int64_t last) {
  const omnic_topk_job *job = arg;
  int64_t k = job->k;
  for (int64_t m = first; m < last; m++) {
    const float *x = job->x + m * job->d;
    float *values = job->values + m * k;
    int64_t *indices = job->indices + m * k, held = 0;
    for (int64_t i = 0; i < job->d; i++) {
      if (held == k && !(x[i] > values[k - 1])) continue;
      /* The first place whose number is smaller: an equal one came earlier and stays before. */
      int64_t low = 0, high = held;
      while (low < high) {
        int64_t middle = (low + high) / 2;
        if (values[middle] >= x[i])
          low = middle + 1;
        else
          high = middle;
      }
      if (held < k) held++;
      memmove(values + low + 1, values + low, (size_t)(held - 1 - low) * sizeof *values);
      memmove(indices + low + 1, indices + low, (size_t)(held - 1 - low) * sizeof *indices);
      values[low] = x[i];
      indices[low] = i;
    }
  }
}

OMNIC_STATIC void OMNIC_FN(topk)(const omnic_call *call, const float *x, int64_t m, int64_t d, int64_t k, float *values,
                                 int64_t *indices) {
  omnic_topk_job job = {x, d, k, values, indices};
  if (k > 0) OMNIC_FN(share)(call, OMNIC_FN(topk_rows), &job, m, d);
}
