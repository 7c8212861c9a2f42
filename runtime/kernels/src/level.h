/* The body of every level: each file of levels/ defines OMNIC_LEVEL, OMNIC_SUFFIX and the OMNIC_HAS_... of what its
 * instruction set brings, and includes this.  The sources below are compiled once for each level; whatever they define
 * is static and named with OMNIC_FN, so that no object of one level can be linked into another.
 */
#ifndef OMNIC_LEVEL
#error "include a file of levels/"
#endif

#include "../include/omnic_kernels.h"

#include <math.h>
#include <string.h>

#define OMNIC_JOIN2(a, b) a##_##b
#define OMNIC_JOIN(a, b) OMNIC_JOIN2(a, b)
/* The name of a function in this level, omnic_NAME_LEVEL. */
#define OMNIC_FN(name) OMNIC_JOIN(omnic_##name, OMNIC_SUFFIX)
#define OMNIC_STATIC static __attribute__((unused))
#if defined(OMNIC_HAS_AVX2) || defined(OMNIC_HAS_NEON)
#define OMNIC_INLINE static inline __attribute__((always_inline, unused))
#define OMNIC_UNROLL _Pragma("GCC unroll 16")
#else
/* Sixteen lanes of C written out everywhere would take a compiler minutes and gain nothing. */
#define OMNIC_INLINE static inline __attribute__((unused))
#define OMNIC_UNROLL
#endif

#if defined(OMNIC_EMULATED)
#include "emulated/x86.h"
#elif defined(OMNIC_HAS_AVX2)
#include <immintrin.h>
#elif defined(OMNIC_HAS_NEON)
#include <arm_neon.h>
#endif

#include "simd/lanes.h"

#if __has_include("rows/rows.h")
#include "rows/rows.h"
#endif
#if __has_include("attention/attention.h")
#include "attention/attention.h"
#endif
#if __has_include("products/products.h")
#include "products/products.h"
#endif

#ifndef OMNIC_TABLE_ROWS
#define OMNIC_TABLE_ROWS
#endif
#ifndef OMNIC_TABLE_ATTENTION
#define OMNIC_TABLE_ATTENTION
#endif
#ifndef OMNIC_TABLE_PRODUCTS
#define OMNIC_TABLE_PRODUCTS
#endif

extern const omnic_ops OMNIC_FN(ops);
const omnic_ops OMNIC_FN(ops) = {
    .abi = OMNIC_ABI,
    .level = OMNIC_LEVEL,
    OMNIC_TABLE_ROWS OMNIC_TABLE_ATTENTION OMNIC_TABLE_PRODUCTS};
