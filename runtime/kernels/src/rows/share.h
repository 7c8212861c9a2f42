/* Work on many rows or numbers, cut into pieces of the pool. */

/* Fewer numbers than this are not worth waking a thread. */
#define OMNIC_WORTH 16384

typedef struct {
  void (*piece)(const void *job, int64_t first, int64_t last);
  const void *job;
  int64_t count, each;
} omnic_share;

OMNIC_STATIC void OMNIC_FN(share_task)(void *arg, int64_t i) {
  const omnic_share *share = arg;
  int64_t first = i * share->each, last = first + share->each;
  share->piece(share->job, first, last < share->count ? last : share->count);
}

/* Run piece(job, first, last) over 0..count-1, where one item costs about `cost` numbers. */
OMNIC_STATIC void OMNIC_FN(share)(const omnic_call *call, void (*piece)(const void *, int64_t, int64_t),
                                  const void *job, int64_t count, int64_t cost) {
  int64_t threads = omnic_pool_threads(call->pool);
  if (cost < 1) cost = 1;
  if (threads == 1 || count <= 1 || count * cost < OMNIC_WORTH) {
    if (count > 0) piece(job, 0, count);
    return;
  }
  int64_t least = (OMNIC_WORTH / 4 + cost - 1) / cost, each = (count + 2 * threads - 1) / (2 * threads);
  if (each < least) each = least;
  omnic_share share = {piece, job, count, each};
  omnic_pool_run(call->pool, OMNIC_FN(share_task), &share, (count + each - 1) / each);
}
