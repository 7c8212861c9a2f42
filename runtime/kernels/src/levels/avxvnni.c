/* The level avxvnni: AVX2 and the 256-bit VNNI of VEX encoding. */
#define OMNIC_LEVEL OMNIC_AVXVNNI
#define OMNIC_SUFFIX avxvnni
#define OMNIC_HAS_AVX2 1
#define OMNIC_HAS_AVXVNNI 1
#include "../level.h"
