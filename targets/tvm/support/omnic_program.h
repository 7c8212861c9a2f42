/* A compiled program: its tables, one call of it, and what its functions share.
 *
 * program.c (made from a model) defines `omnic_program_table`; program_run.c opens it over a file of weights and runs it;
 * program_ops.c holds small operations that are no kernels.
 */
#ifndef OMNIC_PROGRAM_H
#define OMNIC_PROGRAM_H
#include "omnic_kernels.h"

#if defined(_WIN32)
#define OMNIC_EXPORT __declspec(dllexport)
#else
#define OMNIC_EXPORT __attribute__((visibility("default")))
#endif

#define OMNIC_PROGRAM_ABI 1

/* One packed matrix: bytes from the start of the file, -1 for a part that it has not. */
typedef struct {
  int64_t codes, scales, zeros, row;
  int64_t n, k, group;
  int32_t type, scale_type;
} omnic_matrix;

/* One state.  The parts of row b of a batch of B lie B * at bytes into the block, rows after each other. */
typedef struct {
  const char *name;
  int64_t heads, slots, d, group;
  int64_t at, scales_at, zeros_at; /* -1: none */
  int32_t type, scale_type, ring;
  int32_t cache; /* 0: plain numbers that no token has a slot in */
} omnic_state;

/* One call: what a function of the program works on. */
typedef struct {
  const omnic_ops *ops;
  omnic_pool *pool;
  const omnic_weight *weights;
  const omnic_weight *const *pointers;
  const uint8_t *file;
  uint8_t *arena, *scratch, *states;
  size_t scratch_bytes;
  int64_t batch, tokens, rows;
  const void *const *in;
  void *const *out;
  double *times; /* seconds by mark, or NULL */
  double *clock;
} omnic_run;

typedef struct {
  const char *name;    /* of the function of the model */
  int64_t tokens;      /* 1: for calls of one token a row; else the most tokens of a row */
  int64_t arena;       /* bytes of a call of the largest batch */
  int32_t inputs, results;
  size_t (*scratch)(const omnic_weight *weights, int64_t batch, int threads);
  void (*run)(const omnic_run *run);
} omnic_function;

typedef struct {
  int32_t abi;
  const char *model;
  int64_t batch;       /* the most rows */
  int64_t vocab, capacity, chunk;
  int64_t file_bytes;
  const char *file_hash; /* SHA-256 of what follows the first page of the file, in hex */
  int64_t matrices;
  const omnic_matrix *matrix;
  int64_t states;
  const omnic_state *state;
  int64_t row_bytes;   /* of the states of one row */
  int64_t functions;
  const omnic_function *function;
  const int64_t *result_bytes; /* of the results of `forward` for the longest call of one row and one wanted row */
  int64_t marks;
  const char *const *mark; /* scopes, in order */
} omnic_program;

OMNIC_EXPORT extern const omnic_program omnic_program_table;

/* ---- running (program_run.c) ---------------------------------------------------------------------------------- */
typedef struct omnic_instance omnic_instance;

/* What kept a program from opening. */
enum { OMNIC_OK = 0, OMNIC_NO_LEVEL = 1, OMNIC_NO_THREADS = 2, OMNIC_NO_MEMORY = 3, OMNIC_BAD_FILE = 4, OMNIC_BAD_CALL = 5 };

/* Check the first page of a file of `bytes` bytes: it is whole, and it belongs to this program. */
OMNIC_EXPORT int omnic_program_check(const uint8_t *file, int64_t bytes);
/* Open the program over its mapped file.  level -1: the best of this CPU. */
OMNIC_EXPORT int omnic_program_open(const uint8_t *file, int64_t bytes, int level, int threads, omnic_instance **made);
OMNIC_EXPORT void omnic_program_close(omnic_instance *instance);
OMNIC_EXPORT int omnic_program_level(const omnic_instance *instance);
/* Run function `name` for [batch, tokens] and [batch, rows]; `states` is a block of batch * row_bytes.  `times` are the
 * seconds of every mark, added to what it holds, or NULL. */
OMNIC_EXPORT int omnic_program_run(omnic_instance *instance, const char *name, int64_t batch, int64_t tokens,
                                   int64_t rows, const void *const *in, void *const *out, uint8_t *states,
                                   double *times);
/* Copy tokens in every state of a cache: source, target [batch][pairs], -1 skips a pair. */
OMNIC_EXPORT int omnic_program_move(omnic_instance *instance, const int32_t *states_moved, int64_t count, int64_t batch,
                                    int64_t pairs, const int64_t *source, const int64_t *target, uint8_t *states);

/* The cache that a state of this call is. */
omnic_cache omnic_cache_of(const omnic_run *run, int state);
/* Count the time since the last mark for mark `at`. */
void omnic_mark(const omnic_run *run, int at);

/* ---- small operations (program_ops.c) -------------------------------------------------------------------------- */
/* Copy `rank` dims of elements of `width` bytes between strided views. */
void omnic_copy(int rank, const int64_t *shape, int64_t width, const void *source, const int64_t *from, void *target,
                const int64_t *to);
/* y[b][r] = x[b * tokens + rows[b][r]], rows of `width`; x rows are ldx apart, y has no gaps. */
void omnic_rows(int64_t batch, int64_t tokens, int64_t wanted, int64_t width, const int64_t *rows, const float *x,
                int64_t ldx, float *y);
/* Rows of n in order, equals in the order they had; `work` has n entries.  Numbers are f32, or else int64. */
void omnic_sort(int64_t m, int64_t n, int f32, int descending, const void *x, int64_t *work, void *values,
                int64_t *indices);
/* Put values at the indices `which` along a dim of y, both seen as `shape`.  kind: 2 for f32 (int64 else), and 1 to add. */
void omnic_scatter(int rank, const int64_t *shape, int axis, int kind, const int64_t *which, const int64_t *from,
                   const void *values, const int64_t *of, void *y, const int64_t *to);
/* The nearest number of the type, half to even. */
float omnic_round_f16(float x);
float omnic_round_bf16(float x);
/* y = cap * tanh(y / cap). */
void omnic_softcap(int64_t m, int64_t n, float cap, float *y, int64_t ldy);
/* table[i] = numbers + i * width. */
void omnic_table(const float **table, int64_t count, const float *numbers, int64_t width);
/* Every number of a cache of `batch` rows as f32, [batch][heads][slots][d], and the token that is in each slot, -1 in one
 * that holds none: [batch][slots]. */
void omnic_cache_dense(const omnic_cache *cache, int64_t batch, float *y);
void omnic_cache_index(const omnic_cache *cache, int64_t batch, const int64_t *start, const int64_t *length,
                       int64_t *index);
/* A way of calling a product that was measured: on `level`, with a pool of `threads`, for from .. to rows. */
typedef struct {
  int32_t level, threads;
  int64_t from, to;
  omnic_tuning tuning;
} omnic_tuned_rows;
/* The call with the tuning of its level, threads and rows, where the table (which ends with zeros) has one. */
omnic_call omnic_tuned(const omnic_call *c, const omnic_ops *K, const omnic_tuned_rows *table, int64_t rows);
size_t omnic_larger(size_t a, size_t b);
int64_t omnic_min(int64_t a, int64_t b);
int64_t omnic_max(int64_t a, int64_t b);

typedef struct {
  int64_t experts, top, groups;
  const int64_t *sizes; /* of the groups; NULL without */
  int64_t top_groups;
  int32_t top2_sum, sigmoid, renormalise;
  float scale;
} omnic_router;

/* The choice of experts from logits [m, experts]: see `router` in docs/ir.md.  `group_logits` [m, groups] and `bias`
 * [experts] may be NULL.  Many rows are shared by the threads of the pool; the scratch of the call is
 * omnic_scratch_route. */
void omnic_route(const omnic_ops *K, const omnic_call *c, const omnic_router *router, int64_t m, const float *logits,
                 const float *group_logits, const float *bias, int64_t *indices, float *gates);
size_t omnic_scratch_route(const omnic_router *router, int threads);
#endif
