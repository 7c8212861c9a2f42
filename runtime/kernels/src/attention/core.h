/* Attention over caches, in blocks of tokens with a running softmax (arXiv:2205.14135), for GQA and absorbed MLA.
 *
 * A task is a row b, a head of keys g and up to OMNIC_QUERIES of the queries that share it (row r of them is token
 * r / per, head r % per).  Tokens are walked in chunks and blocks that begin at multiples of their sizes, whatever the
 * query; a token that a query does not see has weight 0 in its sums.  So a result depends on the query and what it
 * sees, never on which queries came with it, nor on the threads.
 */
#include "sizes.h"

/* Floats of queries that are kept near while tokens pass: 20 KiB of the first cache. */
#define OMNIC_NEAR 5120
/* Numbers of a row from which on tiles of two queries and three tokens win. */
#define OMNIC_MANY 128

/* A logit below all others, finite so that differences with it are numbers. */
#define OMNIC_FLOOR -1e30f

typedef struct {
  const omnic_mask *mask;
  int64_t heads, groups, per;      /* query heads, heads of keys, queries of a token that share keys */
  omnic_view q, q_more, y;         /* q_more: the second part of MLA's queries */
  const omnic_cache *k, *k_more;   /* k_more NULL: one part */
  const omnic_cache *v;            /* NULL: the values are the first part of the keys */
  int64_t d, d_more, width;        /* numbers of the parts, both filled up and together */
  int64_t dv, wide;                /* numbers of a value, filled up */
  int64_t row_tasks;               /* tasks of one (b, g) */
  int64_t row, chunks;             /* split over chunks: which b, and how many */
  float *workers, *parts;
  int64_t worker_floats;
  _Atomic int64_t next;            /* the next task: taken by counting up */
  int64_t tasks;
} omnic_attend;

/* What a worker holds; all in scratch. */
typedef struct {
  float *q, *scores, *mixed, *joined, *keys, *values;
  float *peak, *total, *fade, *joined_peak, *joined_total;
  uint8_t *related;                /* [queries][tokens], with a tree */
  int64_t b, g, first, count, rows;/* queries first .. first + count - 1, filled up to rows */
  int64_t low, high;               /* tokens that some query may see */
} omnic_desk;

OMNIC_INLINE void omnic_lay_desk(const omnic_attend *job, omnic_desk *desk, float *at) {
  desk->q = at, at += OMNIC_QUERIES * job->width;
  desk->scores = at, at += OMNIC_QUERIES * OMNIC_BLOCK;
  desk->mixed = at, at += OMNIC_QUERIES * job->wide;
  desk->joined = at, at += OMNIC_QUERIES * job->wide;
  desk->keys = at, at += OMNIC_BLOCK * (job->width + 16);
  desk->values = at, at += OMNIC_BLOCK * (job->wide + 16);
  desk->peak = at, at += OMNIC_QUERIES;
  desk->total = at, at += OMNIC_QUERIES;
  desk->fade = at, at += OMNIC_QUERIES;
  desk->joined_peak = at, at += OMNIC_QUERIES;
  desk->joined_total = at, at += OMNIC_QUERIES;
  desk->related = (uint8_t *)at;
  /* Lanes beside the tokens of a block are computed with and thrown away: they begin as numbers. */
  memset(desk->scores, 0, OMNIC_QUERIES * OMNIC_BLOCK * sizeof(float));
}

/* Mark the ancestors of the desk's tokens among the tokens of the call. */
OMNIC_INLINE void omnic_mark_tree(const omnic_attend *job, omnic_desk *desk, int64_t first, int64_t last) {
  int64_t tokens = job->mask->tokens;
  const int64_t *parents = job->mask->parents + desk->b * tokens;
  memset(desk->related, 0, (size_t)((last - first + 1) * tokens));
  for (int64_t t = first; t <= last; t++) {
    uint8_t *related = desk->related + (t - first) * tokens;
    /* A chain that meets itself ends: no token is marked twice. */
    for (int64_t j = t; j >= 0 && j < tokens && !related[j]; j = parents[j]) related[j] = 1;
  }
}

/* Take up task i: copy its queries, times the scale, and find the tokens they may see. */
OMNIC_STATIC void OMNIC_FN(take_up)(const omnic_attend *job, omnic_desk *desk, int64_t i) {
  const omnic_mask *mask = job->mask;
  desk->g = i / job->row_tasks % job->groups;
  desk->b = i / job->row_tasks / job->groups;
  desk->first = i % job->row_tasks * OMNIC_QUERIES;
  int64_t left = job->per * mask->tokens - desk->first;
  desk->count = left < OMNIC_QUERIES ? left : OMNIC_QUERIES;
  desk->rows = desk->count == 1 ? 1 : omnic_up(desk->count, OMNIC_TILE_ROWS);
  int64_t split = omnic_up(job->d, 16);
  v16 scale = v16_set(mask->scale);
  for (int64_t r = 0; r < desk->rows; r++) {
    float *q = desk->q + r * job->width;
    int64_t t = (desk->first + r) / job->per, h = desk->g * job->per + (desk->first + r) % job->per;
    if (r >= desk->count) {
      memset(q, 0, (size_t)job->width * sizeof *q);
      continue;
    }
    const float *x = job->q.data + desk->b * job->q.stride_b + h * job->q.stride_h + t * job->q.stride_t;
    for (int64_t n = 0; n < job->d; n += 16) v16_store(q + n, v16_mul(v16_load_part(x + n, job->d - n), scale));
    if (!job->k_more) continue;
    x = job->q_more.data + desk->b * job->q_more.stride_b + h * job->q_more.stride_h + t * job->q_more.stride_t;
    for (int64_t n = 0; n < job->d_more; n += 16)
      v16_store(q + split + n, v16_mul(v16_load_part(x + n, job->d_more - n), scale));
  }
  int64_t first = desk->first / job->per, last = (desk->first + desk->count - 1) / job->per;
  int64_t start = mask->start[desk->b], end = start + mask->length[desk->b], slots = job->k->slots;
  desk->low = mask->window && start + first >= mask->window ? start + first - mask->window + 1 : 0;
  desk->high = start + last + 1 < end ? start + last + 1 : end;
  if (job->k->ring && desk->low < end - slots) desk->low = end - slots;
  if (!job->k->ring && desk->high > slots) desk->high = slots;
  if (first >= mask->length[desk->b] || desk->low > desk->high) desk->low = desk->high = 0;
  if (mask->parents) omnic_mark_tree(job, desk, first, last);
}

/* Bring tokens from .. to - 1 of a cache (offsets in a block that begins at `begin`) as f32: where they lie, when they
 * lie together as they are, else copied to `space`. */
OMNIC_INLINE const float *omnic_bring(const omnic_cache *c, const omnic_desk *desk, int64_t begin, int64_t from,
                                      int64_t to, float *space, int64_t padded, int64_t ld, int direct,
                                      int64_t *stride) {
  int64_t at = omnic_place(c, desk->b, desk->g, begin + from);
  if (direct && c->type == OMNIC_F32 && c->d == padded && omnic_run(c, begin + from, to - from) == to - from) {
    *stride = c->stride_s;
    return (const float *)c->data + at - from * c->stride_s;
  }
  *stride = ld;
  for (int64_t t = from; t < to;) {
    int64_t run = omnic_run(c, begin + t, to - t);
    at = omnic_place(c, desk->b, desk->g, begin + t);
    for (int64_t last = t + run; t < last; t++, at += c->stride_s) omnic_decode_row(c, at, space + t * ld, padded);
  }
  return space;
}

/* Ask for the values of a block while its scores are made: they are read in slices, which no CPU foresees. */
OMNIC_INLINE void omnic_foretell(const omnic_cache *c, const omnic_desk *desk, int64_t begin, int64_t from, int64_t to) {
  for (int64_t t = from; t < to; t++) {
    const float *row = (const float *)c->data + omnic_place(c, desk->b, desk->g, begin + t);
    for (int64_t i = 0; i < c->d; i += 16) __builtin_prefetch(row + i);
  }
}

/* Bound the logits of the block and hide what query r does not see. */
OMNIC_INLINE void omnic_hide(const omnic_attend *job, const omnic_desk *desk, int64_t r, int64_t begin, int64_t from,
                             int64_t to) {
  const omnic_mask *mask = job->mask;
  float *scores = desk->scores + r * OMNIC_BLOCK;
  int64_t t = (desk->first + r) / job->per, start = mask->start[desk->b], own = start + t;
  if (mask->softcap > 0.0f) {
    v16 cap = v16_set(mask->softcap);
    for (int64_t n = 0; n < OMNIC_BLOCK; n += 16) {
      v16 x = v16_load(scores + n);
      v16_store(scores + n, v16_mul(v16_tanh(v16_div(x, cap)), cap));
    }
  }
  int64_t first = mask->window ? own - mask->window + 1 - begin : from, last = own + 1 - begin;
  if (t >= mask->length[desk->b] || r >= desk->count) last = 0;
  if (first < from) first = from;
  if (last > to) last = to;
  int tree = mask->parents && begin + to > start;
  if (first == 0 && last == OMNIC_BLOCK && !tree) return;
  for (int64_t n = 0; n < OMNIC_BLOCK; n++)
    if (n < first || n >= last) scores[n] = -INFINITY;
  if (!tree) return;
  const uint8_t *related = desk->related + (t - desk->first / job->per) * mask->tokens;
  for (int64_t n = start > begin + first ? start - begin : first; n < last; n++)
    if (!related[begin + n - start]) scores[n] = -INFINITY;
}

/* Turn scores into weights exp(score - peak) and find by how much what was mixed before fades. */
OMNIC_INLINE void omnic_weigh(const omnic_desk *desk) {
  float peaks[OMNIC_QUERIES] = {0};
  for (int64_t r = 0; r < desk->rows; r++) {
    const float *scores = desk->scores + r * OMNIC_BLOCK;
    float most = v16_peak(v16_max(v16_load(scores), v16_load(scores + 16)));
    peaks[r] = most > desk->peak[r] ? most : desk->peak[r];
  }
  for (int64_t r = 0; r < desk->rows; r += 16) {
    v16 fresh = v16_load(peaks + r);
    v16_store(desk->fade + r, v16_exp(v16_sub(v16_load(desk->peak + r), fresh)));
    v16_store(desk->peak + r, fresh);
  }
  for (int64_t r = 0; r < desk->rows; r++) {
    float *scores = desk->scores + r * OMNIC_BLOCK;
    v16 peak = v16_set(peaks[r]);
    v16 low = v16_exp(v16_sub(v16_load(scores), peak)), high = v16_exp(v16_sub(v16_load(scores + 16), peak));
    v16_store(scores, low);
    v16_store(scores + 16, high);
    desk->total[r] = fmaf(desk->total[r], desk->fade[r], v16_sum(v16_add(low, high)));
  }
}

/* The softmax and the mix over the tokens of one chunk, into peak, total and mixed. */
OMNIC_STATIC void OMNIC_FN(attend_chunk)(const omnic_attend *job, omnic_desk *desk, int64_t chunk) {
  int64_t end = (chunk + 1) * OMNIC_CHUNK < desk->high ? (chunk + 1) * OMNIC_CHUNK : desk->high;
  int64_t begin = chunk * OMNIC_CHUNK, width = job->width, wide = job->wide, split = omnic_up(job->d, 16);
  if (begin < desk->low) begin = desk->low / OMNIC_BLOCK * OMNIC_BLOCK;
  for (int64_t r = 0; r < OMNIC_QUERIES; r++) desk->peak[r] = OMNIC_FLOOR, desk->total[r] = 0.0f;
  memset(desk->mixed, 0, (size_t)(desk->rows * wide) * sizeof(float));
  for (; begin < end; begin += OMNIC_BLOCK) {
    int64_t from = desk->low > begin ? desk->low - begin : 0, to = end - begin < OMNIC_BLOCK ? end - begin : OMNIC_BLOCK;
    int64_t k_stride, v_stride;
    const float *keys =
        omnic_bring(job->k, desk, begin, from, to, desk->keys, split, width + 16, !job->k_more, &k_stride);
    if (job->k_more) {
      int64_t unused;
      omnic_bring(job->k_more, desk, begin, from, to, desk->keys + split, width - split, width + 16, 0, &unused);
    }
    if (job->v && job->v->type == OMNIC_F32) omnic_foretell(job->v, desk, begin, from, to);
    if (desk->rows == 1) {
      omnic_scores1(desk->q, width, keys, k_stride, from, to, desk->scores);
    } else {
      /* As many queries as the first cache holds meet a few tokens at a time, so that each is read once for them. */
      int64_t held = OMNIC_NEAR / width / 4 * 4;
      if (held < 4) held = 4;
      int many = OMNIC_TILE_KEYS == 1 && width >= OMNIC_MANY, few = many ? 2 : 4, step = many ? 3 : 4;
      for (int64_t row = 0; row < desk->rows; row += held)
        for (int64_t t = from; t < to; t += step) {
          int64_t last = t + step < to ? t + step : to;
          for (int64_t r = row; r < desk->rows && r < row + held; r += few) {
            float *scores = desk->scores + r * OMNIC_BLOCK;
            if (many)
              omnic_scores2(desk->q + r * width, width, keys, k_stride, t, last, scores, OMNIC_BLOCK);
            else
              omnic_scores4(desk->q + r * width, width, keys, k_stride, t, last, scores, OMNIC_BLOCK);
          }
        }
    }
    for (int64_t r = 0; r < desk->rows; r++) omnic_hide(job, desk, r, begin, from, to);
    omnic_weigh(desk);
    const float *values = keys;
    v_stride = k_stride;
    if (job->v) values = omnic_bring(job->v, desk, begin, from, to, desk->values, wide, wide + 16, 1, &v_stride);
    if (desk->rows == 1) {
      omnic_mix1(desk->scores, values, v_stride, from, to, desk->fade[0], desk->mixed, wide);
    } else {
      omnic_mix4(desk->scores, OMNIC_BLOCK, values, v_stride, from, to, desk->fade, desk->mixed, wide, desk->rows);
    }
  }
}

OMNIC_INLINE float omnic_exp1(float x) {
  float out[16];
  v16_store(out, v16_exp(v16_set(x)));
  return out[0];
}

/* Join the chunk (peak, total, mixed) of row r to what was joined of it before. */
OMNIC_INLINE void omnic_join(const omnic_attend *job, omnic_desk *desk, int64_t r, float peak, float total,
                             const float *mixed) {
  float *joined = desk->joined + r * job->wide, most = peak > desk->joined_peak[r] ? peak : desk->joined_peak[r];
  float old = omnic_exp1(desk->joined_peak[r] - most), fresh = omnic_exp1(peak - most);
  desk->joined_total[r] = fmaf(total, fresh, desk->joined_total[r] * old);
  desk->joined_peak[r] = most;
  v16 a = v16_set(old), b = v16_set(fresh);
  for (int64_t i = 0; i < job->wide; i += 16)
    v16_store(joined + i, v16_fma(v16_load(mixed + i), b, v16_mul(v16_load(joined + i), a)));
}

OMNIC_INLINE void omnic_clear_joined(const omnic_attend *job, omnic_desk *desk) {
  for (int64_t r = 0; r < OMNIC_QUERIES; r++) desk->joined_peak[r] = OMNIC_FLOOR, desk->joined_total[r] = 0.0f;
  memset(desk->joined, 0, (size_t)(desk->rows * job->wide) * sizeof(float));
}

/* Divide by the sum of the weights, the sink's included, and write; a query that saw nothing gives 0. */
OMNIC_INLINE void omnic_hand_in(const omnic_attend *job, const omnic_desk *desk) {
  for (int64_t r = 0; r < desk->count; r++) {
    int64_t t = (desk->first + r) / job->per, h = desk->g * job->per + (desk->first + r) % job->per;
    float *y = job->y.data + desk->b * job->y.stride_b + h * job->y.stride_h + t * job->y.stride_t;
    float total = desk->joined_total[r], fade = 1.0f;
    if (job->mask->sinks && t < job->mask->length[desk->b]) {
      float sink = job->mask->sinks[h], peak = desk->joined_peak[r], most = peak > sink ? peak : sink;
      fade = omnic_exp1(peak - most);
      total = fmaf(total, fade, omnic_exp1(sink - most));
    }
    v16 factor = v16_set(fade), sum = v16_set(total > 0.0f ? total : 1.0f);
    for (int64_t i = 0; i < job->dv; i += 16) {
      v16 x = v16_div(v16_mul(v16_load(desk->joined + r * job->wide + i), factor), sum);
      /* Adding 0 makes +0 of -0, which masked tokens would otherwise decide. */
      v16_store_part(y + i, v16_add(x, v16_zero()), job->dv - i);
    }
  }
}

/* A worker: whole tasks, every chunk of each in its order. */
OMNIC_STATIC void OMNIC_FN(attend_whole)(void *arg, int64_t worker) {
  omnic_attend *job = arg;
  omnic_desk desk;
  omnic_lay_desk(job, &desk, job->workers + worker * job->worker_floats);
  for (int64_t i; (i = atomic_fetch_add(&job->next, 1)) < job->tasks;) {
    OMNIC_FN(take_up)(job, &desk, i);
    omnic_clear_joined(job, &desk);
    for (int64_t chunk = desk.low / OMNIC_CHUNK; chunk * OMNIC_CHUNK < desk.high; chunk++) {
      OMNIC_FN(attend_chunk)(job, &desk, chunk);
      for (int64_t r = 0; r < desk.count; r++)
        omnic_join(job, &desk, r, desk.peak[r], desk.total[r], desk.mixed + r * job->wide);
    }
    omnic_hand_in(job, &desk);
  }
}

/* The results of chunk `chunk` of task i of the row, [queries][wide + 2]. */
OMNIC_INLINE float *omnic_part(const omnic_attend *job, int64_t i, int64_t chunk) {
  return job->parts + (i * job->chunks + chunk) * OMNIC_QUERIES * (job->wide + 2);
}

/* A worker of the split: chunks of the tasks of one row b, each kept apart. */
OMNIC_STATIC void OMNIC_FN(attend_parts)(void *arg, int64_t worker) {
  omnic_attend *job = arg;
  omnic_desk desk;
  omnic_lay_desk(job, &desk, job->workers + worker * job->worker_floats);
  int64_t tasks = job->groups * job->row_tasks, up = -1;
  for (int64_t n; (n = atomic_fetch_add(&job->next, 1)) < tasks * job->chunks;) {
    int64_t i = n / job->chunks, chunk = n % job->chunks;
    if (i != up) OMNIC_FN(take_up)(job, &desk, job->row * tasks + i);
    up = i;
    if (chunk < desk.low / OMNIC_CHUNK || chunk * OMNIC_CHUNK >= desk.high) continue;
    OMNIC_FN(attend_chunk)(job, &desk, chunk);
    float *part = omnic_part(job, i, chunk);
    for (int64_t r = 0; r < desk.count; r++, part += job->wide + 2) {
      part[0] = desk.peak[r], part[1] = desk.total[r];
      memcpy(part + 2, desk.mixed + r * job->wide, (size_t)job->wide * sizeof(float));
    }
  }
}

OMNIC_STATIC void OMNIC_FN(attend_joined)(void *arg, int64_t worker) {
  omnic_attend *job = arg;
  omnic_desk desk;
  omnic_lay_desk(job, &desk, job->workers + worker * job->worker_floats);
  int64_t tasks = job->groups * job->row_tasks;
  for (int64_t i; (i = atomic_fetch_add(&job->next, 1)) < tasks;) {
    OMNIC_FN(take_up)(job, &desk, job->row * tasks + i);
    omnic_clear_joined(job, &desk);
    for (int64_t chunk = desk.low / OMNIC_CHUNK; chunk * OMNIC_CHUNK < desk.high; chunk++) {
      const float *part = omnic_part(job, i, chunk);
      for (int64_t r = 0; r < desk.count; r++, part += job->wide + 2)
        omnic_join(job, &desk, r, part[0], part[1], part + 2);
    }
    omnic_hand_in(job, &desk);
  }
}

/* Choose between the two orders of work; the results are the same. */
OMNIC_STATIC void OMNIC_FN(attend)(const omnic_call *call, omnic_attend *job) {
  const omnic_mask *mask = job->mask;
  int64_t threads = omnic_pool_threads(call->pool), most = 0;
  job->row_tasks = (job->per * mask->tokens + OMNIC_QUERIES - 1) / OMNIC_QUERIES;
  job->tasks = mask->batch * job->groups * job->row_tasks;
  job->worker_floats = omnic_up(omnic_worker_floats(mask->tokens, job->width, job->wide), 16);
  job->workers = call->scratch;
  job->parts = job->workers + threads * job->worker_floats;
  for (int64_t b = 0; b < mask->batch; b++) {
    int64_t end = mask->start[b] + mask->length[b];
    most = end > most ? end : most;
  }
  if (most > job->k->slots) most = job->k->slots;
  job->chunks = (most + OMNIC_CHUNK - 1) / OMNIC_CHUNK;
  atomic_init(&job->next, 0);
  if (threads == 1 || job->tasks >= 2 * threads || job->chunks <= 1 || job->k->ring) {
    omnic_pool_run(call->pool, OMNIC_FN(attend_whole), job, threads < job->tasks ? threads : job->tasks);
    return;
  }
  for (job->row = 0; job->row < mask->batch; job->row++) {
    atomic_store(&job->next, 0);
    omnic_pool_run(call->pool, OMNIC_FN(attend_parts), job, threads);
    atomic_store(&job->next, 0);
    omnic_pool_run(call->pool, OMNIC_FN(attend_joined), job, threads);
  }
}
