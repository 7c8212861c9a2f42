/* attention, mla, cache_write, cache_move for one level. */
#include <stdatomic.h>

#include "sizes.h"
#include "cache.h"
#include "decode.h"
#include "write.h"
#include "tiles.h"
#include "core.h"

OMNIC_STATIC void OMNIC_FN(attention)(const omnic_call *call, const omnic_mask *mask, int64_t heads, int64_t heads_kv,
                                      omnic_view q, const omnic_cache *k, const omnic_cache *v, omnic_view y) {
  omnic_attend job = {.mask = mask, .heads = heads, .groups = heads_kv, .per = heads / heads_kv, .q = q, .y = y,
                      .k = k, .v = v, .d = k->d, .width = omnic_up(k->d, 16), .dv = v->d, .wide = omnic_up(v->d, 16)};
  OMNIC_FN(attend)(call, &job);
}

OMNIC_STATIC void OMNIC_FN(mla)(const omnic_call *call, const omnic_mask *mask, int64_t heads, omnic_view q_latent,
                                omnic_view q_rope, const omnic_cache *latent, const omnic_cache *rope_k, omnic_view y) {
  omnic_attend job = {.mask = mask, .heads = heads, .groups = 1, .per = heads, .q = q_latent, .q_more = q_rope, .y = y,
                      .k = latent, .k_more = rope_k, .d = latent->d, .d_more = rope_k->d,
                      .width = omnic_up(latent->d, 16) + omnic_up(rope_k->d, 16), .dv = latent->d,
                      .wide = omnic_up(latent->d, 16)};
  OMNIC_FN(attend)(call, &job);
}

#define OMNIC_TABLE_ATTENTION                                          \
  .attention = OMNIC_FN(attention), .mla = OMNIC_FN(mla),              \
  .cache_write = OMNIC_FN(cache_write), .cache_move = OMNIC_FN(cache_move),
