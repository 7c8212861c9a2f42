/* How much scratch products need, over all levels. */
#include "../../include/omnic_kernels.h"

static size_t lines(int64_t bytes) { return ((size_t)bytes + 63) / 64 * 64; }

/* All that can be made of m rows of k activations (activations.h): codes, scales, sums, bf16 and f32. */
static size_t prepared(int64_t m, int64_t k, int32_t act, int64_t act_group) {
  int64_t group = act == OMNIC_ACT_I8_GROUP && act_group < k ? act_group : k, stride = (k + 63) / 64 * 64 + 64;
  if (act == OMNIC_ACT_F32) return 0;
  return lines(m * stride) + lines(m * ((k + group - 1) / group) * 4) + lines(m * stride / 8) + lines(m * stride * 2) +
         lines(m * k * 4);
}

size_t omnic_scratch_linear(const omnic_weight *w, int64_t m, int32_t act, int64_t act_group, int threads) {
  int64_t tasks = (w->n + 15) / 16 < threads * 4 + 4 ? (w->n + 15) / 16 : threads * 4 + 4;
  return 64 + prepared(m, w->k, act, act_group) + lines(tasks * m * 16);
}

size_t omnic_scratch_moe(const omnic_weight *up, const omnic_weight *down, int64_t m, int64_t top, int64_t experts,
                         int32_t act, int64_t act_group, int threads) {
  (void)threads;
  int64_t pairs = m * top;
  return 64 + 4 * lines((experts + 1) * 8) + 2 * lines(pairs * 8) + 2 * lines(pairs * up->n * 4) + lines(pairs * down->n * 4) +
         prepared(pairs, up->k, act, act_group) + prepared(pairs, down->k, act, act_group);
}

size_t omnic_scratch_shortlist(const omnic_shortlist *s, int64_t m, int32_t act, int64_t act_group, int threads) {
  size_t basis = omnic_scratch_linear(s->basis, 1, OMNIC_ACT_F32, 0, threads);
  size_t screen = omnic_scratch_linear(s->screen, 1, OMNIC_ACT_I8_GROUP, 32, threads);
  return omnic_scratch_linear(s->head, m, act, act_group, threads) + lines((s->basis->n + 15) / 16 * 64) +
         lines(s->head->n * 4) + lines((s->head->n + 15) / 16 * 4) + (basis > screen ? basis : screen);
}
