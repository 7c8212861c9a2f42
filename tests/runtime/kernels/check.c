/* Random cases of attention, caches and rows in every level of this machine, held to generic C to the bit.
 *
 *   check SEED CASES      prints the levels that ran and a digest of generic's results; 1 when a level differs
 *
 * The digest is the same on every platform.  Run under sanitisers, with emulated levels, and under qemu.
 */
#include "omnic_kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;
static uint32_t draw(void) {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return (uint32_t)(state >> 33);
}
static int64_t upto(int64_t low, int64_t high) { return low + draw() % (uint64_t)(high - low + 1); }
static float number(void) { return (float)((int32_t)(draw() & 0xffffff) - 0x800000) * 0x1p-22f; }

static float *numbers(int64_t count) {
  float *x = malloc((size_t)(count ? count : 1) * sizeof *x);
  for (int64_t i = 0; i < count; i++) x[i] = number();
  return x;
}
static void *room(size_t bytes) { return calloc(bytes ? bytes : 1, 1); }

static uint64_t digest = 0xcbf29ce484222325ull;
static int failures;

/* Results of generic are digested; those of other levels are compared with them. */
static void settle(const char *what, const omnic_ops *ops, const void *got, const void *want, size_t bytes) {
  if (ops->level == OMNIC_GENERIC) {
    for (size_t i = 0; i < bytes; i++) digest = (digest ^ ((const uint8_t *)got)[i]) * 0x100000001b3ull;
  } else if (memcmp(got, want, bytes)) {
    size_t i = 0;
    while (((const uint8_t *)got)[i] == ((const uint8_t *)want)[i]) i++;
    if (failures++ < 20) printf("%s: %s differs from generic at byte %zu of %zu\n", omnic_level_name(ops->level), what, i, bytes);
  }
}

static const omnic_ops *levels[16];
static int level_count;
static omnic_pool *pools[4];

static omnic_call call_with(int threads, size_t scratch) {
  omnic_call call = {pools[threads], NULL, scratch};
  char *raw = malloc(scratch + 128);
  call.scratch = (void *)(((uintptr_t)raw + 127) & ~(uintptr_t)63);
  ((void **)call.scratch)[-1] = raw;
  return call;
}
static void give_back(omnic_call *call) { free(((void **)call->scratch)[-1]); }

typedef struct {
  omnic_cache c;
  size_t data, scales, zeros;
} held;

/* A cache of random shape around [batch, heads, slots, d], written by generic. */
static held hold(int64_t batch, int64_t heads, int64_t slots, int64_t d, int ring, int paged, int type) {
  held h;
  memset(&h, 0, sizeof h);
  static const int64_t sizes[] = {8, 16, 32, 64};
  int64_t group = sizes[draw() % 4], pad = upto(0, 1) * d, pages = 1;
  omnic_cache *c = &h.c;
  c->type = type, c->slots = slots, c->d = d, c->ring = ring;
  c->group = group < d ? group : d;
  c->scale_type = draw() % 2 ? OMNIC_F16 : OMNIC_F32;
  int64_t groups = (d + c->group - 1) / c->group, rows = slots;
  if (paged) {
    c->block = upto(1, 9), c->blocks_b = (slots + c->block - 1) / c->block;
    pages = batch * c->blocks_b;
    int32_t *blocks = room((size_t)pages * sizeof *blocks);
    for (int64_t i = 0; i < pages; i++) blocks[i] = (int32_t)i;
    for (int64_t i = pages - 1; i > 0; i--) {
      int64_t j = upto(0, i);
      int32_t held_block = blocks[i];
      blocks[i] = blocks[j], blocks[j] = held_block;
    }
    c->blocks = blocks, rows = pages * c->block;
  }
  c->stride_s = d + pad, c->stride_g = rows * c->stride_s, c->stride_b = paged ? 0 : heads * c->stride_g;
  int64_t elements = (paged ? 1 : batch) * heads * c->stride_g;
  h.data = (size_t)(type == OMNIC_F32 ? 4 * elements : type == OMNIC_I8 ? elements : type == OMNIC_I4 ? elements / 2 : 2 * elements);
  c->data = room(h.data);
  if (type == OMNIC_I8 || type == OMNIC_I4) {
    h.scales = (size_t)(elements / d * groups * (c->scale_type == OMNIC_F16 ? 2 : 4));
    c->scales = room(h.scales);
    if (draw() % 2) h.zeros = (size_t)(elements / d * groups), c->zeros = room(h.zeros);
  }
  return h;
}
static void drop(held *h) {
  free(h->c.data), free(h->c.scales), free(h->c.zeros), free((void *)h->c.blocks);
}

/* Write x [batch, heads, slots, d] into a cache with every level: all bytes are the same. */
static void fill(held *h, int64_t batch, int64_t heads, const float *x, const int64_t *end, int64_t tokens) {
  int64_t start[8], length[8], d = h->c.d;
  for (int64_t b = 0; b < batch; b++) {
    length[b] = end[b] < tokens ? end[b] : tokens;
    start[b] = end[b] - length[b];
  }
  omnic_view view = {(float *)x, heads * tokens * d, tokens * d, d};
  void *data = room(h->data), *scales = room(h->scales), *zeros = room(h->zeros);
  for (int l = 0; l < level_count; l++) {
    omnic_call call = call_with(l % 3, 64);
    memset(h->c.data, 0, h->data);
    if (h->c.scales) memset(h->c.scales, 0, h->scales);
    if (h->c.zeros) memset(h->c.zeros, 0, h->zeros);
    levels[l]->cache_write(&call, &h->c, heads, batch, tokens, start, length, view);
    settle("cache_write", levels[l], h->c.data, data, h->data);
    if (h->c.scales) settle("scales", levels[l], h->c.scales, scales, h->scales);
    if (h->c.zeros) settle("zeros", levels[l], h->c.zeros, zeros, h->zeros);
    if (!l) {
      memcpy(data, h->c.data, h->data);
      if (h->c.scales) memcpy(scales, h->c.scales, h->scales);
      if (h->c.zeros) memcpy(zeros, h->c.zeros, h->zeros);
    }
    give_back(&call);
  }
  free(data), free(scales), free(zeros);
}

static void attention_case(int mla) {
  int64_t batch = upto(1, 3), groups = mla ? 1 : upto(1, 3), per = upto(1, mla ? 17 : 5), heads = groups * per;
  int type = (int)upto(0, 4), other = draw() % 2 ? type : (int)upto(0, 4);
  /* Numbers of a row: whole lanes as often as anything that the types can hold. */
  int64_t unit = draw() % 2 ? 16 : type == OMNIC_I4 || other == OMNIC_I4 ? 2 : 1, most = (mla ? 120 : 80) / unit;
  int64_t tokens = upto(1, draw() % 4 ? 6 : 40), d = unit * upto(1, most), dv = mla ? d : unit * upto(1, most);
  int64_t more = unit * upto(1, 40 / unit), ring = draw() % 4 == 0, long_context = draw() % 6 == 0;
  int64_t slots = tokens + upto(0, long_context ? 2500 : 90), window = draw() % 3 ? 0 : upto(1, 50);
  if (ring && !window) window = upto(1, 20);
  if (ring) slots = window + tokens - 1 + upto(0, 3);
  int paged = draw() % 4 == 0 && !ring;
  held k = hold(batch, groups, slots, d, (int)ring, paged, type);
  held v = hold(batch, groups, slots, mla ? more : dv, (int)ring, paged, other);
  int64_t start[8], length[8], end[8], *parents = NULL;
  for (int64_t b = 0; b < batch; b++) {
    length[b] = upto(draw() % 4 == 0 ? 0 : 1, tokens);
    start[b] = ring ? upto(0, 3 * slots) : upto(0, slots - tokens);
    end[b] = start[b] + length[b];
  }
  if (draw() % 3 == 0) {
    parents = malloc((size_t)(batch * tokens) * sizeof *parents);
    for (int64_t i = 0; i < batch * tokens; i++) parents[i] = upto(-1, i % tokens - 1);
  }
  float *x = numbers(batch * groups * slots * d), *z = numbers(batch * groups * slots * (mla ? more : dv));
  fill(&k, batch, groups, x, end, slots);
  fill(&v, batch, groups, z, end, slots);
  float *sinks = !mla && draw() % 2 ? numbers(heads) : NULL;
  omnic_mask mask = {batch, tokens, start, length, parents, sinks, 0.2f, draw() % 3 ? 0.0f : 5.0f, window};
  float *q = numbers(batch * heads * tokens * d), *q_more = numbers(batch * heads * tokens * more);
  int64_t out = mla ? d : dv;
  size_t bytes = (size_t)(batch * heads * tokens * out) * sizeof(float);
  float *y = room(bytes), *want = room(bytes);
  /* Tokens before heads in the queries, heads before tokens in the results. */
  omnic_view from = {q, tokens * heads * d, d, heads * d}, from_more = {q_more, tokens * heads * more, more, heads * more};
  omnic_view to = {y, heads * tokens * out, tokens * out, out};
  for (int l = 0; l < level_count; l++)
    for (int threads = 0; threads < 3; threads++) {
      omnic_call call = call_with(threads, omnic_scratch_attention(heads, tokens, mla ? d + more : d, out, slots, threads ? threads + 1 : 1));
      memset(y, 0, bytes);
      if (mla)
        levels[l]->mla(&call, &mask, heads, from, from_more, &k.c, &v.c, to);
      else
        levels[l]->attention(&call, &mask, heads, groups, from, &k.c, &v.c, to);
      if (!l && !threads)
        memcpy(want, y, bytes), settle(mla ? "mla" : "attention", levels[0], y, want, bytes);
      else if (memcmp(y, want, bytes) && failures++ < 20)
        printf("%s: %s with %d threads differs from generic\n", omnic_level_name(levels[l]->level), mla ? "mla" : "attention", threads + 1);
      give_back(&call);
    }
  /* Some tokens move; the bytes of every level stay those of generic. */
  int64_t source[24], target[24], pairs = upto(1, 8);
  for (int64_t i = 0; i < batch * pairs; i++) source[i] = upto(-1, slots - 1), target[i] = upto(-1, slots - 1);
  void *before = malloc(k.data), *after = malloc(k.data);
  memcpy(before, k.c.data, k.data);
  for (int l = 0; l < level_count; l++) {
    omnic_call call = call_with(0, 64);
    memcpy(k.c.data, before, k.data);
    levels[l]->cache_move(&call, &k.c, groups, batch, pairs, source, target);
    settle("cache_move", levels[l], k.c.data, after, k.data);
    if (!l) memcpy(after, k.c.data, k.data);
    give_back(&call);
  }
  free(before), free(after), free(x), free(z), free(q), free(q_more), free(y), free(want), free(sinks), free(parents);
  drop(&k), drop(&v);
}

static void rows_case(void) {
  int64_t m = upto(1, 5), d = upto(1, draw() % 5 ? 90 : 9000), count = m * d, k = upto(1, d < 12 ? d : 12);
  int64_t pairs = upto(1, d / 2 ? d / 2 : 1), heads = upto(1, 3);
  float *x = numbers(count), *w = numbers(d), *b = numbers(d), *big = numbers(count);
  for (int64_t i = 0; i < count; i++) big[i] *= (float)upto(1, 60);
  for (int64_t i = 0; i < count; i += 3) x[i] = x[i / 2]; /* equal numbers for topk */
  double *freq = room((size_t)pairs * sizeof *freq);
  for (int64_t i = 0; i < pairs; i++) freq[i] = (double)draw() / 4294967296.0;
  int64_t positions[8];
  for (int64_t i = 0; i < m; i++) positions[i] = upto(0, 1 << 20);
  size_t bytes = (size_t)count * sizeof(float);
  enum { PLACES = 16 };
  float *y = room(bytes), *values = room((size_t)(m * k) * 4), *turned = room(bytes * (size_t)heads), *want[PLACES] = {0};
  int64_t *indices = room((size_t)(m * k) * 8);
  float *rows = numbers(count * heads);
  for (int l = 0; l < level_count; l++) {
    const omnic_ops *ops = levels[l];
    omnic_call call = call_with(l % 3, 64);
    int place = 0;
#define RESULT(name, array, size)                                   \
  do {                                                              \
    if (!l) want[place] = malloc(size), memcpy(want[place], array, size); \
    settle(name, ops, array, want[place++], size);                  \
  } while (0)
    ops->rms_norm(&call, x, m, d, d, w, 1e-6f, y, d);
    RESULT("rms_norm", y, bytes);
    ops->layer_norm(&call, x, m, d, d, w, b, 1e-5f, y, d);
    RESULT("layer_norm", y, bytes);
    ops->softmax(&call, big, m, d, y);
    RESULT("softmax", y, bytes);
    for (int kind = OMNIC_SILU; kind <= OMNIC_RELU2; kind++) {
      ops->act(&call, kind, big, count, y);
      RESULT("act", y, bytes);
    }
    ops->gated_act(&call, OMNIC_GELU_TANH, big, x, count, y);
    RESULT("gated_act", y, bytes);
    ops->add(&call, x, big, count, y);
    RESULT("add", y, bytes);
    ops->topk(&call, x, m, d, k, values, indices);
    RESULT("topk", values, (size_t)(m * k) * 4);
    RESULT("indices", indices, (size_t)(m * k) * 8);
    if (d >= 2) {
      omnic_view from = {rows, heads * m * d, m * d, d}, to = {turned, heads * m * d, m * d, d};
      ops->rope(&call, 1, heads, m, d, 2 * pairs, freq, 1.1, (int)(d & 1), positions, from, to);
      RESULT("rope", turned, bytes * (size_t)heads);
    }
    give_back(&call);
  }
  for (int i = 0; i < PLACES; i++) free(want[i]);
  free(x), free(w), free(b), free(big), free(freq), free(y), free(values), free(indices), free(turned), free(rows);
}

int main(int argc, char **argv) {
  static const int every[] = {OMNIC_GENERIC, OMNIC_AVX2, OMNIC_AVXVNNI, OMNIC_AVX512, OMNIC_AMX, OMNIC_NEON, OMNIC_DOTPROD, OMNIC_I8MM};
  if (argc != 3) return 2;
  state = strtoull(argv[1], NULL, 10) * 7919 + 1;
  long cases = strtol(argv[2], NULL, 10);
  pools[1] = omnic_pool_create(2);
  pools[2] = omnic_pool_create(3);
  printf("levels");
  for (size_t i = 0; i < sizeof every / sizeof *every; i++)
    if (omnic_kernels(every[i])) {
      levels[level_count++] = omnic_kernels(every[i]);
      printf(" %s", omnic_level_name(every[i]));
    }
  printf("\n");
  for (long i = 0; i < cases; i++) {
    attention_case(0);
    attention_case(1);
    rows_case();
  }
  omnic_pool_destroy(pools[1]);
  omnic_pool_destroy(pools[2]);
  printf("digest %016llx\n", (unsigned long long)digest);
  return failures != 0;
}
