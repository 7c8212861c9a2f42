/* cache_write and cache_move. */

typedef struct {
  const omnic_cache *cache;
  int64_t heads, tokens;
  const int64_t *start, *length;
  omnic_view x;
} omnic_write_job;

OMNIC_STATIC void OMNIC_FN(write_rows)(const void *arg, int64_t from, int64_t to) {
  const omnic_write_job *job = arg;
  const omnic_cache *c = job->cache;
  for (int64_t row = from; row < to; row++) {
    int64_t b = row / (job->heads * job->tokens), g = row / job->tokens % job->heads, t = row % job->tokens;
    int64_t length = job->length[b];
    /* Of two tokens for one slot of a ring the later one stays: the earlier is not written. */
    if (t >= length || t < length - c->slots || (!c->ring && job->start[b] + t >= c->slots)) continue;
    omnic_encode_row(c, omnic_place(c, b, g, job->start[b] + t),
                     job->x.data + b * job->x.stride_b + g * job->x.stride_h + t * job->x.stride_t);
  }
}

OMNIC_STATIC void OMNIC_FN(cache_write)(const omnic_call *call, const omnic_cache *cache, int64_t heads_kv,
                                        int64_t batch, int64_t tokens, const int64_t *start, const int64_t *length,
                                        omnic_view x) {
  omnic_write_job job = {cache, heads_kv, tokens, start, length, x};
  OMNIC_FN(share)(call, OMNIC_FN(write_rows), &job, batch * heads_kv * tokens, 4 * cache->d);
}

OMNIC_INLINE int64_t omnic_bytes(int32_t type, int64_t elements) {
  if (type == OMNIC_I4) return (elements + 1) / 2;
  return type == OMNIC_F32 ? 4 * elements : type == OMNIC_I8 ? elements : 2 * elements;
}

/* Bytes that one call of cache_move holds at a time: rows are moved in pieces of this over the number of pairs. */
#define OMNIC_MOVED 16384

/* Whether pair i moves anything. */
OMNIC_INLINE int omnic_moves(const omnic_cache *c, const int64_t *from, const int64_t *to, int64_t i) {
  return from[i] >= 0 && to[i] >= 0 && (c->ring || (from[i] < c->slots && to[i] < c->slots));
}

/* Move the rows of one array of the cache: its numbers (groups 0), or the `groups` scales of each row, or with type -1
 * their zero points.  All reads of a piece come before its writes. */
OMNIC_STATIC void OMNIC_FN(move_bytes)(const omnic_cache *c, char *base, int32_t type, int64_t groups, int64_t b,
                                       int64_t g, int64_t pairs, const int64_t *from, const int64_t *to) {
  char held[OMNIC_MOVED];
  int64_t bytes = type < 0 ? groups : omnic_bytes(type, groups ? groups : c->d), piece = OMNIC_MOVED / pairs;
  for (int64_t first = 0; first < bytes; first += piece) {
    size_t n = (size_t)(bytes - first < piece ? bytes - first : piece);
    for (int write = 0; write < 2; write++)
      for (int64_t i = 0; i < pairs; i++) {
        if (!omnic_moves(c, from, to, i)) continue;
        int64_t at = omnic_place(c, b, g, write ? to[i] : from[i]);
        if (groups) at = at / c->d * groups;
        char *row = base + (type < 0 ? at : omnic_bytes(type, at)) + first;
        if (write)
          memcpy(row, held + i * piece, n);
        else
          memcpy(held + i * piece, row, n);
      }
  }
}

OMNIC_STATIC void OMNIC_FN(cache_move)(const omnic_call *call, const omnic_cache *cache, int64_t heads_kv,
                                       int64_t batch, int64_t pairs, const int64_t *source, const int64_t *target) {
  (void)call;
  if (pairs <= 0 || pairs > OMNIC_MOVED) return;
  int64_t groups = cache->scales ? omnic_groups(cache) : 0;
  for (int64_t b = 0; b < batch; b++)
    for (int64_t g = 0; g < heads_kv; g++) {
      const int64_t *from = source + b * pairs, *to = target + b * pairs;
      OMNIC_FN(move_bytes)(cache, cache->data, cache->type, 0, b, g, pairs, from, to);
      if (cache->scales)
        OMNIC_FN(move_bytes)(cache, cache->scales, cache->scale_type, groups, b, g, pairs, from, to);
      if (cache->zeros) OMNIC_FN(move_bytes)(cache, (char *)cache->zeros, -1, groups, b, g, pairs, from, to);
    }
}
