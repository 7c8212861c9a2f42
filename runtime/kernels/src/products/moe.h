/* Experts: the pairs (token, chosen expert) are sorted by expert, so that an expert's weights are read once for all
 * tokens that chose it; up (and gate) give the hidden numbers of every pair, down its result, and every token adds the
 * results of its pairs in the order of its choice.  A pair whose index is no expert adds nothing.
 */

typedef struct {
  const omnic_weight *const *gate, *const *up, *const *down;
  const float *const *gate_bias, *const *up_bias, *const *down_bias;
  int32_t kind;
  float alpha, beta, limit;
  const omnic_tuning *way;
  const omnic_rows *rows;      /* of the stage, in sorted order */
  int64_t *expert;             /* [active] which expert */
  int64_t *start;              /* [active + 1] its first pair */
  int64_t *tasks;              /* [active + 1] its first task */
  int64_t active, per, splits; /* panels of a task, tasks of one expert's chunk of rows */
  float *open, *inner;         /* [pairs][hidden]: what the gate gives, what is multiplied with it */
  int64_t hidden;
  float *out;                  /* [pairs][width] */
  int64_t width;
  /* of the sum over a token's pairs */
  const int64_t *place;        /* [m][top] where a pair went, -1: nowhere */
  const float *gates;
  int64_t m, top, ldy;
  float *y;
} moe_job;

/* The rows and panels of a task of a weight with `panels` of them. */
OMNIC_STATIC int64_t moe_tile(const moe_job *job, int64_t task, const omnic_weight *const *table, omnic_tile *t) {
  int64_t e = 0;
  while (task >= job->tasks[e + 1]) e++;
  task -= job->tasks[e];
  const omnic_weight *w = table[job->expert[e]];
  int64_t chunk = job->way->chunk, first = job->start[e] + task / job->splits * chunk, left = job->start[e + 1] - first;
  omnic_shape shape = weight_shape(w);
  int64_t panel = task % job->splits * job->per;
  *t = (omnic_tile){.w = w, .shape = shape, .rows = job->rows, .way = job->way, .first = first,
                    .count = left < chunk ? left : chunk, .panel = panel,
                    .panels = shape.panels - panel < job->per ? shape.panels - panel : job->per};
  return job->expert[e];
}

/* inner = act(inner), or with a gate act(min(gate, limit)) * (clamp(inner, -limit, limit) + beta). */
OMNIC_STATIC void moe_activate(const moe_job *job, const float *gate, float *inner, int64_t count) {
  const omnic_call alone = {0};
  if (!gate) {
    OMNIC_FN(act)(&alone, job->kind, inner, count, inner);
    return;
  }
  if (job->alpha == 1.0f && job->beta == 0.0f && job->limit <= 0.0f) {
    OMNIC_FN(gated_act)(&alone, job->kind, gate, inner, count, inner);
    return;
  }
  v16 limit = v16_set(job->limit > 0.0f ? job->limit : INFINITY), least = v16_sub(v16_zero(), limit);
  for (int64_t i = 0; i < count; i += 16) {
    v16 open = v16_min(v16_load_part(gate + i, count - i), limit);
    v16 up = v16_max(v16_min(v16_load_part(inner + i, count - i), limit), least);
    if (job->kind == OMNIC_SILU)
      open = v16_mul(open, v16_sigmoid(v16_mul(open, v16_set(job->alpha))));
    else
      open = omnic_activation(open, job->kind);
    v16_store_part(inner + i, v16_mul(open, v16_add(up, v16_set(job->beta))), count - i);
  }
}

OMNIC_STATIC void moe_up_task(void *arg, int64_t task) {
  const moe_job *job = arg;
  omnic_tile t;
  int64_t e = moe_tile(job, task, job->up, &t), at = t.first * job->hidden + t.panel * 16;
  int64_t columns = job->hidden - t.panel * 16 < t.panels * 16 ? job->hidden - t.panel * 16 : t.panels * 16;
  t.ldy = job->hidden;
  t.y = job->inner + at;
  t.bias = job->up_bias ? job->up_bias[e] : NULL;
  product_tile(&t);
  if (job->gate) {
    t.w = job->gate[e];
    t.shape = weight_shape(t.w);
    t.y = job->open + at;
    t.bias = job->gate_bias ? job->gate_bias[e] : NULL;
    product_tile(&t);
  }
  for (int64_t i = 0; i < t.count; i++)
    moe_activate(job, job->gate ? job->open + at + i * job->hidden : NULL, job->inner + at + i * job->hidden, columns);
}

OMNIC_STATIC void moe_down_task(void *arg, int64_t task) {
  const moe_job *job = arg;
  omnic_tile t;
  int64_t e = moe_tile(job, task, job->down, &t);
  t.ldy = job->width;
  t.y = job->out + t.first * job->width + t.panel * 16;
  t.bias = job->down_bias ? job->down_bias[e] : NULL;
  product_tile(&t);
}

OMNIC_STATIC void moe_sum_task(void *arg, int64_t i) {
  const moe_job *job = arg;
  float *y = job->y + i * job->ldy;
  memset(y, 0, (size_t)job->width * 4);
  for (int64_t j = 0; j < job->top; j++) {
    int64_t place = job->place[i * job->top + j];
    if (place < 0) continue;
    const float *out = job->out + place * job->width;
    float gate = job->gates[i * job->top + j];
    for (int64_t c = 0; c < job->width; c++) y[c] = fmaf(gate, out[c], y[c]);
  }
}

/* Cut a stage into tasks: those of each expert, chunk by chunk. */
OMNIC_STATIC void moe_run(const omnic_call *call, moe_job *job, int64_t columns, void (*task)(void *, int64_t)) {
  int64_t panels = (columns + 15) / 16, chunk = job->way->chunk, chunks = 0;
  for (int64_t e = 0; e < job->active; e++) chunks += (job->start[e + 1] - job->start[e] + chunk - 1) / chunk;
  job->per = panels_of_task(job->way, panels, chunks);
  job->splits = (panels + job->per - 1) / job->per;
  job->tasks[0] = 0;
  for (int64_t e = 0; e < job->active; e++) {
    int64_t of = (job->start[e + 1] - job->start[e] + chunk - 1) / chunk;
    job->tasks[e + 1] = job->tasks[e] + of * job->splits;
  }
  run_tasks(call->pool, job->way, task, job, job->tasks[job->active]);
}

OMNIC_STATIC void OMNIC_FN(moe)(const omnic_call *call, const omnic_weight *const *gate, const omnic_weight *const *up,
                                const omnic_weight *const *down, int64_t experts, const float *x, int64_t m, int64_t ldx,
                                const int64_t *indices, const float *gates, int64_t top, int32_t kind, float alpha,
                                float beta, float limit, int32_t act, int64_t act_group, const float *const *gate_bias,
                                const float *const *up_bias, const float *const *down_bias, float *y, int64_t ldy) {
  if (m <= 0) return;
  omnic_arena arena = {call->scratch};
  omnic_tuning way = tuning_of(call);
  int64_t pairs = m * top, used = 0;
  int64_t *next = take(&arena, experts * 8), *place = take(&arena, pairs * 8), *offsets = take(&arena, pairs * 8);
  moe_job job = {.gate = gate, .up = up, .down = down, .gate_bias = gate_bias, .up_bias = up_bias,
                 .down_bias = down_bias, .kind = kind, .alpha = alpha, .beta = beta, .limit = limit, .way = &way,
                 .place = place, .gates = gates, .m = m, .top = top, .ldy = ldy,
                 .y = y, .expert = take(&arena, experts * 8), .start = take(&arena, (experts + 1) * 8),
                 .tasks = take(&arena, (experts + 1) * 8)};
  memset(next, 0, (size_t)experts * 8);
  for (int64_t i = 0; i < pairs; i++)
    if (indices[i] >= 0 && indices[i] < experts) next[indices[i]]++;
  for (int64_t e = 0; e < experts; e++) {
    int64_t count = next[e];
    next[e] = used;
    if (!count) continue;
    job.expert[job.active] = e;
    job.start[job.active++] = used;
    used += count;
  }
  job.start[job.active] = used;
  for (int64_t i = 0; i < pairs; i++) {
    place[i] = -1;
    if (indices[i] < 0 || indices[i] >= experts) continue;
    place[i] = next[indices[i]]++;
    offsets[place[i]] = i / top * ldx;
  }
  job.width = down[used ? job.expert[0] : 0]->n;
  if (used) {
    const omnic_weight *first = up[job.expert[0]], *last = down[job.expert[0]];
    int32_t kinds = product_kinds(first, act) | (gate ? product_kinds(gate[job.expert[0]], act) : 0);
    job.hidden = first->n;
    job.inner = take(&arena, used * job.hidden * 4);
    job.open = gate ? take(&arena, used * job.hidden * 4) : NULL;
    job.out = take(&arena, used * job.width * 4);
    omnic_rows rows = prepare(call->pool, &way, &arena, kinds, x, used, ldx, offsets, first->k, act, act_group);
    job.rows = &rows;
    moe_run(call, &job, job.hidden, moe_up_task);
    rows = prepare(call->pool, &way, &arena, product_kinds(last, act), job.inner, used, job.hidden, NULL, job.hidden, act,
                   act_group);
    moe_run(call, &job, job.width, moe_down_task);
  }
  run_tasks(m * job.width > 4096 ? call->pool : NULL, &way, moe_sum_task, &job, m);
}
