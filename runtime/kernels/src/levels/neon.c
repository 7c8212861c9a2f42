/* The level neon: AArch64 without the dot product. */
#define OMNIC_LEVEL OMNIC_NEON
#define OMNIC_SUFFIX neon
#define OMNIC_HAS_NEON 1
#include "../level.h"
