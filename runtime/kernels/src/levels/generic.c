/* The level generic: plain C: the oracle of the other levels. */
#define OMNIC_LEVEL OMNIC_GENERIC
#define OMNIC_SUFFIX generic
#include "../level.h"
