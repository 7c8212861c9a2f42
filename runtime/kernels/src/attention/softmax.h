/* The running softmax of a desk: what a query does not see, weights of a block, chunks joined, results handed in. */

/* Bound the logits of a block and hide what its queries do not see. */
OMNIC_INLINE void omnic_hide(const omnic_attend *job, const omnic_desk *desk, int64_t begin, int64_t from, int64_t to) {
  const omnic_mask *mask = job->mask;
  int64_t rows = desk->lanes ? desk->lanes : desk->rows, start = mask->start[desk->b];
  if (mask->softcap > 0.0f) {
    v16 cap = v16_set(mask->softcap);
    for (int64_t n = 0; n < rows * OMNIC_BLOCK; n += 16) {
      v16 x = v16_load(desk->scores + n);
      v16_store(desk->scores + n, v16_mul(v16_tanh(v16_div(x, cap)), cap));
    }
  }
  int tree = mask->parents && begin + to > start;
  for (int64_t r = 0; r < desk->count; r++) {
    float *scores = desk->scores + r * desk->row_step;
    int64_t t = (desk->first + r) / job->per, own = start + t, step = desk->token_step;
    int64_t first = mask->window ? own - mask->window + 1 - begin : from, last = own + 1 - begin;
    if (t >= mask->length[desk->b]) last = 0;
    if (first < from) first = from;
    if (last > to) last = to;
    for (int64_t n = 0; n < OMNIC_BLOCK && n < first; n++) scores[n * step] = -INFINITY;
    for (int64_t n = last > 0 ? last : 0; n < OMNIC_BLOCK; n++) scores[n * step] = -INFINITY;
    if (!tree) continue;
    const uint8_t *related = desk->related + (t - desk->first / job->per) * mask->tokens;
    for (int64_t n = start > begin + first ? start - begin : first; n < last; n++)
      if (!related[begin + n - start]) scores[n * step] = -INFINITY;
  }
}

/* Sums of weights are sixteen chains over the tokens of a block, summed as v16_sum does; those of `count` queries from
 * sums[8][count], where chains i and i + 8 are one already. */
OMNIC_INLINE void omnic_add_totals(omnic_desk *desk, int64_t first, int64_t count, const float *sums) {
  for (int64_t r = 0; r < count; r++) {
    const float *s = sums + r;
    float low = (s[0] + s[count]) + (s[2 * count] + s[3 * count]);
    float high = (s[4 * count] + s[5 * count]) + (s[6 * count] + s[7 * count]);
    desk->total[first + r] = fmaf(desk->total[first + r], desk->fade[first + r], low + high);
  }
}

/* Turn scores [tokens][lanes] of the lanes from `first` on into weights exp(score - peak), and find by how much what
 * was mixed before fades.  Of eight lanes a register holds two tokens. */
OMNIC_INLINE void omnic_weigh_lanes(omnic_desk *desk, int64_t first) {
  int64_t ld = desk->lanes, count = ld < 16 ? ld : 16, step = 16 / count;
  float *scores = desk->scores + first, lane[16], sums[128];
  v16 most = v16_load(scores);
  for (int64_t t = step; t < OMNIC_BLOCK; t += step) most = v16_max(v16_load(scores + t * ld), most);
  v16_store(lane, most);
  for (int64_t r = 0; r < count; r++) {
    float peak = desk->peak[first + r] > lane[r] ? desk->peak[first + r] : lane[r];
    lane[r] = step == 2 && lane[r + 8] > peak ? lane[r + 8] : peak;
  }
  if (step == 2) memcpy(lane + 8, lane, 8 * sizeof *lane);
  most = v16_load(lane);
  v16_store(desk->fade + first, omnic_exp_below(v16_sub(v16_load(desk->peak + first), most)));
  v16_store(desk->peak + first, most);
  for (int64_t t = 0; t < OMNIC_BLOCK; t += step)
    v16_store(scores + t * ld, omnic_exp_below(v16_sub(v16_load(scores + t * ld), most)));
  for (int64_t j = 0; j < 8; j += step) {
    v16 low = v16_load(scores + j * ld), high = v16_load(scores + (j + 8) * ld);
    for (int64_t t = j + 16; t < OMNIC_BLOCK; t += 16) {
      low = v16_add(low, v16_load(scores + t * ld));
      high = v16_add(high, v16_load(scores + (t + 8) * ld));
    }
    v16_store(sums + j * count, v16_add(low, high));
  }
  omnic_add_totals(desk, first, count, sums);
}

/* The same of few queries, scores [queries][tokens]. */
OMNIC_INLINE void omnic_weigh_few(omnic_desk *desk) {
  float peaks[16] = {0};
  for (int64_t r = 0; r < desk->rows; r++) {
    const float *scores = desk->scores + r * OMNIC_BLOCK;
    v16 most = v16_load(scores);
    for (int64_t t = 16; t < OMNIC_BLOCK; t += 16) most = v16_max(v16_load(scores + t), most);
    float peak = v16_peak(most);
    peaks[r] = peak > desk->peak[r] ? peak : desk->peak[r];
  }
  v16_store(desk->fade, omnic_exp_below(v16_sub(v16_load(desk->peak), v16_load(peaks))));
  v16_store(desk->peak, v16_load(peaks));
  for (int64_t r = 0; r < desk->rows; r++) {
    float *scores = desk->scores + r * OMNIC_BLOCK;
    v16 peak = v16_set(peaks[r]), sum = v16_zero();
    for (int64_t t = 0; t < OMNIC_BLOCK; t += 16) {
      v16 weights = omnic_exp_below(v16_sub(v16_load(scores + t), peak));
      v16_store(scores + t, weights);
      sum = v16_add(sum, weights);
    }
    desk->total[r] = fmaf(desk->total[r], desk->fade[r], v16_sum(sum));
  }
}

OMNIC_INLINE float omnic_exp1(float x) {
  float out[16];
  v16_store(out, v16_exp(v16_set(x)));
  return out[0];
}

/* Join the chunk (peak, total, mixed) of row r to what was joined of it before. */
OMNIC_INLINE void omnic_join(const omnic_attend *job, omnic_desk *desk, int64_t r, float peak, float total,
                             const float *mixed) {
  float *joined = desk->joined + r * job->wide, most = peak > desk->joined_peak[r] ? peak : desk->joined_peak[r];
  float old = omnic_exp1(desk->joined_peak[r] - most), fresh = omnic_exp1(peak - most);
  desk->joined_total[r] = fmaf(total, fresh, desk->joined_total[r] * old);
  desk->joined_peak[r] = most;
  v16 a = v16_set(old), b = v16_set(fresh);
  for (int64_t i = 0; i < job->wide; i += 16)
    v16_store(joined + i, v16_fma(v16_load(mixed + i), b, v16_mul(v16_load(joined + i), a)));
}

OMNIC_INLINE void omnic_clear_joined(const omnic_attend *job, omnic_desk *desk) {
  for (int64_t r = 0; r < OMNIC_QUERIES; r++) desk->joined_peak[r] = OMNIC_FLOOR, desk->joined_total[r] = 0.0f;
  memset(desk->joined, 0, (size_t)(desk->rows * job->wide) * sizeof(float));
}

/* Divide by the sum of the weights, the sink's included, and write; a query that saw nothing gives 0. */
OMNIC_INLINE void omnic_hand_in(const omnic_attend *job, const omnic_desk *desk) {
  for (int64_t r = 0; r < desk->count; r++) {
    int64_t t = (desk->first + r) / job->per, h = desk->g * job->per + (desk->first + r) % job->per;
    float *y = job->y.data + desk->b * job->y.stride_b + h * job->y.stride_h + t * job->y.stride_t;
    float total = desk->joined_total[r], fade = 1.0f;
    if (job->mask->sinks && t < job->mask->length[desk->b]) {
      float sink = job->mask->sinks[h], peak = desk->joined_peak[r], most = peak > sink ? peak : sink;
      fade = omnic_exp1(peak - most);
      total = fmaf(total, fade, omnic_exp1(sink - most));
    }
    v16 factor = v16_set(fade), sum = v16_set(total > 0.0f ? total : 1.0f);
    for (int64_t i = 0; i < job->dv; i += 16) {
      v16 x = v16_div(v16_mul(v16_load(desk->joined + r * job->wide + i), factor), sum);
      /* Adding 0 makes +0 of -0, which masked tokens would otherwise decide. */
      v16_store_part(y + i, v16_add(x, v16_zero()), job->dv - i);
    }
  }
}
