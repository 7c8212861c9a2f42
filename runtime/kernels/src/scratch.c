/* How much scratch attention wants, the same for every level. */
#include "../include/omnic_kernels.h"
#include "attention/sizes.h"

size_t omnic_scratch_attention(int64_t heads, int64_t tokens, int64_t d, int64_t dv, int64_t slots, int threads) {
  int64_t keys = omnic_up(d, 16) + 16, values = omnic_up(dv, 16), chunks = slots / OMNIC_CHUNK + 2;
  int64_t workers = threads * omnic_up(omnic_worker_floats(tokens, keys, values), 16);
  /* Queries of a KV head are filled up to whole tasks; a head has at least one query. */
  int64_t rows = omnic_split_rows(OMNIC_QUERIES * heads * ((tokens + OMNIC_QUERIES - 1) / OMNIC_QUERIES), threads);
  int64_t parts = threads > 1 ? rows * chunks * (values + 2) : 0;
  return (size_t)(workers + parts + 64) * sizeof(float);
}
