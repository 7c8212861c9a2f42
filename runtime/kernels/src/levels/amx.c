/* The level amx: AVX-512 and AMX tiles of int8 and bf16. */
#define OMNIC_LEVEL OMNIC_AMX
#define OMNIC_SUFFIX amx
#define OMNIC_HAS_AVX2 1
#define OMNIC_HAS_AVX512 1
#define OMNIC_HAS_AMX 1
#include "../level.h"
