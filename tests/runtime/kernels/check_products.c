/* Random products with packed weights in every level of this machine, held to generic C to the bit, row by row and
 * with random tunings too.
 *
 *   check_products SEED CASES      prints the levels that ran and a digest of generic's results; 1 when a level differs
 *
 * Every array has just its size, so that a sanitiser sees a step beyond it.
 */
#include "omnic_kernels.h"

#include <math.h>
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
static void *room(int64_t bytes) { return calloc((size_t)(bytes > 0 ? bytes : 1), 1); }
static float *numbers(int64_t count) {
  float *x = room(count * 4);
  for (int64_t i = 0; i < count; i++) x[i] = number();
  return x;
}

static uint64_t digest = 0xcbf29ce484222325ull;
static int failures;
static const omnic_ops *levels[16];
static int level_count;
static omnic_pool *pools[3];

static void fail(const omnic_ops *ops, const char *what) {
  if (failures++ < 20) printf("%s: %s\n", omnic_level_name(ops->level), what);
}
static void count_in(const void *bytes, int64_t size) {
  for (int64_t i = 0; i < size; i++) digest = (digest ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3ull;
}
/* Any tuning, values that no field takes included. */
static omnic_tuning tuning_drawn(void) {
  static const int32_t panels[] = {1, 2, 4, 0, 3, 9}, ahead[] = {0, -1, 64, 2048, 8192};
  return (omnic_tuning){.panels = panels[draw() % 6], .prefetch = ahead[draw() % 5], .k_block = (int32_t)upto(0, 40) * 64,
                        .chunk = (int32_t)upto(0, 34) * 16, .threads = (int32_t)upto(0, 4)};
}
static omnic_call call_with(int pool, size_t scratch, const omnic_tuning *tuning) {
  omnic_call call = {pools[pool], NULL, scratch, tuning};
  char *raw = malloc(scratch + 64 + sizeof(void *));
  uintptr_t at = ((uintptr_t)raw + sizeof(void *) + 63) & ~(uintptr_t)63;
  call.scratch = (void *)at;
  ((void **)at)[-1] = raw;
  return call;
}
static void give_back(omnic_call *call) { free(((void **)call->scratch)[-1]); }

/* A plain number of a type, as bits. */
static uint32_t bits_of(int32_t type) {
  uint32_t low = draw(), sign = draw() & 1;
  if (type == OMNIC_F16) return sign << 15 | 0x2c00u | (low & 0xfff);
  if (type == OMNIC_BF16) return sign << 15 | 0x3d00u | (low & 0xff);
  return sign << 31 | 0x3d000000u | (low & 0xffffff);
}
static void *plain(int64_t count, int32_t type) {
  int64_t size = type == OMNIC_F32 ? 4 : 2;
  char *data = room(count * size);
  for (int64_t i = 0; i < count; i++) {
    uint32_t bits = bits_of(type);
    memcpy(data + i * size, &bits, (size_t)size);
  }
  return data;
}
static uint8_t *bytes(int64_t count) {
  uint8_t *data = room(count);
  int extreme = draw() % 8 == 0;
  for (int64_t i = 0; i < count; i++) data[i] = (uint8_t)(extreme ? (draw() & 1) * 255 : draw());
  return data;
}

static omnic_weight weight_of(int32_t type, int64_t n, int64_t k) {
  static const int64_t groups[] = {32, 64, 128, 20, 96, 1 << 20};
  omnic_weight w = {.n = n, .k = k, .type = type};
  int64_t panels = (n + 15) / 16;
  if (type <= OMNIC_BF16) {
    w.codes = plain(panels * 16 * k, type);
    w.group = k;
    return w;
  }
  int64_t block = type == OMNIC_I8 ? 4 : type == OMNIC_I4 ? 32 : 64, bits = type == OMNIC_I8 ? 8 : type == OMNIC_I4 ? 4 : 2;
  w.codes = bytes(panels * 2 * ((k + block - 1) / block * block) * bits);
  w.group = groups[draw() % 6];
  if (w.group > k) w.group = k;
  int64_t scales = panels * ((k + w.group - 1) / w.group);
  static const int32_t kinds[] = {OMNIC_F32, OMNIC_F16, OMNIC_BF16, OMNIC_S4, OMNIC_S4};
  w.scale_type = kinds[draw() % 5];
  w.scales = w.scale_type == OMNIC_S4 ? (void *)bytes(scales * 8) : plain(scales * 16, w.scale_type);
  if (w.scale_type == OMNIC_S4) w.row = numbers(n);
  if (draw() % 3 == 0) {
    uint8_t *zeros = bytes(scales * 16);
    if (type != OMNIC_I8)
      for (int64_t i = 0; i < scales * 16; i++) zeros[i] &= type == OMNIC_I4 ? 15 : 3;
    w.zeros = zeros;
  }
  return w;
}
static void drop(omnic_weight *w) { free((void *)w->codes), free((void *)w->scales), free((void *)w->zeros), free((void *)w->row); }

/* AMX multiplies in bf16: then it only has to agree with itself. */
static int rounds(const omnic_ops *ops, int32_t act) { return ops->level == OMNIC_AMX && act == OMNIC_ACT_BF16; }

static void activation(int32_t *act, int64_t *group) {
  static const int64_t sizes[] = {32, 64, 16, 128, 24};
  *act = (int32_t)(draw() % 4);
  *group = sizes[draw() % 5];
}

static void linear_case(void) {
  int32_t type = (int32_t)(draw() % 6), act;
  int64_t n = upto(1, 100), k = upto(1, draw() % 3 ? 300 : 1500), m = upto(1, draw() % 4 ? 20 : 150), group;
  activation(&act, &group);
  if (n * k * m > 3000000) m = 1;
  omnic_weight w = weight_of(type, n, k);
  int64_t ldx = k + upto(0, 3), ldy = n + upto(0, 3);
  float *x = numbers((m - 1) * ldx + k), *bias = draw() % 2 ? numbers(n) : NULL;
  float *residual = draw() % 2 ? numbers((m - 1) * ldy + n) : NULL;
  if (draw() % 4 == 0) x[draw() % (uint64_t)k] *= 1000.0f;
  omnic_tuning tuning = tuning_drawn();
  int64_t size = ((m - 1) * ldy + n) * 4, *ids = room(m * 8), *best = room(m * 8);
  float *y = room(size), *want = room(size), *logits = room(m * 4), *top = room(m * 4);
  int64_t first = upto(0, m - 1), some = upto(1, m - first);
  for (int l = 0; l < level_count; l++)
    for (int pool = 0; pool < 3; pool++) {
      omnic_call call = call_with(pool, omnic_scratch_linear(&w, m, act, group, pool + 1), pool ? &tuning : NULL);
      memset(y, 0, (size_t)size);
      levels[l]->linear(&call, &w, x, m, ldx, act, group, bias, residual, ldy, y, ldy);
      if ((!l || rounds(levels[l], act)) && !pool) memcpy(want, y, (size_t)size);
      if (!l && !pool) count_in(y, size);
      if (memcmp(y, want, (size_t)size)) fail(levels[l], pool ? "threads or tuning change linear" : "linear");
      levels[l]->head_argmax(&call, &w, x, m, ldx, act, group, 0.0f, ids, logits);
      if ((!l || rounds(levels[l], act)) && !pool) memcpy(best, ids, (size_t)m * 8), memcpy(top, logits, (size_t)m * 4);
      if (memcmp(ids, best, (size_t)m * 8) || memcmp(logits, top, (size_t)m * 4)) fail(levels[l], "head_argmax");
      give_back(&call);
      if (pool) continue;
      /* Some of the rows alone. */
      omnic_call few = call_with(0, omnic_scratch_linear(&w, some, act, group, 1), &tuning);
      float *part = room(((some - 1) * ldy + n) * 4);
      levels[l]->linear(&few, &w, x + first * ldx, some, ldx, act, group, bias, residual ? residual + first * ldy : NULL, ldy,
                        part, ldy);
      for (int64_t i = 0; i < some; i++)
        if (memcmp(part + i * ldy, want + (first + i) * ldy, (size_t)n * 4)) {
          fail(levels[l], "a row depends on the others");
          break;
        }
      free(part);
      give_back(&few);
    }
  float *rows = room(m * k * 4), *table = room(m * k * 4);
  for (int64_t i = 0; i < m; i++) ids[i] = upto(-1, n);
  for (int l = 0; l < level_count; l++) {
    omnic_call call = call_with(l % 3, 64, l % 2 ? &tuning : NULL);
    levels[l]->embed(&call, &w, ids, m, rows, k);
    if (!l) memcpy(table, rows, (size_t)(m * k) * 4), count_in(rows, m * k * 4);
    if (memcmp(rows, table, (size_t)(m * k) * 4)) fail(levels[l], "embed");
    give_back(&call);
  }
  free(rows), free(table), free(x), free(bias), free(residual), free(y), free(want), free(ids), free(best), free(logits), free(top);
  drop(&w);
}

/* Bounds are drawn, so what is found need not be the largest; but every level and pool looks at the same panels. */
static void shortlist_case(void) {
  int64_t n = upto(1, 600), k = upto(1, 200), r = 32 * upto(1, 3), m = upto(1, 4), group;
  int32_t act;
  activation(&act, &group);
  if (act == OMNIC_ACT_BF16) act = OMNIC_ACT_F32; /* which AMX does in other numbers */
  omnic_tuning tuning = tuning_drawn();
  omnic_weight head = weight_of((int32_t)(draw() % 6), n, k), basis = weight_of(OMNIC_F32, r, k), screen;
  do {
    screen = weight_of(OMNIC_I8, n, r);
  } while (screen.scale_type == OMNIC_S4 && (drop(&screen), 1));
  omnic_shortlist s = {&head, &basis, &screen, numbers(3 * n)};
  float *x = numbers(m * k), *logits = room(m * 4), *top = room(m * 4);
  int64_t *ids = room(m * 16), *best = room(m * 16), wide = (n + 15) / 16;
  for (int64_t i = 0; i < 3 * n; i++) ((float *)s.reach)[i] = fabsf(s.reach[i]) * (draw() % 8 ? 0.1f : 1e30f);
  for (int l = 0; l < level_count; l++)
    for (int pool = 0; pool < 3; pool++) {
      omnic_call call = call_with(pool, omnic_scratch_shortlist(&s, m, act, group, pool + 1), pool ? &tuning : NULL);
      levels[l]->head_shortlist(&call, &s, x, m, k, act, group, ids, logits, ids + m);
      if (!l && !pool) memcpy(best, ids, (size_t)m * 16), memcpy(top, logits, (size_t)m * 4), count_in(ids, m * 16);
      if (memcmp(ids, best, (size_t)m * 16) || memcmp(logits, top, (size_t)m * 4)) fail(levels[l], "head_shortlist");
      for (int64_t i = 0; i < m; i++)
        if (ids[i] < 0 || ids[i] >= n || ids[m + i] < 1 || ids[m + i] > wide) fail(levels[l], "head_shortlist: its range");
      give_back(&call);
    }
  free((void *)s.reach), free(x), free(logits), free(top), free(ids), free(best);
  drop(&head), drop(&basis), drop(&screen);
}

static void heads_case(void) {
  int64_t heads = upto(1, 4), batch = upto(1, 3), tokens = upto(1, 60), k = upto(1, 80), n = upto(1, 80);
  omnic_tuning tuning = tuning_drawn();
  omnic_weight w[4];
  const omnic_weight *table[4];
  for (int64_t h = 0; h < heads; h++) w[h] = weight_of((int32_t)(draw() % 3), n, k), table[h] = w + h;
  int64_t rows = batch * tokens * heads;
  float *x = numbers(rows * k), *y = room(rows * n * 4), *want = room(rows * n * 4);
  omnic_view from = {x, tokens * heads * k, k, heads * k}, to = {y, heads * tokens * n, tokens * n, n};
  for (int l = 0; l < level_count; l++) {
    omnic_call call = call_with(l % 3, 64, l % 2 ? &tuning : NULL);
    levels[l]->linear_heads(&call, table, heads, batch, tokens, from, to);
    if (!l) memcpy(want, y, (size_t)(rows * n) * 4), count_in(y, rows * n * 4);
    if (memcmp(y, want, (size_t)(rows * n) * 4)) fail(levels[l], "linear_heads");
    give_back(&call);
  }
  for (int64_t h = 0; h < heads; h++) drop(w + h);
  free(x), free(y), free(want);
}

static void moe_case(void) {
  enum { EXPERTS = 4 };
  int32_t type = (int32_t)(draw() % 6), act, kind = (int32_t)(draw() % 5);
  int64_t width = upto(1, 90), hidden = upto(1, 90), top = upto(1, 3), m = upto(1, draw() % 4 ? 9 : 160), group;
  activation(&act, &group);
  omnic_weight w[3][EXPERTS];
  const omnic_weight *table[3][EXPERTS];
  const float *bias[3][EXPERTS];
  int with_bias = draw() % 2, with_gate = draw() % 3 != 0, extras = draw() % 2;
  float alpha = extras ? 1.702f : 1.0f, beta = extras ? 1.0f : 0.0f, limit = extras && draw() % 2 ? 0.75f : 0.0f;
  omnic_tuning tuning = tuning_drawn();
  for (int s = 0; s < 3; s++)
    for (int e = 0; e < EXPERTS; e++) {
      w[s][e] = weight_of(type, s == 2 ? width : hidden, s == 2 ? hidden : width);
      table[s][e] = w[s] + e;
      bias[s][e] = numbers(s == 2 ? width : hidden);
    }
  float *x = numbers(m * width), *gates = numbers(m * top), *y = room(m * width * 4), *want = room(m * width * 4);
  int64_t *indices = room(m * top * 8);
  for (int64_t i = 0; i < m * top; i++) indices[i] = draw() % 16 ? upto(0, EXPERTS - 1) : upto(-1, EXPERTS);
  for (int l = 0; l < level_count; l++)
    for (int pool = 0; pool < 3; pool++) {
      omnic_call call = call_with(pool, omnic_scratch_moe(w[0], w[2], m, top, EXPERTS, act, group, pool + 1), pool ? &tuning : NULL);
      levels[l]->moe(&call, with_gate ? table[1] : NULL, table[0], table[2], EXPERTS, x, m, width, indices, gates, top, kind,
                     alpha, beta, limit, act, group, with_bias ? bias[1] : NULL, with_bias ? bias[0] : NULL, with_bias ? bias[2] : NULL, y, width);
      if ((!l || rounds(levels[l], act)) && !pool) memcpy(want, y, (size_t)(m * width) * 4);
      if (!l && !pool) count_in(y, m * width * 4);
      if (memcmp(y, want, (size_t)(m * width) * 4)) fail(levels[l], pool ? "threads or tuning change moe" : "moe");
      give_back(&call);
    }
  for (int s = 0; s < 3; s++)
    for (int e = 0; e < EXPERTS; e++) drop(w[s] + e), free((void *)bias[s][e]);
  free(x), free(gates), free(y), free(want), free(indices);
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
    linear_case();
    if (i % 3 == 0) heads_case();
    if (i % 3 == 1) moe_case();
    if (i % 3 == 2) shortlist_case();
  }
  omnic_pool_destroy(pools[1]);
  omnic_pool_destroy(pools[2]);
  printf("digest %016llx\n", (unsigned long long)digest);
  return failures != 0;
}
