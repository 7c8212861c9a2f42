/* Attention over caches, in blocks of tokens with a running softmax (arXiv:2205.14135), for GQA and absorbed MLA.
 *
 * A task is a row b, a head of keys g and up to OMNIC_QUERIES of the queries that share it (row r of them is token
 * r / per, head r % per).  Tokens are walked in chunks and blocks that begin at multiples of their sizes, whatever the
 * query; a token that a query does not see has weight 0 in its sums.  So a result depends on the query and what it
 * sees, never on which queries came with it, nor on the threads.
 */

/* Up to so many queries meet sixteen tokens at a time; more meet tokens one by one, eight queries together. */
#define OMNIC_FEW 2

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
  int64_t b, g, first, count;      /* queries first .. first + count - 1 */
  int64_t lanes, rows;             /* filled up to whole lanes (0: few) where they meet keys, to rows where values */
  int64_t row_step, token_step;    /* of scores: [queries][tokens] for few queries, else [tokens][lanes] */
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

OMNIC_INLINE float *omnic_row(const omnic_view *x, int64_t b, int64_t h, int64_t t) {
  return x->data + b * x->stride_b + h * x->stride_h + t * x->stride_t;
}

/* Lay `count` numbers of a query, times the scale: pairs of them, with those of `together` queries side by side. */
OMNIC_INLINE void omnic_lay_query(const float *x, int64_t count, float scale, float *out, int64_t together) {
  for (int64_t i = 0; i < count; i++) out[i / 2 * 2 * together + i % 2] = x[i] * scale;
}

/* Take up task i: lay out its queries, times the scale, and find the tokens they may see. */
OMNIC_STATIC void OMNIC_FN(take_up)(const omnic_attend *job, omnic_desk *desk, int64_t i) {
  const omnic_mask *mask = job->mask;
  desk->g = i / job->row_tasks % job->groups;
  desk->b = i / job->row_tasks / job->groups;
  desk->first = i % job->row_tasks * OMNIC_QUERIES;
  int64_t left = job->per * mask->tokens - desk->first, split = omnic_up(job->d, 16);
  desk->count = left < OMNIC_QUERIES ? left : OMNIC_QUERIES;
  int64_t lanes = desk->count <= OMNIC_FEW ? 0 : desk->count <= 8 ? 8 : omnic_up(desk->count, 16);
  desk->lanes = lanes;
  desk->rows = desk->count <= 2 ? desk->count : omnic_up(desk->count, 4);
  desk->row_step = lanes ? 1 : OMNIC_BLOCK;
  desk->token_step = lanes ? lanes : 1;
  memset(desk->q, 0, (size_t)((lanes ? lanes : desk->rows) * job->width) * sizeof(float));
  for (int64_t r = 0; r < desk->count; r++) {
    int64_t t = (desk->first + r) / job->per, h = desk->g * job->per + (desk->first + r) % job->per;
    int64_t together = lanes ? OMNIC_TOGETHER : 1;
    float *q = desk->q + r / together * together * job->width + r % together * 2;
    omnic_lay_query(omnic_row(&job->q, desk->b, h, t), job->d, mask->scale, q, together);
    if (!job->k_more) continue;
    omnic_lay_query(omnic_row(&job->q_more, desk->b, h, t), job->d_more, mask->scale, q + split * together, together);
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
OMNIC_INLINE omnic_tokens omnic_bring(const omnic_cache *c, const omnic_desk *desk, int64_t begin, int64_t from,
                                      int64_t to, float *space, int64_t padded, int64_t ld) {
  /* Few queries meet sixteen tokens at a time: fewer are copied to where sixteen may be read. */
  int whole = desk->lanes || to - from >= 16;
  if (whole && c->type == OMNIC_F32 && c->d == padded && omnic_run(c, begin + from, to - from) == to - from) {
    const float *at = (const float *)c->data + omnic_place(c, desk->b, desk->g, begin + from) - from * c->stride_s;
    return (omnic_tokens){at, at + OMNIC_BLOCK * c->stride_s, c->stride_s, padded};
  }
  for (int64_t t = from; t < to;) {
    int64_t run = omnic_run(c, begin + t, to - t), at = omnic_place(c, desk->b, desk->g, begin + t);
    OMNIC_FN(decode_rows)(c, at, run, space + t * ld, ld, padded);
    t += run;
  }
  return (omnic_tokens){space, NULL, ld, padded};
}

#include "softmax.h"

/* The scores of a block. */
OMNIC_INLINE void omnic_score(const omnic_desk *desk, int64_t width, const omnic_tokens *keys, int parts,
                              int64_t from, int64_t to) {
  if (desk->lanes == 0 && desk->count == 1) {
    omnic_scores_few(desk->q, width, 1, keys, parts, from, to, desk->scores);
  } else if (desk->lanes == 0) {
    omnic_scores_few(desk->q, width, 2, keys, parts, from, to, desk->scores);
  } else {
    omnic_scores(desk->q, desk->count, width, keys, parts, from, to, desk->scores, desk->lanes);
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
    int64_t from = desk->low > begin ? desk->low - begin : 0;
    int64_t to = end - begin < OMNIC_BLOCK ? end - begin : OMNIC_BLOCK;
    omnic_tokens keys[2] = {omnic_bring(job->k, desk, begin, from, to, desk->keys, split, width + 16)};
    if (job->k_more)
      keys[1] = omnic_bring(job->k_more, desk, begin, from, to, desk->keys + split, width - split, width + 16);
    omnic_score(desk, width, keys, job->k_more ? 2 : 1, from, to);
    omnic_hide(job, desk, begin, from, to);
    if (desk->lanes)
      for (int64_t r = 0; r < desk->lanes; r += 16) omnic_weigh_lanes(desk, r);
    else
      omnic_weigh_few(desk);
    omnic_tokens values = {keys[0].at, NULL, keys[0].stride, keys[0].n};
    if (job->v) values = omnic_bring(job->v, desk, begin, from, to, desk->values, wide, wide + 16);
    omnic_mix(desk->scores, desk->row_step, desk->token_step, &values, from, to, desk->fade, desk->mixed, wide,
              desk->rows);
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
