/* What works on rows of f32 alone: norms, rope, activations, softmax, topk. */
#include "functions.h"
#include "share.h"
#include "norms.h"
#include "elementwise.h"
#include "rope.h"

#define OMNIC_TABLE_ROWS                                                                                  \
  .rms_norm = OMNIC_FN(rms_norm), .layer_norm = OMNIC_FN(layer_norm), .rope = OMNIC_FN(rope),             \
  .act = OMNIC_FN(act), .gated_act = OMNIC_FN(gated_act), .add = OMNIC_FN(add),                           \
  .softmax = OMNIC_FN(softmax), .topk = OMNIC_FN(topk),
