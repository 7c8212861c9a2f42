/* AMX tiles in plain C, for tests on a CPU without them: eight tiles of 16 rows of 64 bytes for each thread.
 *
 * The products round as Intel's manual says (SDM volume 2, TDPBF16PS and TDPB**D): whole numbers wrap; bf16 pairs are
 * summed in f32 with each product and each sum rounded to nearest even, inputs and results below the normal range
 * counted as 0.
 */
#include <stdint.h>
#include <string.h>

typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t colsb[16];
  uint8_t rows[16];
} omnic_tile_config;

static __thread omnic_tile_config omnic_tiles_config __attribute__((unused));
static __thread uint8_t omnic_tiles[8][16][64] __attribute__((unused));

#define OMNIC_TILE static inline __attribute__((unused)) void

OMNIC_TILE omnic_tile_loadconfig(const void *config) {
  memcpy(&omnic_tiles_config, config, 64);
  memset(omnic_tiles, 0, sizeof omnic_tiles);
}
OMNIC_TILE omnic_tile_release(void) {
  memset(&omnic_tiles_config, 0, 64);
  memset(omnic_tiles, 0, sizeof omnic_tiles);
}
OMNIC_TILE omnic_tile_zero(int t) { memset(omnic_tiles[t], 0, sizeof omnic_tiles[t]); }
OMNIC_TILE omnic_tile_load(int t, const void *from, int64_t stride) {
  memset(omnic_tiles[t], 0, sizeof omnic_tiles[t]);
  for (int r = 0; r < omnic_tiles_config.rows[t]; r++)
    memcpy(omnic_tiles[t][r], (const uint8_t *)from + r * stride, omnic_tiles_config.colsb[t]);
}
OMNIC_TILE omnic_tile_store(int t, void *to, int64_t stride) {
  for (int r = 0; r < omnic_tiles_config.rows[t]; r++)
    memcpy((uint8_t *)to + r * stride, omnic_tiles[t][r], omnic_tiles_config.colsb[t]);
}

static inline int32_t omnic_tile_byte(int t, int r, int i, int is_signed) {
  return is_signed ? (int8_t)omnic_tiles[t][r][i] : (int32_t)omnic_tiles[t][r][i];
}
OMNIC_TILE omnic_tile_bytes(int c, int a, int b, int a_signed, int b_signed) {
  for (int m = 0; m < omnic_tiles_config.rows[c]; m++)
    for (int n = 0; n < omnic_tiles_config.colsb[c] / 4; n++) {
      uint32_t sum;
      memcpy(&sum, &omnic_tiles[c][m][4 * n], 4);
      for (int k = 0; k < omnic_tiles_config.colsb[a] / 4; k++)
        for (int i = 0; i < 4; i++)
          sum += (uint32_t)(omnic_tile_byte(a, m, 4 * k + i, a_signed) * omnic_tile_byte(b, k, 4 * n + i, b_signed));
      memcpy(&omnic_tiles[c][m][4 * n], &sum, 4);
    }
}

static inline float omnic_tile_flush(float x) {
  uint32_t word;
  memcpy(&word, &x, 4);
  if (!(word & 0x7f800000u)) word &= 0x80000000u;
  memcpy(&x, &word, 4);
  return x;
}
static inline float omnic_tile_bfloat(int t, int r, int i) {
  uint16_t half;
  memcpy(&half, &omnic_tiles[t][r][2 * i], 2);
  uint32_t word = (uint32_t)half << 16;
  float f;
  memcpy(&f, &word, 4);
  return omnic_tile_flush(f);
}
OMNIC_TILE omnic_tile_bfloats(int c, int a, int b) {
  for (int m = 0; m < omnic_tiles_config.rows[c]; m++)
    for (int n = 0; n < omnic_tiles_config.colsb[c] / 4; n++) {
      /* Even and odd numbers have sums of their own, added at the end: the manual's order of the operation. */
      float even = 0.0f, odd = 0.0f, sum;
      memcpy(&sum, &omnic_tiles[c][m][4 * n], 4);
      for (int k = 0; k < omnic_tiles_config.colsb[a] / 4; k++) {
        even = omnic_tile_flush(fmaf(omnic_tile_bfloat(a, m, 2 * k), omnic_tile_bfloat(b, k, 2 * n), even));
        odd = omnic_tile_flush(fmaf(omnic_tile_bfloat(a, m, 2 * k + 1), omnic_tile_bfloat(b, k, 2 * n + 1), odd));
      }
      sum = omnic_tile_flush(omnic_tile_flush(sum) + omnic_tile_flush(even + odd));
      memcpy(&omnic_tiles[c][m][4 * n], &sum, 4);
    }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#undef _tile_dpbuud
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) omnic_tile_loadconfig(config)
#define _tile_release() omnic_tile_release()
#define _tile_zero(t) omnic_tile_zero(t)
#define _tile_loadd(t, from, stride) omnic_tile_load(t, from, (int64_t)(stride))
#define _tile_stream_loadd(t, from, stride) omnic_tile_load(t, from, (int64_t)(stride))
#define _tile_stored(t, to, stride) omnic_tile_store(t, to, (int64_t)(stride))
#define _tile_dpbssd(c, a, b) omnic_tile_bytes(c, a, b, 1, 1)
#define _tile_dpbsud(c, a, b) omnic_tile_bytes(c, a, b, 1, 0)
#define _tile_dpbusd(c, a, b) omnic_tile_bytes(c, a, b, 0, 1)
#define _tile_dpbuud(c, a, b) omnic_tile_bytes(c, a, b, 0, 0)
#define _tile_dpbf16ps(c, a, b) omnic_tile_bfloats(c, a, b)
