/* Products with packed weights, for one level: linear, linear_many, linear_heads, heads, embed, moe. */
#include "weights.h"

#if defined(OMNIC_HAS_AVX512)
#include "columns_avx512.h"
#elif defined(OMNIC_HAS_AVX2)
#include "columns_avx2.h"
#elif defined(OMNIC_HAS_NEON)
#include "columns_neon.h"
#endif

#include "tuning.h"
#include "activations.h"
#include "tile.h"
#include "oracle.h"

#if defined(COLS)
#include "integers.h"
#include "floats.h"
#endif
#if defined(OMNIC_HAS_AMX)
#include "amx.h"
#endif

#include "linear.h"
#include "shortlist.h"
#include "embed.h"
#include "moe.h"

#define OMNIC_TABLE_PRODUCTS                                                                          \
  .linear = OMNIC_FN(linear), .linear_many = OMNIC_FN(linear_many), .linear_heads = OMNIC_FN(linear_heads), \
  .head_argmax = OMNIC_FN(head_argmax), .head_shortlist = OMNIC_FN(head_shortlist),                   \
  .embed = OMNIC_FN(embed), .moe = OMNIC_FN(moe),
