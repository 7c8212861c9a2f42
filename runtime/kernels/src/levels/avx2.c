/* The level avx2: AVX2, FMA, F16C. */
#define OMNIC_LEVEL OMNIC_AVX2
#define OMNIC_SUFFIX avx2
#define OMNIC_HAS_AVX2 1
#include "../level.h"
