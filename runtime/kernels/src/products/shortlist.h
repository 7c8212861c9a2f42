/* The largest of a head's products without most of them: a small product bounds every logit (omnic/ir/shortlist.py says
 * why it holds), and only panels that could hold the largest are multiplied.  Those results are the bits of `linear`, so
 * the answer is that of head_argmax. */

#define SHORTLIST_TASKS 64 /* at most, of panels that are multiplied */

typedef struct {
  const omnic_weight *w;
  const omnic_rows *rows;
  const omnic_tuning *way;
  int64_t row, per;
  const int32_t *panels;     /* those that are multiplied, ascending */
  int64_t count;
  argmax_best *best;         /* of each task */
} open_job;

OMNIC_INLINE argmax_best better(argmax_best a, argmax_best b) {
  if (a.id < 0 || (b.id >= 0 && (b.value > a.value || (b.value == a.value && b.id < a.id)))) return b;
  return a;
}

/* The largest of `panels` panels from `panel` on. */
OMNIC_STATIC argmax_best best_of_panels(const open_job *job, int64_t panel, int64_t panels) {
  _Alignas(64) float found[ARGMAX_NUMBERS];
  omnic_tile t = {.w = job->w, .shape = weight_shape(job->w), .rows = job->rows, .way = job->way, .first = job->row,
                  .count = 1, .panel = panel, .panels = panels, .y = found, .ldy = panels * 16};
  product_tile(&t);
  int64_t columns = job->w->n - panel * 16 < panels * 16 ? job->w->n - panel * 16 : panels * 16;
  argmax_best best = {found[0], panel * 16};
  for (int64_t c = 1; c < columns; c++)
    if (found[c] > best.value) best = (argmax_best){found[c], panel * 16 + c};
  return best;
}

OMNIC_STATIC void open_task(void *arg, int64_t task) {
  const open_job *job = arg;
  int64_t end = (task + 1) * job->per < job->count ? (task + 1) * job->per : job->count;
  argmax_best best = {0.0f, -1};
  for (int64_t i = task * job->per, run; i < end; i += run) { /* neighbours are multiplied together */
    for (run = 1; i + run < end && run < ARGMAX_NUMBERS / 16 && job->panels[i + run] == job->panels[i] + run;) run++;
    best = better(best, best_of_panels(job, job->panels[i], run));
  }
  job->best[task] = best;
}

/* |x - Q^T p|, Q [r, k] of f32. */
OMNIC_STATIC float left_over(const omnic_weight *basis, const float *x, const float *p) {
  int64_t panels = (basis->n + 15) / 16, k = basis->k;
  double sum = 0.0;
  for (int64_t j = 0; j < k; j++) {
    v16 inside = v16_zero();
    for (int64_t i = 0; i < panels; i++)
      inside = v16_fma(v16_load((const float *)basis->codes + (i * k + j) * 16), v16_load(p + i * 16), inside);
    double rest = (double)x[j] - (double)v16_sum(inside);
    sum += rest * rest;
  }
  return (float)sqrt(sum);
}

OMNIC_INLINE float length_of(const float *x, const float *less, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; i++) {
    double rest = (double)x[i] - (less ? (double)less[i] : 0.0);
    sum += rest * rest;
  }
  return (float)sqrt(sum);
}

/* Panels with a column whose bound is not below `known` (a bound that is no number never is), but for `first`. */
OMNIC_STATIC int64_t open_panels(const omnic_shortlist *s, const float *guess, const float *lengths, float known,
                                 int64_t first, int32_t *panels) {
  int64_t n = s->head->n, count = 0;
  const float *near = s->reach, *rounded = near + n, *all = rounded + n;
  for (int64_t panel = 0; panel * 16 < n; panel++) {
    int64_t to = panel * 16 + 16 < n ? panel * 16 + 16 : n;
    int open = 0;
    for (int64_t v = panel * 16; v < to; v++)
      open |= !(guess[v] + (near[v] * lengths[0] + rounded[v] * lengths[1] + all[v] * lengths[2]) < known);
    if (open && panel != first) panels[count++] = (int32_t)panel;
  }
  return count;
}

OMNIC_STATIC void OMNIC_FN(head_shortlist)(const omnic_call *call, const omnic_shortlist *s, const float *x, int64_t m,
                                           int64_t ldx, int32_t act, int64_t act_group, int64_t *ids, float *logits,
                                           int64_t *multiplied) {
  if (m <= 0) return;
#if defined(OMNIC_HAS_AMX)
  if (act == OMNIC_ACT_BF16) { /* whose tiles round the head too, which no bound knows of */
    OMNIC_FN(head_argmax)(call, s->head, x, m, ldx, act, act_group, 0.0f, ids, logits);
    for (int64_t i = 0; multiplied && i < m; i++) multiplied[i] = (s->head->n + 15) / 16;
    return;
  }
#endif
  int64_t n = s->head->n, r = s->basis->n, padded = product_round_up(r, 16);
  omnic_arena arena = {call->scratch};
  omnic_tuning way = tuning_of(call);
  /* The bound is of what the head multiplies with: x as `act` rounds it. */
  omnic_rows rows = prepare(call->pool, &way, &arena, product_kinds(s->head, act) | AS_VALUES, x, m, ldx, NULL,
                            s->head->k, act, act_group);
  float *p = take(&arena, padded * 4), *guess = take(&arena, n * 4);
  int32_t *panels = take(&arena, (n + 15) / 16 * 4);
  argmax_best best[SHORTLIST_TASKS];
  omnic_call inner = {.pool = call->pool, .scratch = arena.at, .tuning = call->tuning};
  memset(p, 0, (size_t)padded * 4);
  for (int64_t i = 0; i < m; i++) {
    const float *value = value_row(&rows, i);
    OMNIC_FN(linear)(&inner, s->basis, value, 1, s->head->k, OMNIC_ACT_F32, 0, NULL, NULL, 0, p, r);
    OMNIC_FN(linear)(&inner, s->screen, p, 1, r, OMNIC_ACT_I8_GROUP, 32, NULL, NULL, 0, guess, n);
    omnic_arena rest = {arena.at};
    omnic_rows rounded = prepare(NULL, &way, &rest, AS_VALUES, p, 1, r, NULL, r, OMNIC_ACT_I8_GROUP, 32);
    float lengths[3] = {left_over(s->basis, value, p), length_of(p, rounded.values, r),
                        length_of(value, NULL, s->head->k)};
    int64_t likely = 0;
    for (int64_t v = 1; v < n; v++)
      if (guess[v] > guess[likely]) likely = v;
    open_job job = {.w = s->head, .rows = &rows, .way = &way, .row = i, .panels = panels, .best = best};
    argmax_best found = best_of_panels(&job, likely / 16, 1);
    job.count = open_panels(s, guess, lengths, found.value, likely / 16, panels);
    job.per = (job.count + SHORTLIST_TASKS - 1) / SHORTLIST_TASKS;
    job.per = job.per > 4 ? job.per : 4;
    int64_t tasks = (job.count + job.per - 1) / job.per;
    run_tasks(call->pool, &way, open_task, &job, tasks);
    for (int64_t t = 0; t < tasks; t++) found = better(found, best[t]);
    ids[i] = found.id;
    if (logits) logits[i] = found.value;
    if (multiplied) multiplied[i] = job.count + 1;
  }
}
