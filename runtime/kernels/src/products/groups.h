/* Symmetric codes of 4 bits in groups of 32, with steps or f16 scales, times x in the same groups or with one
 * scale for its row (`whole` where that is so with steps): the blocks in which decoding and prefill spend their time.
 * They do what code_block does, with nothing to decide in the loop. */

OMNIC_INLINE void group_block(const int kind, const int scales, const int whole, const int R, const int P,
                              const code_job *job, const code_part *part, int64_t row, int64_t rows, float *chains) {
  const omnic_rows *given = job->t->rows;
  const int line_bytes = kind == CODES_4 ? 256 : 512, scale_bytes = scales == OMNIC_S4 ? 8 : 32;
  const int64_t groups = job->t->shape.groups, end = part->g1;
  const int64_t gap = part->apart * job->t->shape.panel_bytes, scale_gap = part->apart * groups * scale_bytes;
  const uint8_t *lines = part->codes;
  const uint8_t *scale = (const uint8_t *)job->t->w->scales + (part->panel * groups + part->g0) * scale_bytes;
  const uint8_t *ahead = lines + part->ahead, *scale_ahead = scale + part->ahead / (256 / scale_bytes) + 64;
  const cols_i zero = cols_zeros_of(8);
  const int64_t of_x = job->per_row ? 0 : -1; /* which bits of a group's number say which scale of x it has */
  const int8_t *x[CODE_ROWS];
  const int16_t *sums[CODE_ROWS];
  const float *sx[CODE_ROWS];
  cols_f chain[CODE_ROWS][CODE_PANELS][COL_VECTORS];
  OMNIC_UNROLL for (int r = 0; r < R; r++) { /* a block that is not full computes its last row again */
    int64_t i = job->t->first + row + (r < rows ? r : rows - 1);
    x[r] = given->codes + i * given->stride;
    sums[r] = given->sums + i * (given->stride / 16);
    sx[r] = job->per_row ? exact_one : given->scales + i * given->groups;
    OMNIC_UNROLL for (int p = 0; p < P; p++) OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++)
        chain[r][p][v] = cols_get(chains + (r * P + p) * 16 + v * COLS);
  }
  for (int64_t g = part->g0; g < end; g++) {
    cols_i acc[CODE_ROWS][CODE_PANELS][COL_VECTORS];
    OMNIC_UNROLL for (int r = 0; r < R; r++) {
      cols_i start = cols_start(sums[r] + 2 * g, zero);
      OMNIC_UNROLL for (int p = 0; p < P; p++) OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) acc[r][p][v] = start;
    }
    if (COLS_PAIRED && kind == CODES_OPEN) cols_paired_step(acc, lines, x, g * 32);
    OMNIC_UNROLL for (int i = 0; i < (COLS_PAIRED && kind == CODES_OPEN ? 0 : 8); i++) {
      cols_i codes[CODE_PANELS][COL_VECTORS];
      OMNIC_UNROLL for (int p = 0; p < P; p++) {
        if (R == 1 && i % 2 == 0) __builtin_prefetch(ahead + p * gap + i * 32);
        OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) codes[p][v] = small_codes(kind, lines + p * gap, i, v);
      }
      OMNIC_UNROLL for (int r = 0; r < R; r++) {
        cols_i four = cols_spread(x[r] + g * 32 + i * 4);
        OMNIC_UNROLL for (int p = 0; p < P; p++) OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++)
            acc[r][p][v] = cols_step(acc[r][p][v], codes[p][v], four);
      }
    }
    OMNIC_UNROLL for (int p = 0; p < P; p++) {
      if (R == 1) __builtin_prefetch(scale_ahead + p * scale_gap);
      OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) {
        if (scales == OMNIC_S4) {
          cols_i step = cols_steps(scale + p * scale_gap, v);
          OMNIC_UNROLL for (int r = 0; r < R; r++) {
            cols_i sum = cols_stepped(acc[r][p][v], step);
            chain[r][p][v] = whole ? cols_of_bits(cols_add(cols_bits(chain[r][p][v]), sum))
                                   : cols_fma(cols_to_f(sum), cols_number(sx[r][g & of_x]), chain[r][p][v]);
          }
        } else {
          cols_f half = cols_plain(scale + p * scale_gap, OMNIC_F16, 0, v);
          OMNIC_UNROLL for (int r = 0; r < R; r++)
            chain[r][p][v] = cols_fma(cols_to_f(cols_end(acc[r][p][v])), cols_times(half, cols_number(sx[r][g & of_x])),
                                      chain[r][p][v]);
        }
      }
    }
    lines += line_bytes, ahead += line_bytes, scale += scale_bytes, scale_ahead += scale_bytes;
  }
  OMNIC_UNROLL for (int r = 0; r < R; r++) OMNIC_UNROLL for (int p = 0; p < P; p++)
      OMNIC_UNROLL for (int v = 0; v < COL_VECTORS; v++) cols_put(chains + (r * P + p) * 16 + v * COLS, chain[r][p][v]);
}

#define GROUP_BLOCK(name, kind, scales, whole, R, P)                                                              \
  OMNIC_STATIC void name(const code_job *job, const code_part *part, int64_t row, int64_t rows, float *chains) {  \
    group_block(kind, scales, whole, R, P, job, part, row, rows, chains);                                         \
  }
#define GROUP_BLOCKS(name, scales, whole)                         \
  GROUP_BLOCK(name##_one, CODES_4, scales, whole, 1, 1)           \
  GROUP_BLOCK(name##_pair, CODES_4, scales, whole, 1, 2)          \
  GROUP_BLOCK(name##_many, CODES_4, scales, whole, CODE_ROWS, 1)  \
  GROUP_BLOCK(name##_open, CODES_OPEN, scales, whole, CODE_ROWS, 1)
GROUP_BLOCKS(steps, OMNIC_S4, 0)
GROUP_BLOCK(steps_four, CODES_4, OMNIC_S4, 0, 1, 4)
GROUP_BLOCK(steps_two, CODES_4, OMNIC_S4, 0, 2, 1)
GROUP_BLOCKS(halves, OMNIC_F16, 0)
GROUP_BLOCK(halves_four, CODES_4, OMNIC_F16, 0, 1, 4)
GROUP_BLOCK(halves_two, CODES_4, OMNIC_F16, 0, 2, 1)
GROUP_BLOCKS(wholes, OMNIC_S4, 1)
