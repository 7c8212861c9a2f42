/* How a call cuts its products and reads ahead: what it asks for, and the level's own way where it asks for nothing.
 * Results do not depend on it. */

#define CHUNK_MOST 512   /* rows that may share an unpacked panel */
#define BLOCK_MOST 2048  /* numbers of k that may be unpacked at a time */
#if !defined(COLS)
#define PANELS_IN_FLIGHT 1
#define BYTES_AHEAD 0
#endif

OMNIC_INLINE int32_t in_steps(int32_t value, int32_t step, int32_t most) {
  return value < step ? step : value > most ? most : value / step * step;
}

/* The tuning of a call with every field filled in. */
OMNIC_STATIC omnic_tuning tuning_of(const omnic_call *call) {
  const omnic_tuning own = {.panels = PANELS_IN_FLIGHT, .prefetch = BYTES_AHEAD, .k_block = 1024, .chunk = 128};
  omnic_tuning way = call->tuning ? *call->tuning : own;
  int threads = omnic_pool_threads(call->pool);
  way.panels = way.panels <= 0 ? own.panels : way.panels >= 4 ? 4 : way.panels >= 2 ? 2 : 1;
  way.prefetch = way.prefetch < 0 || !call->tuning ? own.prefetch : way.prefetch;
  way.k_block = way.k_block <= 0 ? own.k_block : in_steps(way.k_block, 64, BLOCK_MOST);
  way.chunk = way.chunk <= 0 ? own.chunk : in_steps(way.chunk, 16, CHUNK_MOST);
  way.threads = way.threads <= 0 || way.threads > threads ? threads : way.threads;
  return way;
}

/* Fewer threads than the pool has: as many tasks as threads, each of which takes tasks until none is left. */
typedef struct {
  void (*task)(void *arg, int64_t i);
  void *arg;
  int64_t tasks;
  int64_t next;
} shared_tasks;

OMNIC_STATIC void take_tasks(void *arg, int64_t worker) {
  (void)worker;
  shared_tasks *shared = arg;
  for (int64_t i; (i = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED)) < shared->tasks;)
    shared->task(shared->arg, i);
}

OMNIC_STATIC void run_tasks(omnic_pool *pool, const omnic_tuning *way, void (*task)(void *arg, int64_t i), void *arg,
                            int64_t tasks) {
  if (way->threads < omnic_pool_threads(pool) && way->threads < tasks) {
    shared_tasks shared = {task, arg, tasks, 0};
    omnic_pool_run(pool, take_tasks, &shared, way->threads);
    return;
  }
  omnic_pool_run(pool, task, arg, tasks);
}
