/* Sizes of attention's work, which the scratch of a call follows from. */

/* Tokens of a block: the softmax goes block by block, and blocks begin at multiples of this.  A multiple of 6, 12 and
 * 16, the tokens of tiles. */
#define OMNIC_BLOCK 48
/* Tokens of a chunk: what one thread may take of a long context.  Each chunk has a softmax of its own, and chunks are
 * joined in their order, whoever computed them.  A multiple of the block. */
#define OMNIC_CHUNK 1056
/* Queries (of all heads that share keys) in one task. */
#define OMNIC_QUERIES 32

static inline int64_t omnic_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Floats of one worker: queries, keys, values, scores, two running results, and a byte for each token a query may see
 * in a tree; d, dv are filled up to lanes, keys and values one line more so that rows do not share cache sets. */
static inline int64_t omnic_worker_floats(int64_t tokens, int64_t d, int64_t dv) {
  return OMNIC_QUERIES * (d + OMNIC_BLOCK + 2 * dv + 8) + OMNIC_BLOCK * (d + dv + 32) +
         omnic_up(OMNIC_QUERIES * tokens, 64) / 4 + 64;
}

/* Rows (queries of heads) whose chunks are kept apart at once when a call has few tasks for its threads. */
static inline int64_t omnic_split_rows(int64_t rows, int64_t threads) {
  int64_t most = 2 * OMNIC_QUERIES * threads;
  return omnic_up(rows, OMNIC_QUERIES) < most ? omnic_up(rows, OMNIC_QUERIES) : most;
}
