/* Rows of a packed table. */

typedef struct {
  const omnic_weight *w;
  const int64_t *ids;
  int64_t m, per;
  float *y;
  int64_t ldy;
} embed_job;

OMNIC_STATIC void embed_row(const omnic_weight *w, const omnic_shape *shape, int64_t n, float *y) {
  if (n < 0 || n >= w->n) {
    memset(y, 0, (size_t)w->k * 4);
    return;
  }
  if (is_plain(w)) {
    for (int64_t k = 0; k < w->k; k++) y[k] = plain_at(w->codes, w->type, (n / 16 * w->k + k) * 16 + n % 16);
    return;
  }
  float row = w->scale_type == OMNIC_S4 ? w->row[n] : 1.0f;
  for (int64_t group = 0, from = 0; from < w->k; group++, from += shape->group) {
    int64_t to = from + shape->group < w->k ? from + shape->group : w->k;
    int32_t zero = zero_at(w, shape, n, group);
    float scale = scale_at(w, shape, n, group);
    for (int64_t k = from; k < to; k++) y[k] = (float)(code_at(w, shape, n, k) - zero) * scale * row;
  }
}

OMNIC_STATIC void embed_task(void *arg, int64_t task) {
  const embed_job *job = arg;
  omnic_shape shape = weight_shape(job->w);
  int64_t end = (task + 1) * job->per < job->m ? (task + 1) * job->per : job->m;
  for (int64_t i = task * job->per; i < end; i++) embed_row(job->w, &shape, job->ids[i], job->y + i * job->ldy);
}

OMNIC_STATIC void OMNIC_FN(embed)(const omnic_call *call, const omnic_weight *w, const int64_t *ids, int64_t m, float *y,
                                  int64_t ldy) {
  embed_job job = {w, ids, m, 8, y, ldy};
  omnic_tuning way = tuning_of(call);
  if (m > 0) run_tasks(m > 8 ? call->pool : NULL, &way, embed_task, &job, (m + 7) / 8);
}
