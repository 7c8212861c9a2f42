/* Fused multiply-adds as fast as one thread can: as many chains of full registers as hide their latency.
 *
 * CHAINS registers of BYTES bytes; compiled with contraction allowed, so that a * b + c is one instruction.
 */
#include <stdint.h>

typedef float lanes __attribute__((vector_size(BYTES)));

/* CHAINS * BYTES / 4 multiply-adds a round. */
float multiply(int64_t rounds, float start) {
  lanes chain[CHAINS], factor = (lanes){0} + 0.999f, more = (lanes){0} + 1e-5f;
  for (int i = 0; i < CHAINS; i++) chain[i] = (lanes){0} + (start + 1e-3f * (float)i);
  for (int64_t n = 0; n < rounds; n++) {
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) chain[i] = chain[i] * factor + more;
  }
  for (int i = 1; i < CHAINS; i++) chain[0] += chain[i];
  return chain[0][0];
}
