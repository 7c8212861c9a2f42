/* act, gated_act, add: number by number. */

typedef struct {
  const float *a, *b;
  float *y;
  int64_t count;
  int32_t kind;
} omnic_elements_job;

/* Elements are shared in units of this many, so that a piece begins at a whole group of lanes. */
#define OMNIC_UNIT 1024

#define OMNIC_EACH(job, first, last)                                                       \
  int64_t from = (first) * OMNIC_UNIT, to = (last) * OMNIC_UNIT;                           \
  if (to > (job)->count) to = (job)->count;                                                \
  for (int64_t i = from; i < to; i += 16)

OMNIC_STATIC void OMNIC_FN(act_piece)(const void *arg, int64_t first, int64_t last) {
  const omnic_elements_job *job = arg;
  OMNIC_EACH(job, first, last)
  v16_store_part(job->y + i, omnic_activation(v16_load_part(job->a + i, to - i), job->kind), to - i);
}

OMNIC_STATIC void OMNIC_FN(gated_piece)(const void *arg, int64_t first, int64_t last) {
  const omnic_elements_job *job = arg;
  OMNIC_EACH(job, first, last) {
    v16 gate = omnic_activation(v16_load_part(job->a + i, to - i), job->kind);
    v16_store_part(job->y + i, v16_mul(gate, v16_load_part(job->b + i, to - i)), to - i);
  }
}

OMNIC_STATIC void OMNIC_FN(add_piece)(const void *arg, int64_t first, int64_t last) {
  const omnic_elements_job *job = arg;
  OMNIC_EACH(job, first, last)
  v16_store_part(job->y + i, v16_add(v16_load_part(job->a + i, to - i), v16_load_part(job->b + i, to - i)), to - i);
}

OMNIC_STATIC void OMNIC_FN(act)(const omnic_call *call, int32_t kind, const float *x, int64_t count, float *y) {
  omnic_elements_job job = {x, NULL, y, count, kind};
  OMNIC_FN(share)(call, OMNIC_FN(act_piece), &job, (count + OMNIC_UNIT - 1) / OMNIC_UNIT, 4 * OMNIC_UNIT);
}

OMNIC_STATIC void OMNIC_FN(gated_act)(const omnic_call *call, int32_t kind, const float *gate, const float *up,
                                      int64_t count, float *y) {
  omnic_elements_job job = {gate, up, y, count, kind};
  OMNIC_FN(share)(call, OMNIC_FN(gated_piece), &job, (count + OMNIC_UNIT - 1) / OMNIC_UNIT, 4 * OMNIC_UNIT);
}

OMNIC_STATIC void OMNIC_FN(add)(const omnic_call *call, const float *a, const float *b, int64_t count, float *y) {
  omnic_elements_job job = {a, b, y, count, 0};
  OMNIC_FN(share)(call, OMNIC_FN(add_piece), &job, (count + OMNIC_UNIT - 1) / OMNIC_UNIT, OMNIC_UNIT);
}
