/* The kernel library of omnic: products with packed weights, attention over caches, experts, norms.
 *
 * One ABI, several levels.  `omnic_kernels(level)` gives the table of functions of one instruction set; the level
 * OMNIC_GENERIC is plain C and is the oracle of the others: what works in whole numbers is equal to it to the bit.
 *
 * Conventions
 *  - Numbers in and out are f32 and rows are contiguous in their last dim; strides count elements, not bytes.
 *  - Sizes are int64_t.  Nothing is allocated: a call brings its scratch (`omnic_scratch_*` say how much) and its pool.
 *  - A row of a result does not depend on how many rows a call has, nor on the threads: every output is one chain of
 *    operations in one order ("batch invariance"), in every level.  Levels may differ in that order where the
 *    arithmetic is f32; never where it is whole numbers.
 *  - No function touches errno, signals or globals other than the pool's.
 */
#ifndef OMNIC_KERNELS_H
#define OMNIC_KERNELS_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
/* Objects are compiled with hidden symbols; what this header declares is what the library shows. */
#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility push(default)
#endif

#define OMNIC_ABI 2

/* ---- levels ------------------------------------------------------------------------------------------------- */
enum {
  OMNIC_GENERIC = 0,
  OMNIC_AVX2 = 1,        /* AVX2, FMA, F16C */
  OMNIC_AVXVNNI = 2,     /* and AVX-VNNI */
  OMNIC_AVX512 = 3,      /* AVX-512 F, BW, VL, DQ and VNNI */
  OMNIC_AMX = 4,         /* and AMX tiles of int8 and bf16 */
  OMNIC_NEON = 16,       /* AArch64, no dot product */
  OMNIC_DOTPROD = 17,    /* and sdot */
  OMNIC_I8MM = 18        /* and smmla */
};

/* ---- numbers ------------------------------------------------------------------------------------------------ */
enum { /* what lies in memory */
  OMNIC_F32 = 0, OMNIC_F16 = 1, OMNIC_BF16 = 2,
  OMNIC_I8 = 3,          /* signed codes of 8 bits */
  OMNIC_I4 = 4,          /* codes of 4 bits, kept as code + 8 (0..15) */
  OMNIC_I2 = 5,          /* codes of 2 bits, kept as code + 2 (0..3); ternary is -1, 0, 1 of them */
  OMNIC_S4 = 6           /* a scale of 4 bits, 1..15, times one f32 of its row */
};
enum { /* what a product makes of its activations first */
  OMNIC_ACT_F32 = 0,     /* nothing */
  OMNIC_ACT_I8_ROW = 1,  /* s = max|x| / 127 of the row (1 where all are 0), round half to even */
  OMNIC_ACT_I8_GROUP = 2,/* the same for every group of `act_group` numbers */
  OMNIC_ACT_BF16 = 3     /* round to bf16, half to even; sums in f32 */
};
enum { OMNIC_SILU = 0, OMNIC_GELU = 1, OMNIC_GELU_TANH = 2, OMNIC_RELU = 3, OMNIC_RELU2 = 4 };

/* ---- a call ------------------------------------------------------------------------------------------------- */
typedef struct omnic_pool omnic_pool;      /* worker threads; NULL: the calling thread alone */
/* How products are cut and read ahead.  No value changes a bit of any result; values between those that a field takes
 * count as the next smaller one. */
typedef struct {
  int32_t panels;        /* panels in flight for one row: 1, 2 or 4; 0: as the level does */
  int32_t prefetch;      /* bytes ahead of the codes, 0: none; negative: as the level does */
  int32_t k_block;       /* numbers of k unpacked at a time for many rows: a multiple of 64, at most 2048; 0 */
  int32_t chunk;         /* rows that share an unpacked panel: a multiple of 16, at most 512; 0 */
  int32_t threads;       /* most threads that a call uses, 0: all of the pool */
} omnic_tuning;
typedef struct {
  omnic_pool *pool;
  void *scratch;         /* 64-byte aligned; as many bytes as the function's omnic_scratch_* said */
  size_t scratch_bytes;
  const omnic_tuning *tuning; /* of products and experts; NULL: as the level does */
} omnic_call;

omnic_pool *omnic_pool_create(int threads);          /* NULL when a thread cannot be made */
void omnic_pool_destroy(omnic_pool *pool);
int omnic_pool_threads(const omnic_pool *pool);      /* 1 for NULL */
/* Run task(arg, i) for i in 0..tasks-1 on the pool; returns when all are done.  Workers spin for a short while
 * after a call, then park. */
void omnic_pool_run(omnic_pool *pool, void (*task)(void *arg, int64_t i), void *arg, int64_t tasks);

/* ---- weights ------------------------------------------------------------------------------------------------
 * A matrix W [n, k] of y = x W^T, packed in panels of 16 outputs ("columns" c = 0..15); n is padded to 16 and k to
 * the block of its type with codes that stand for 0.  One layout for every kernel and level:
 *   F32 F16 BF16  [n/16][k][16]
 *   I8            [n/16][k/4][16][4]                byte (c, j): k = 4 q + j
 *   I4            [n/16][k/32][4][16][4]            byte (c, j): low nibble k = 8 q + j, high nibble k = 8 q + 4 + j
 *   I2            [n/16][k/64][4][16][4]            byte (c, j): bits 2i, 2i+1: k = 16 q + 4 i + j
 * scales: [n/16][k/group][16] of F32, F16 or BF16; S4: [n/16][k/group][8], byte c of it holds columns c (low) and
 * c + 8 (high), and `row` [n] f32.  zeros: u8 [n/16][k/group][16], the code (as kept, 0..15 or 0..255) that stands for
 * 0; NULL when symmetric (8 for I4, 2 for I2, 0 for I8).  I8 with zeros keeps code + 128 - 128: zero - 128 is subtracted.
 */
typedef struct {
  const void *codes;     /* 64-byte aligned */
  const void *scales;    /* NULL for plain types */
  const uint8_t *zeros;
  const float *row;      /* of S4, else NULL */
  int64_t n, k;          /* as the model has them, without padding */
  int64_t group;         /* numbers along k that share a scale; k when a row has one */
  int32_t type;          /* OMNIC_F32 .. OMNIC_I2 */
  int32_t scale_type;    /* OMNIC_F32, OMNIC_F16, OMNIC_BF16, OMNIC_S4 */
} omnic_weight;

/* What finds the largest product of a head without most of them; `lm_argmax` in docs/ir.md says what the numbers are.
 * basis [r, k] of F32; screen [n, r] of I8 in groups of 32; reach [3][n].  None is padded. */
typedef struct {
  const omnic_weight *head, *basis, *screen;
  const float *reach;
} omnic_shortlist;

/* ---- caches -------------------------------------------------------------------------------------------------
 * One state [B, G, S, D] (or [B, S, D]: G = 1) of keys, values or latents.  Slot s of row b and head g lies at
 * data + (b stride_b + g stride_g + s stride_s) elements of `type`; its D numbers are contiguous.  Codes of 4 bits
 * lie two in a byte, the earlier one low, and strides count codes.  Scales (F16 or F32) and u8 zeros of groups of
 * `group` numbers lie at the same (b, g, s) with D/group for D: scale strides are strides * (D/group) / D.
 * With `blocks`, the slots of logical block i are those of block blocks[b * blocks_b + i]: a paged cache.
 */
typedef struct {
  void *data;
  void *scales;          /* NULL for plain types */
  uint8_t *zeros;        /* NULL when symmetric */
  int64_t slots, d, group;
  int64_t stride_b, stride_g, stride_s;
  const int32_t *blocks; /* NULL: contiguous */
  int64_t blocks_b, block;
  int32_t type;          /* OMNIC_F32, F16, BF16, I8, I4 */
  int32_t scale_type;    /* OMNIC_F16 or OMNIC_F32 */
  int32_t ring;          /* slot = token mod slots */
} omnic_cache;

/* What every attention knows.  Query t of row b is token start[b] + t.  It sees the tokens j <= its own, of those the
 * last `window` (0: all), and with parents only its ancestors and itself among the tokens of this call. */
typedef struct {
  int64_t batch, tokens; /* B, T */
  const int64_t *start, *length;  /* [B]; queries at or beyond length give anything finite */
  const int64_t *parents;         /* [B][T] index within the call, -1: the committed prefix; NULL: a chain */
  const float *sinks;             /* [heads], one more logit of each head; NULL */
  float scale, softcap;           /* softcap 0: none */
  int64_t window;
} omnic_mask;

/* A strided view [B, H, T, D] of f32, D contiguous. */
typedef struct {
  float *data;
  int64_t stride_b, stride_h, stride_t;
} omnic_view;

/* ---- the table of one level --------------------------------------------------------------------------------- */
typedef struct {
  int32_t abi, level;

  /* y [m, n] = act(x) [m, k] W^T + bias.  ldx, ldy: elements between rows.  bias may be NULL; y must not overlap x.
   * With `residual` (or NULL) y = residual + ...; residual may be y itself. */
  void (*linear)(const omnic_call *, const omnic_weight *w, const float *x, int64_t m, int64_t ldx, int32_t act,
                 int64_t act_group, const float *bias, const float *residual, int64_t ldr, float *y, int64_t ldy);
  /* The same x for several weights at once (q, k, v; gate, up): it is quantised once. */
  void (*linear_many)(const omnic_call *, const omnic_weight *const *w, int64_t count, const float *x, int64_t m,
                      int64_t ldx, int32_t act, int64_t act_group, const float *const *bias, float *const *y,
                      const int64_t *ldy);
  /* rows of a packed table: y [m, k] = W[ids[i]].  ids out of 0..n-1 give zeros. */
  void (*embed)(const omnic_call *, const omnic_weight *w, const int64_t *ids, int64_t m, float *y, int64_t ldy);

  /* y [m, d] = sum over the chosen experts i of gates[i] * down_e(act(gate_e x) * up_e x), or down_e(act(up_e x)) with
   * gate NULL.  up, gate, down are tables [experts] of pointers: an expert may lie anywhere.  indices, gates [m, top].
   * biases are [experts][...] or NULL. Tokens of the same expert share its weights; the sum runs in the order of `top`.
   * With a gate, `limit` > 0 bounds it from above and up on both sides first, silu is x sigmoid(alpha x), and beta is
   * added to up: act(min(gate, limit)) * (clamp(up, -limit, limit) + beta).  alpha 1, beta 0, limit 0: none of it. */
  void (*moe)(const omnic_call *, const omnic_weight *const *gate, const omnic_weight *const *up,
              const omnic_weight *const *down, int64_t experts, const float *x, int64_t m, int64_t ldx,
              const int64_t *indices, const float *gates, int64_t top, int32_t kind, float alpha, float beta,
              float limit, int32_t act, int64_t act_group, const float *const *gate_bias, const float *const *up_bias,
              const float *const *down_bias, float *y, int64_t ldy);

  /* heads query heads over keys and values of heads_kv; head h reads cache head h / (heads / heads_kv). */
  void (*attention)(const omnic_call *, const omnic_mask *, int64_t heads, int64_t heads_kv, omnic_view q,
                    const omnic_cache *k, const omnic_cache *v, omnic_view y);
  /* Absorbed MLA: score = q_latent . latent + q_rope . rope_k; y [B, H, T, L] = sum of weight * latent. */
  void (*mla)(const omnic_call *, const omnic_mask *, int64_t heads, omnic_view q_latent, omnic_view q_rope,
              const omnic_cache *latent, const omnic_cache *rope_k, omnic_view y);
  /* y[b, h, t, :] = x[b, h, t, :] W_h^T for plain W [heads] of [n, k]: the up and down projections of absorbed MLA. */
  void (*linear_heads)(const omnic_call *, const omnic_weight *const *w, int64_t heads, int64_t batch, int64_t tokens,
                       omnic_view x, omnic_view y);
  /* Write x [B, G, T, D] into the slots of tokens start .. start + length - 1, rounded to the cache's type. */
  void (*cache_write)(const omnic_call *, const omnic_cache *, int64_t heads_kv, int64_t batch, int64_t tokens,
                      const int64_t *start, const int64_t *length, omnic_view x);
  /* Copy token source[b][i] to target[b][i], all reads before all writes; -1 skips a pair.  At most 16384 pairs. */
  void (*cache_move)(const omnic_call *, const omnic_cache *, int64_t heads_kv, int64_t batch, int64_t pairs,
                     const int64_t *source, const int64_t *target);

  void (*rms_norm)(const omnic_call *, const float *x, int64_t m, int64_t ldx, int64_t d, const float *weight, float eps,
                   float *y, int64_t ldy);
  void (*layer_norm)(const omnic_call *, const float *x, int64_t m, int64_t ldx, int64_t d, const float *weight,
                     const float *bias, float eps, float *y, int64_t ldy);
  /* The first `dims` numbers of every row rotated by positions[b][t] * freq[i] (i < dims/2), cos and sin times
   * `magnitude`; pairs are (i, i + dims/2), or (2i, 2i+1) when interleaved; angles are computed in f64.  y may be x. */
  void (*rope)(const omnic_call *, int64_t batch, int64_t heads, int64_t tokens, int64_t d, int64_t dims,
               const double *freq, double magnitude, int32_t interleaved, const int64_t *positions, omnic_view x,
               omnic_view y);
  /* Number by number; y may be an operand. */
  void (*act)(const omnic_call *, int32_t kind, const float *x, int64_t count, float *y);
  void (*gated_act)(const omnic_call *, int32_t kind, const float *gate, const float *up, int64_t count, float *y);
  void (*add)(const omnic_call *, const float *a, const float *b, int64_t count, float *y);
  void (*softmax)(const omnic_call *, const float *x, int64_t m, int64_t d, float *y);
  /* The k largest of every row of d, descending, the lower index first among equals. */
  void (*topk)(const omnic_call *, const float *x, int64_t m, int64_t d, int64_t k, float *values, int64_t *indices);
  /* The index of the largest number of every row of x W^T, the lowest among equals. */
  void (*head_argmax)(const omnic_call *, const omnic_weight *w, const float *x, int64_t m, int64_t ldx, int32_t act,
                      int64_t act_group, float softcap, int64_t *ids, float *logits);
  /* The same, by a shortlist: ids and logits (or NULL) are those of head_argmax without softcap.  `multiplied` [m] counts
   * the panels of the head that were multiplied; or NULL. */
  void (*head_shortlist)(const omnic_call *, const omnic_shortlist *, const float *x, int64_t m, int64_t ldx, int32_t act,
                         int64_t act_group, int64_t *ids, float *logits, int64_t *multiplied);
} omnic_ops;

/* The best level of this CPU and system. */
int omnic_best_level(void);
/* NULL when the library was built without the level or this CPU lacks it. */
const omnic_ops *omnic_kernels(int level);
const char *omnic_level_name(int level);

/* Upper bounds of scratch over all levels, for `threads` threads. */
size_t omnic_scratch_linear(const omnic_weight *w, int64_t m, int32_t act, int64_t act_group, int threads);
size_t omnic_scratch_moe(const omnic_weight *up, const omnic_weight *down, int64_t m, int64_t top, int64_t experts,
                         int32_t act, int64_t act_group, int threads);
size_t omnic_scratch_shortlist(const omnic_shortlist *shortlist, int64_t m, int32_t act, int64_t act_group, int threads);
size_t omnic_scratch_attention(int64_t heads, int64_t tokens, int64_t d, int64_t dv, int64_t slots, int threads);

#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
