/* Opening a program over its file of weights, and running its functions. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "omnic_program.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGE 4096
static const char MAGIC[8] = {'o', 'm', 'n', 'i', 'c', 'W', '0', '1'};

struct omnic_instance {
  const uint8_t *file;
  const omnic_ops *ops;
  omnic_pool *pool;
  omnic_weight *weights;
  const omnic_weight **pointers;
  uint8_t *arena;
  size_t arena_bytes;
  int threads;
};

/* The first page holds the magic word, the length of the file and the hash of the rest, as 64 hex digits. */
int omnic_program_check(const uint8_t *file, int64_t bytes) {
  const omnic_program *p = &omnic_program_table;
  int64_t said;
  if (bytes < PAGE || bytes != p->file_bytes || memcmp(file, MAGIC, 8)) return OMNIC_BAD_FILE;
  memcpy(&said, file + 8, 8);
  return said == bytes && memcmp(file + 16, p->file_hash, 64) == 0 ? OMNIC_OK : OMNIC_BAD_FILE;
}

static void *aligned(size_t bytes) {
  bytes = (bytes + PAGE - 1) / PAGE * PAGE;
#if defined(_WIN32)
  return _aligned_malloc(bytes ? bytes : PAGE, PAGE);
#else
  void *made = NULL;
  return posix_memalign(&made, PAGE, bytes ? bytes : PAGE) ? NULL : made;
#endif
}

static void drop(void *memory) {
#if defined(_WIN32)
  _aligned_free(memory);
#else
  free(memory);
#endif
}

static void bind(omnic_instance *x) {
  const omnic_program *p = &omnic_program_table;
  for (int64_t i = 0; i < p->matrices; i++) {
    const omnic_matrix *m = &p->matrix[i];
    x->weights[i] = (omnic_weight){
        .codes = x->file + m->codes,
        .scales = m->scales < 0 ? NULL : x->file + m->scales,
        .zeros = m->zeros < 0 ? NULL : x->file + m->zeros,
        .row = m->row < 0 ? NULL : (const float *)(x->file + m->row),
        .n = m->n, .k = m->k, .group = m->group, .type = m->type, .scale_type = m->scale_type};
    x->pointers[i] = &x->weights[i];
  }
}

int omnic_program_open(const uint8_t *file, int64_t bytes, int level, int threads, omnic_instance **made) {
  const omnic_program *p = &omnic_program_table;
  *made = NULL;
  if (omnic_program_check(file, bytes)) return OMNIC_BAD_FILE;
  const omnic_ops *ops = omnic_kernels(level < 0 ? omnic_best_level() : level);
  if (!ops) return OMNIC_NO_LEVEL;
  omnic_instance *x = calloc(1, sizeof *x);
  if (!x) return OMNIC_NO_MEMORY;
  x->file = file, x->ops = ops, x->threads = threads < 1 ? 1 : threads;
  x->weights = calloc((size_t)p->matrices + 1, sizeof *x->weights);
  x->pointers = calloc((size_t)p->matrices + 1, sizeof *x->pointers);
  if (x->weights && x->pointers) bind(x);
  if (x->threads > 1) x->pool = omnic_pool_create(x->threads);
  int failed = !x->weights || !x->pointers ? OMNIC_NO_MEMORY : x->threads > 1 && !x->pool ? OMNIC_NO_THREADS : OMNIC_OK;
  if (failed) {
    omnic_program_close(x);
    return failed;
  }
  *made = x;
  return OMNIC_OK;
}

void omnic_program_close(omnic_instance *x) {
  if (!x) return;
  if (x->pool) omnic_pool_destroy(x->pool);
  drop(x->arena);
  free(x->weights);
  free((void *)x->pointers);
  free(x);
}

int omnic_program_level(const omnic_instance *x) { return x->ops->level; }

/* The memory of a call grows to the largest function that ran; pages that no call touches take no memory. */
static int reserve(omnic_instance *x, size_t bytes) {
  if (bytes <= x->arena_bytes) return OMNIC_OK;
  drop(x->arena);
  x->arena = aligned(bytes);
  x->arena_bytes = x->arena ? bytes : 0;
  return x->arena ? OMNIC_OK : OMNIC_NO_MEMORY;
}

static double now(void) {
  struct timespec t;
#if defined(_WIN32)
  timespec_get(&t, TIME_UTC);
#else
  clock_gettime(CLOCK_MONOTONIC, &t);
#endif
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void omnic_mark(const omnic_run *run, int at) {
  double time = now();
  run->times[at] += time - *run->clock;
  *run->clock = time;
}

static const omnic_function *find(const char *name, int64_t tokens, int64_t rows) {
  const omnic_program *p = &omnic_program_table;
  const omnic_function *found = NULL;
  for (int64_t i = 0; i < p->functions; i++) {
    const omnic_function *f = &p->function[i];
    if (strcmp(f->name, name)) continue;
    if (f->tokens == 1 && tokens == 1 && rows == 1) return f;
    if (f->tokens >= tokens && f->tokens >= rows && (!found || found->tokens < f->tokens)) found = f;
  }
  return found;
}

int omnic_program_run(omnic_instance *x, const char *name, int64_t batch, int64_t tokens, int64_t rows,
                      const void *const *in, void *const *out, uint8_t *states, double *times) {
  const omnic_program *p = &omnic_program_table;
  const omnic_function *f = find(name, tokens, rows);
  if (!f || batch < 1 || batch > p->batch || tokens < 1 || rows < 1) return OMNIC_BAD_CALL;
  size_t scratch = f->scratch(x->weights, batch, x->threads);
  if (reserve(x, (size_t)f->arena + scratch)) return OMNIC_NO_MEMORY;
  double clock = times ? now() : 0;
  omnic_run run = {.ops = x->ops, .pool = x->pool, .weights = x->weights, .pointers = x->pointers, .file = x->file,
                   .arena = x->arena, .scratch = x->arena + f->arena, .states = states, .scratch_bytes = scratch,
                   .batch = batch, .tokens = tokens, .rows = rows, .in = in, .out = out, .times = times,
                   .clock = &clock};
  f->run(&run);
  return OMNIC_OK;
}

static omnic_cache cache_of(const omnic_state *s, uint8_t *states, int64_t batch) {
  return (omnic_cache){
      .data = states + s->at * batch,
      .scales = s->scales_at < 0 ? NULL : states + s->scales_at * batch,
      .zeros = s->zeros_at < 0 ? NULL : states + s->zeros_at * batch,
      .slots = s->slots, .d = s->d, .group = s->group,
      .stride_b = s->heads * s->slots * s->d, .stride_g = s->slots * s->d, .stride_s = s->d,
      .type = s->type, .scale_type = s->scale_type, .ring = s->ring};
}

omnic_cache omnic_cache_of(const omnic_run *run, int state) {
  return cache_of(&omnic_program_table.state[state], run->states, run->batch);
}

int omnic_program_move(omnic_instance *x, const int32_t *moved, int64_t count, int64_t batch, int64_t pairs,
                       const int64_t *source, const int64_t *target, uint8_t *states) {
  const omnic_program *p = &omnic_program_table;
  /* All reads come before all writes: one token of every pair and head lies in the scratch for a moment. */
  int64_t most = 0;
  for (int64_t i = 0; i < count; i++) {
    const omnic_state *s = &p->state[moved[i]];
    if (s->heads * s->d > most) most = s->heads * s->d;
  }
  size_t bytes = (size_t)(batch * pairs * most * 8 + 4096);
  if (reserve(x, bytes)) return OMNIC_NO_MEMORY;
  omnic_call c = {x->pool, x->arena, bytes};
  for (int64_t i = 0; i < count; i++) {
    const omnic_state *s = &p->state[moved[i]];
    omnic_cache cache = cache_of(s, states, batch);
    x->ops->cache_move(&c, &cache, s->heads, batch, pairs, source, target);
  }
  return OMNIC_OK;
}
