/* Products of one x with one or several weights, cut into tiles for the pool. */

/* What the kernels of this level read of the activations. */
OMNIC_INLINE int32_t product_kinds(const omnic_weight *w, int32_t act) {
  if (by_codes(w, act)) return AS_CODES;
#if defined(OMNIC_HAS_AMX)
  if (act == OMNIC_ACT_BF16) return AS_BF16;
#endif
  return AS_VALUES;
}

#if defined(COLS)
OMNIC_STATIC void in_parts(const omnic_tile *t, void (*run)(const omnic_tile *)) {
  for (int64_t from = 0; from < t->count; from += TILE_ROWS) {
    omnic_tile part = tile_part(t, from);
    run(&part);
  }
}

OMNIC_STATIC void product_tile(const omnic_tile *t) {
#if defined(OMNIC_HAS_AMX)
  if (amx_takes(t)) {
    in_parts(t, amx_tile);
    return;
  }
#endif
  if (by_codes(t->w, t->rows->act))
    code_tile(t);
  else
    in_parts(t, is_plain(t->w) ? value_tile_plain : value_tile_codes);
}
#else
OMNIC_STATIC void product_tile(const omnic_tile *t) { oracle_tile(t); }
#endif

/* Panels of a task, so that `panels` of them in `chunks` passes give every thread a few tasks: the last ones then even
 * out.  A multiple of 4, which the kernels of a single row take together. */
OMNIC_INLINE int64_t panels_of_task(const omnic_tuning *way, int64_t panels, int64_t chunks) {
  if (way->threads <= 1) return product_round_up(panels, 4);
  int64_t wanted = (way->threads * 4 + chunks - 1) / chunks;
  return product_round_up((panels + wanted - 1) / wanted, 4);
}

/* Products of fewer multiplications are done before another thread has woken. */
#define ALONE (1 << 16)

typedef struct {
  const omnic_weight *const *w;
  int64_t count;
  const omnic_rows *rows;
  const omnic_tuning *way;
  const float *const *bias;
  const float *residual;
  int64_t ldr;
  float *const *y;
  const int64_t *ldy;
  int64_t per, tasks; /* panels of a task; tasks of a chunk of rows */
} linear_job;

OMNIC_STATIC void linear_task(void *arg, int64_t task) {
  const linear_job *job = arg;
  int64_t chunk = job->way->chunk, first = task / job->tasks * chunk, i = 0, at = task % job->tasks;
  omnic_shape shape = weight_shape(job->w[0]);
  for (int64_t tasks; at >= (tasks = (shape.panels + job->per - 1) / job->per);) {
    at -= tasks;
    shape = weight_shape(job->w[++i]);
  }
  int64_t panel = at * job->per, left = job->rows->m - first;
  omnic_tile t = {.w = job->w[i], .shape = shape, .rows = job->rows, .way = job->way, .first = first,
                  .count = left < chunk ? left : chunk, .panel = panel,
                  .panels = shape.panels - panel < job->per ? shape.panels - panel : job->per,
                  .bias = job->bias ? job->bias[i] : NULL,
                  .residual = job->residual ? job->residual + first * job->ldr + panel * 16 : NULL, .ldr = job->ldr,
                  .y = job->y[i] + first * job->ldy[i] + panel * 16, .ldy = job->ldy[i]};
  product_tile(&t);
}

OMNIC_STATIC void linear_run(const omnic_call *call, linear_job *job, const float *x, int64_t m, int64_t ldx, int32_t act,
                             int64_t act_group) {
  if (m <= 0 || job->count <= 0) return;
  omnic_arena arena = {call->scratch};
  omnic_tuning way = tuning_of(call);
  int32_t kinds = 0;
  int64_t panels = 0, chunks = (m + way.chunk - 1) / way.chunk;
  for (int64_t i = 0; i < job->count; i++) {
    kinds |= product_kinds(job->w[i], act);
    panels += weight_shape(job->w[i]).panels;
  }
  if (m * panels * job->w[0]->k < ALONE / 16) way.threads = 1;
  omnic_rows rows = prepare(call->pool, &way, &arena, kinds, x, m, ldx, NULL, job->w[0]->k, act, act_group);
  job->rows = &rows;
  job->way = &way;
  job->per = panels_of_task(&way, panels, chunks);
  job->tasks = 0;
  for (int64_t i = 0; i < job->count; i++) job->tasks += (weight_shape(job->w[i]).panels + job->per - 1) / job->per;
  run_tasks(call->pool, &way, linear_task, job, chunks * job->tasks);
}

OMNIC_STATIC void OMNIC_FN(linear)(const omnic_call *call, const omnic_weight *w, const float *x, int64_t m, int64_t ldx,
                                   int32_t act, int64_t act_group, const float *bias, const float *residual, int64_t ldr,
                                   float *y, int64_t ldy) {
  linear_job job = {.w = &w, .count = 1, .bias = &bias, .residual = residual, .ldr = ldr, .y = &y, .ldy = &ldy};
  linear_run(call, &job, x, m, ldx, act, act_group);
}

OMNIC_STATIC void OMNIC_FN(linear_many)(const omnic_call *call, const omnic_weight *const *w, int64_t count, const float *x,
                                        int64_t m, int64_t ldx, int32_t act, int64_t act_group, const float *const *bias,
                                        float *const *y, const int64_t *ldy) {
  linear_job job = {.w = w, .count = count, .bias = bias, .y = y, .ldy = ldy};
  linear_run(call, &job, x, m, ldx, act, act_group);
}

/* ---- products of heads ---------------------------------------------------------------------------------------- */
typedef struct {
  const omnic_weight *const *w;
  int64_t heads, batch, tokens, chunks, per, tasks;
  const omnic_tuning *way;
  omnic_view x, y;
} heads_job;

OMNIC_STATIC void heads_task(void *arg, int64_t task) {
  const heads_job *job = arg;
  int64_t h = task / (job->chunks * job->tasks), rest = task % (job->chunks * job->tasks);
  int64_t first = rest / job->tasks * TILE_ROWS, left = job->batch * job->tokens - first;
  int64_t count = left < TILE_ROWS ? left : TILE_ROWS, panel = rest % job->tasks * job->per;
  int64_t from[TILE_ROWS], to[TILE_ROWS];
  for (int64_t i = 0; i < count; i++) {
    int64_t b = (first + i) / job->tokens, token = (first + i) % job->tokens;
    from[i] = b * job->x.stride_b + h * job->x.stride_h + token * job->x.stride_t;
    to[i] = b * job->y.stride_b + h * job->y.stride_h + token * job->y.stride_t;
  }
  const omnic_weight *w = job->w[h];
  omnic_rows rows = {.m = count, .k = w->k, .act = OMNIC_ACT_F32, .values = job->x.data, .value_offsets = from};
  omnic_shape shape = weight_shape(w);
  if (panel >= shape.panels) return;
  omnic_tile t = {.w = w, .shape = shape, .rows = &rows, .way = job->way, .count = count, .panel = panel,
                  .panels = shape.panels - panel < job->per ? shape.panels - panel : job->per,
                  .y = job->y.data + panel * 16, .y_offsets = to};
  product_tile(&t);
}

OMNIC_STATIC void OMNIC_FN(linear_heads)(const omnic_call *call, const omnic_weight *const *w, int64_t heads,
                                         int64_t batch, int64_t tokens, omnic_view x, omnic_view y) {
  int64_t m = batch * tokens;
  if (m <= 0 || heads <= 0) return;
  omnic_tuning way = tuning_of(call);
  heads_job job = {.w = w, .heads = heads, .batch = batch, .tokens = tokens, .way = &way, .x = x, .y = y,
                   .chunks = (m + TILE_ROWS - 1) / TILE_ROWS};
  int64_t panels = 0;
  for (int64_t h = 0; h < heads; h++) panels = weight_shape(w[h]).panels > panels ? weight_shape(w[h]).panels : panels;
  job.per = panels_of_task(&way, panels, heads * job.chunks);
  job.tasks = (panels + job.per - 1) / job.per;
  run_tasks(call->pool, &way, heads_task, &job, heads * job.chunks * job.tasks);
}

/* ---- the largest of a product --------------------------------------------------------------------------------- */
#define ARGMAX_NUMBERS 4096 /* results that are looked at together: on the stack of the task */

typedef struct {
  float value;
  int64_t id;
} argmax_best;

typedef struct {
  const omnic_weight *w;
  const omnic_rows *rows;
  const omnic_tuning *way;
  int64_t per, tasks;
  argmax_best *best; /* [tasks][m] */
} argmax_job;

OMNIC_STATIC void argmax_task(void *arg, int64_t task) {
  const argmax_job *job = arg;
  _Alignas(64) float found[ARGMAX_NUMBERS];
  int64_t m = job->rows->m, first = task / job->tasks * TILE_ROWS, part = task % job->tasks;
  int64_t count = m - first < TILE_ROWS ? m - first : TILE_ROWS;
  omnic_shape shape = weight_shape(job->w);
  int64_t end = (part + 1) * job->per < shape.panels ? (part + 1) * job->per : shape.panels;
  int64_t together = ARGMAX_NUMBERS / 16 / count;
  argmax_best *best = job->best + part * m + first;
  for (int64_t i = 0; i < count; i++) best[i] = (argmax_best){0.0f, -1};
  for (int64_t panel = part * job->per; panel < end; panel += together) {
    int64_t panels = end - panel < together ? end - panel : together;
    omnic_tile t = {.w = job->w, .shape = shape, .rows = job->rows, .way = job->way, .first = first, .count = count,
                    .panel = panel, .panels = panels, .y = found, .ldy = panels * 16};
    product_tile(&t);
    int64_t columns = job->w->n - panel * 16 < panels * 16 ? job->w->n - panel * 16 : panels * 16;
    for (int64_t i = 0; i < count; i++) {
      const float *row = found + i * panels * 16;
      argmax_best now = best[i];
      for (int64_t c = 0; c < columns; c++)
        if (now.id < 0 || row[c] > now.value) now = (argmax_best){row[c], panel * 16 + c};
      best[i] = now;
    }
  }
}

OMNIC_STATIC float tanh_of(float x) {
  float lanes[16];
  v16_store(lanes, v16_tanh(v16_set(x)));
  return lanes[0];
}

OMNIC_STATIC void OMNIC_FN(head_argmax)(const omnic_call *call, const omnic_weight *w, const float *x, int64_t m,
                                        int64_t ldx, int32_t act, int64_t act_group, float softcap, int64_t *ids,
                                        float *logits) {
  if (m <= 0) return;
  omnic_arena arena = {call->scratch};
  omnic_tuning way = tuning_of(call);
  omnic_rows rows = prepare(call->pool, &way, &arena, product_kinds(w, act), x, m, ldx, NULL, w->k, act, act_group);
  int64_t panels = weight_shape(w).panels, chunks = (m + TILE_ROWS - 1) / TILE_ROWS;
  argmax_job job = {.w = w, .rows = &rows, .way = &way, .per = panels_of_task(&way, panels, chunks)};
  job.tasks = (panels + job.per - 1) / job.per;
  job.best = take(&arena, job.tasks * m * (int64_t)sizeof(argmax_best));
  run_tasks(call->pool, &way, argmax_task, &job, chunks * job.tasks);
  for (int64_t i = 0; i < m; i++) {
    argmax_best best = job.best[i];
    for (int64_t part = 1; part < job.tasks; part++) {
      argmax_best other = job.best[part * m + i];
      if (other.value > best.value) best = other;
    }
    ids[i] = best.id;
    if (logits) logits[i] = softcap > 0.0f ? softcap * tanh_of(best.value / softcap) : best.value;
  }
}
