/* The level i8mm: AArch64 with sdot and smmla. */
#define OMNIC_LEVEL OMNIC_I8MM
#define OMNIC_SUFFIX i8mm
#define OMNIC_HAS_NEON 1
#define OMNIC_HAS_DOTPROD 1
#define OMNIC_HAS_I8MM 1
#include "../level.h"
