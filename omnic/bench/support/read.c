/* Read memory as fast as one thread can: four streams a quarter apart, fetched ahead, summed as whole numbers. */
#include <stdint.h>

typedef uint64_t part __attribute__((vector_size(32), aligned(8), may_alias));

uint64_t read_bytes(const uint8_t *bytes, int64_t count) {
  int64_t quarter = count / 4 / 64 * 64;
  const uint8_t *at[4] = {bytes, bytes + quarter, bytes + 2 * quarter, bytes + 3 * quarter};
  part a = {0}, b = {0}, c = {0}, d = {0};
  for (int64_t i = 0; i < quarter; i += 64) {
    for (int stream = 0; stream < 4; stream++) __builtin_prefetch(at[stream] + i + 2048);
    a += *(const part *)(at[0] + i), a += *(const part *)(at[0] + i + 32);
    b += *(const part *)(at[1] + i), b += *(const part *)(at[1] + i + 32);
    c += *(const part *)(at[2] + i), c += *(const part *)(at[2] + i + 32);
    d += *(const part *)(at[3] + i), d += *(const part *)(at[3] + i + 32);
  }
  a += b + c + d;
  return a[0] + a[1] + a[2] + a[3];
}
