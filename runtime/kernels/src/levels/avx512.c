/* The level avx512: AVX-512 F, BW, VL, DQ, and VNNI. */
#define OMNIC_LEVEL OMNIC_AVX512
#define OMNIC_SUFFIX avx512
#define OMNIC_HAS_AVX2 1
#define OMNIC_HAS_AVX512 1
#include "../level.h"
