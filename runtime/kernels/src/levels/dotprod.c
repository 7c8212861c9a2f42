/* The level dotprod: AArch64 with sdot. */
#define OMNIC_LEVEL OMNIC_DOTPROD
#define OMNIC_SUFFIX dotprod
#define OMNIC_HAS_NEON 1
#define OMNIC_HAS_DOTPROD 1
#include "../level.h"
