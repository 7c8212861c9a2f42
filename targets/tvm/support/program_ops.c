/* Small operations between the kernels: copies of strided views, rows that are wanted, the choice of experts. */
#include "omnic_program.h"

#include <math.h>
#include <string.h>

#define MOST_DIMS 8

omnic_call omnic_tuned(const omnic_call *c, const omnic_ops *K, const omnic_tuned_rows *table, int64_t rows) {
  omnic_call call = *c;
  int threads = omnic_pool_threads(c->pool);
  for (const omnic_tuned_rows *t = table; t->to; t++)
    if (t->level == K->level && t->threads == threads && t->from <= rows && rows <= t->to) call.tuning = &t->tuning;
  return call;
}

size_t omnic_larger(size_t a, size_t b) { return a > b ? a : b; }
int64_t omnic_min(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t omnic_max(int64_t a, int64_t b) { return a > b ? a : b; }

void omnic_copy(int rank, const int64_t *shape, int64_t width, const void *source, const int64_t *from, void *target,
                const int64_t *to) {
  int64_t index[MOST_DIMS] = {0};
  const uint8_t *s = source;
  uint8_t *t = target;
  int last = rank - 1;
  for (int d = 0; d < rank; d++)
    if (shape[d] == 0) return;
  for (;;) {
    if (from[last] == 1 && to[last] == 1) {
      memcpy(t, s, (size_t)(shape[last] * width));
    } else {
      for (int64_t i = 0; i < shape[last]; i++) memcpy(t + i * to[last] * width, s + i * from[last] * width, (size_t)width);
    }
    int d = last - 1;
    for (; d >= 0; d--) {
      s += from[d] * width, t += to[d] * width;
      if (++index[d] < shape[d]) break;
      s -= from[d] * shape[d] * width, t -= to[d] * shape[d] * width;
      index[d] = 0;
    }
    if (d < 0) return;
  }
}

void omnic_rows(int64_t batch, int64_t tokens, int64_t wanted, int64_t width, const int64_t *rows, const float *x,
                int64_t ldx, float *y) {
  for (int64_t i = 0; i < batch * wanted; i++)
    memcpy(y + i * width, x + (i / wanted * tokens + rows[i]) * ldx, (size_t)width * sizeof *y);
}

/* Whether number i of a row comes after number j of it. */
static int after(const void *x, int f32, int descending, int64_t i, int64_t j) {
  if (f32) {
    const float *v = x;
    return descending ? v[i] < v[j] : v[i] > v[j];
  }
  const int64_t *v = x;
  return descending ? v[i] < v[j] : v[i] > v[j];
}

/* Runs of 1, 2, 4, ... indices are merged; of equals the left one comes first. */
static void order_row(int64_t n, int f32, int descending, const void *x, int64_t *work, int64_t *indices) {
  for (int64_t i = 0; i < n; i++) indices[i] = i;
  for (int64_t run = 1; run < n; run *= 2) {
    for (int64_t from = 0; from < n; from += 2 * run) {
      int64_t i = from, middle = omnic_min(from + run, n), j = middle, end = omnic_min(from + 2 * run, n);
      for (int64_t at = from; at < end; at++)
        work[at] = j >= end || (i < middle && !after(x, f32, descending, indices[i], indices[j])) ? indices[i++]
                                                                                                 : indices[j++];
    }
    memcpy(indices, work, (size_t)n * sizeof *work);
  }
}

void omnic_sort(int64_t m, int64_t n, int f32, int descending, const void *x, int64_t *work, void *values,
                int64_t *indices) {
  int64_t width = f32 ? 4 : 8;
  for (int64_t i = 0; i < m; i++, indices += n) {
    const uint8_t *row = (const uint8_t *)x + i * n * width;
    order_row(n, f32, descending, row, work, indices);
    for (int64_t j = 0; j < n; j++)
      memcpy((uint8_t *)values + (i * n + j) * width, row + indices[j] * width, (size_t)width);
  }
}

void omnic_scatter(int rank, const int64_t *shape, int axis, int kind, const int64_t *which, const int64_t *from,
                   const void *values, const int64_t *of, void *y, const int64_t *to) {
  int64_t total = 1;
  for (int d = 0; d < rank; d++) total *= shape[d];
  for (int64_t i = 0; i < total; i++) {
    int64_t rest = i, at = 0, source = 0, target = 0, index[MOST_DIMS];
    for (int d = rank - 1; d >= 0; d--) index[d] = rest % shape[d], rest /= shape[d];
    for (int d = 0; d < rank; d++) at += index[d] * from[d], source += index[d] * of[d];
    for (int d = 0; d < rank; d++) target += (d == axis ? which[at] : index[d]) * to[d];
    if (kind == 3) ((float *)y)[target] += ((const float *)values)[source];
    if (kind == 2) ((float *)y)[target] = ((const float *)values)[source];
    if (kind == 1) ((int64_t *)y)[target] += ((const int64_t *)values)[source];
    if (kind == 0) ((int64_t *)y)[target] = ((const int64_t *)values)[source];
  }
}

float omnic_round_bf16(float x) {
  uint32_t word;
  memcpy(&word, &x, 4);
  if ((word & 0x7fffffff) <= 0x7f800000) word += 0x7fff + (word >> 16 & 1);
  word &= 0xffff0000;
  memcpy(&x, &word, 4);
  return x;
}

/* To the nearest multiple of the step of f16 at x, half to even: adding and taking away 2^23 steps rounds so. */
float omnic_round_f16(float x) {
  float size = fabsf(x), low = 0x1p-14f;
  if (!(size < 65520.0f)) return size >= 65520.0f ? copysignf(INFINITY, x) : x;
  int exponent;
  frexpf(size < low ? low : size, &exponent);
  float bound = ldexpf(1.5f, exponent + 12);
  volatile float sum = x + bound;
  return copysignf(sum - bound, x);
}

void omnic_softcap(int64_t m, int64_t n, float cap, float *y, int64_t ldy) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) y[i * ldy + j] = cap * tanhf(y[i * ldy + j] / cap);
}

void omnic_table(const float **table, int64_t count, const float *numbers, int64_t width) {
  for (int64_t i = 0; i < count; i++) table[i] = numbers + i * width;
}

static float half(uint16_t bits) {
  uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, rest = bits & 1023, word;
  float found;
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)rest * 0x1p-24f;
  word = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | rest << 13;
  memcpy(&found, &word, 4);
  return found;
}

static float bfloat(uint16_t bits) {
  uint32_t word = (uint32_t)bits << 16;
  float found;
  memcpy(&found, &word, 4);
  return found;
}

/* Number i of a cache. */
static float number(const omnic_cache *c, int64_t i) {
  if (c->type == OMNIC_F32) return ((const float *)c->data)[i];
  if (c->type == OMNIC_F16) return half(((const uint16_t *)c->data)[i]);
  if (c->type == OMNIC_BF16) return bfloat(((const uint16_t *)c->data)[i]);
  int64_t groups = (c->d + c->group - 1) / c->group, at = i / c->d * groups + i % c->d / c->group;
  float scale = c->scale_type == OMNIC_F16 ? half(((const uint16_t *)c->scales)[at]) : ((const float *)c->scales)[at];
  int wide = c->type == OMNIC_I8, zero = c->zeros ? c->zeros[at] - (wide ? 128 : 0) : wide ? 0 : 8;
  int code = wide ? ((const int8_t *)c->data)[i] : ((const uint8_t *)c->data)[i / 2] >> (4 * (i & 1)) & 15;
  return (float)(code - zero) * scale;
}

void omnic_cache_dense(const omnic_cache *c, int64_t batch, float *y) {
  for (int64_t i = 0; i < batch * c->stride_b; i++) y[i] = number(c, i);
}

void omnic_cache_index(const omnic_cache *c, int64_t batch, const int64_t *start, const int64_t *length,
                       int64_t *index) {
  for (int64_t b = 0; b < batch; b++) {
    int64_t n = start[b] + length[b];
    for (int64_t s = 0; s < c->slots; s++) {
      int64_t token = c->ring && n > 0 ? s + (n - 1 - s) / c->slots * c->slots : s;
      index[b * c->slots + s] = token < n && s < n ? token : -1;
    }
  }
}

/* 1 / (1 + e^-x) of n numbers as the first of a softmax over (x, 0), so that the kernels' own exp is the only one. */
static void sigmoids(const omnic_ops *K, const omnic_call *c, const float *x, int64_t n, float *pairs, float *y) {
  for (int64_t i = 0; i < n; i++) pairs[2 * i] = x[i], pairs[2 * i + 1] = 0;
  K->softmax(c, pairs, n, 2, pairs + 2 * n);
  for (int64_t i = 0; i < n; i++) y[i] = pairs[2 * (n + i)];
}

/* The indices of the k largest of x, descending, the lower index first among equals; x of the chosen becomes -inf. */
static void choose(float *x, int64_t n, int64_t k, int64_t *chosen) {
  for (int64_t j = 0; j < k; j++) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
      if (x[i] > x[best]) best = i;
    chosen[j] = best;
    x[best] = -INFINITY;
  }
}

static float group_score(const omnic_router *r, const float *score, int64_t from, int64_t size) {
  float first = -INFINITY, second = -INFINITY;
  for (int64_t i = from; i < from + size; i++) {
    if (score[i] > first) second = first, first = score[i];
    else if (score[i] > second) second = score[i];
  }
  return r->top2_sum ? first + second : first;
}

static int64_t group_of(const omnic_router *r, int64_t expert) {
  int64_t g = 0;
  for (int64_t end = r->sizes[0]; expert >= end; end += r->sizes[++g]) {}
  return g;
}

/* Leave only the experts of the best groups: the others score -inf. */
static void mask_groups(const omnic_router *r, const float *group_logits, float *score, float *best, float *kept) {
  int64_t at = 0, one;
  for (int64_t g = 0; g < r->groups; at += r->sizes[g++]) {
    best[g] = group_logits ? group_logits[g] : group_score(r, score, at, r->sizes[g]);
    kept[g] = 0;
  }
  for (int64_t j = 0; j < r->top_groups; j++) {
    choose(best, r->groups, 1, &one);
    kept[one] = 1;
  }
  at = 0;
  for (int64_t g = 0; g < r->groups; at += r->sizes[g++])
    for (int64_t i = at; i < at + r->sizes[g]; i++)
      if (kept[g] == 0) score[i] = -INFINITY;
}

static void gates_of(const omnic_ops *K, const omnic_call *c, const omnic_router *r, const float *logits,
                     const float *squashed, float *work, const int64_t *chosen, float *gates) {
  if (r->sigmoid) {
    float total = 0;
    for (int64_t j = 0; j < r->top; j++) total += gates[j] = squashed[chosen[j]];
    for (int64_t j = 0; r->renormalise && j < r->top; j++) gates[j] /= total;
  } else if (r->renormalise) {
    for (int64_t j = 0; j < r->top; j++) work[j] = logits[chosen[j]];
    K->softmax(c, work, 1, r->top, gates);
  } else {
    K->softmax(c, logits, 1, r->experts, work);
    for (int64_t j = 0; j < r->top; j++) gates[j] = work[chosen[j]];
  }
}

/* Multiply the gates by the probability of their groups. */
static void weigh_groups(const omnic_ops *K, const omnic_call *c, const omnic_router *r, const float *group_logits,
                         float *work, const int64_t *chosen, float *gates) {
  float total = 0, *weight = work + r->groups;
  K->softmax(c, group_logits, 1, r->groups, work);
  for (int64_t j = 0; j < r->top; j++) total += weight[j] = work[group_of(r, chosen[j])];
  for (int64_t j = 0; j < r->top; j++) gates[j] *= r->top_groups > 1 ? weight[j] / total : weight[j];
}

static void route_rows(const omnic_ops *K, const omnic_call *c, const omnic_router *r, int64_t m, const float *logits,
                       const float *group_logits, const float *bias, float *work, int64_t *indices, float *gates) {
  int64_t n = r->experts;
  for (int64_t i = 0; i < m; i++, logits += n, indices += r->top, gates += r->top) {
    float *score = work, *squashed = work + n, *more = work + 2 * n, *best = work + 6 * n, *kept = best + r->groups;
    if (r->sigmoid) sigmoids(K, c, logits, n, more, squashed);
    for (int64_t e = 0; e < n; e++) score[e] = (r->sigmoid ? squashed[e] : logits[e]) + (bias ? bias[e] : 0);
    if (r->groups) mask_groups(r, group_logits, score, best, kept);
    choose(score, n, r->top, indices);
    gates_of(K, c, r, logits, squashed, more, indices, gates);
    if (group_logits) weigh_groups(K, c, r, group_logits, more, indices, gates);
    for (int64_t j = 0; j < r->top; j++) gates[j] *= r->scale;
    if (group_logits) group_logits += r->groups;
  }
}

/* Fewer logits than this are not worth waking a thread. */
#define ROUTE_WORTH 4096
/* Pieces of rows for each thread. */
#define ROUTE_PIECES 2

static int64_t route_work(const omnic_router *r) {
  return (8 * (r->experts + r->groups + r->top) + 15) / 16 * 16;
}

size_t omnic_scratch_route(const omnic_router *r, int threads) {
  return (size_t)(ROUTE_PIECES * threads * route_work(r)) * sizeof(float);
}

typedef struct {
  const omnic_ops *K;
  const omnic_router *r;
  const float *logits, *group_logits, *bias;
  float *work, *gates;
  int64_t *indices, m, each;
} route_job;

/* One piece of the rows, with a row of work of its own. */
static void route_piece(void *arg, int64_t piece) {
  const route_job *job = arg;
  const omnic_router *r = job->r;
  const omnic_call alone = {0}; /* a task of the pool does not call it */
  int64_t first = piece * job->each, rows = omnic_min(job->each, job->m - first);
  const float *group_logits = job->group_logits ? job->group_logits + first * r->groups : NULL;
  route_rows(job->K, &alone, r, rows, job->logits + first * r->experts, group_logits, job->bias,
             job->work + piece * route_work(r), job->indices + first * r->top, job->gates + first * r->top);
}

void omnic_route(const omnic_ops *K, const omnic_call *c, const omnic_router *r, int64_t m, const float *logits,
                 const float *group_logits, const float *bias, int64_t *indices, float *gates) {
  int64_t threads = omnic_pool_threads(c->pool);
  int64_t pieces = threads > 1 && m * r->experts >= ROUTE_WORTH ? omnic_min(m, ROUTE_PIECES * threads) : 1;
  route_job job = {K, r, logits, group_logits, bias, c->scratch, gates, indices, m, (m + pieces - 1) / pieces};
  if (m > 0) omnic_pool_run(c->pool, route_piece, &job, (m + job.each - 1) / job.each);
}
