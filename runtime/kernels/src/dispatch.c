/* Which levels this CPU and its system can run, asked by hand: cpuid and xgetbv on x86-64 (what the CPU has and what
 * the system saves), a system call for AMX tiles, the auxiliary vector on AArch64.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "../include/omnic_kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#define OMNIC_X86 1
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__)
#define OMNIC_ARM 1
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif
#endif

extern const omnic_ops omnic_ops_generic;
#if defined(OMNIC_X86)
extern const omnic_ops omnic_ops_avx2, omnic_ops_avxvnni, omnic_ops_avx512, omnic_ops_amx;

static uint64_t saved_states(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low | (uint64_t)high << 32;
}

#if !defined(OMNIC_EMULATED)
/* Linux gives the 8 KiB of tiles to a process that asks (arch_prctl ARCH_REQ_XCOMP_PERM, XTILEDATA). */
static int may_use_tiles(void) {
#if defined(__linux__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return 0;
#endif
}
#endif

static int supported(int level) {
  uint32_t a, b, c, d, a7, b7, c7, d7, a71 = 0, b71, c71, d71;
  if (level == OMNIC_GENERIC) return 1;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  uint32_t first = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29; /* FMA OSXSAVE AVX F16C */
  if ((c & first) != first || !__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7)) return 0;
  uint64_t saved = saved_states();
  int avx2 = (saved & 0x6) == 0x6 && (b7 >> 5 & 1);
#if defined(OMNIC_EMULATED)
  (void)a71, (void)b71, (void)c71, (void)d71;
  return avx2 && level <= OMNIC_AMX;
#else
  if (a7 >= 1) __get_cpuid_count(7, 1, &a71, &b71, &c71, &d71);
  uint32_t wide = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* AVX512 F DQ BW VL */
  int avx512 = avx2 && (saved & 0xe6) == 0xe6 && (b7 & wide) == wide && (c7 >> 11 & 1);
  switch (level) {
    case OMNIC_AVX2: return avx2;
    case OMNIC_AVXVNNI: return avx2 && (a71 >> 4 & 1);
    case OMNIC_AVX512: return avx512;
    case OMNIC_AMX: {
      uint32_t tiles = 1u << 22 | 1u << 24 | 1u << 25; /* AMX BF16 TILE INT8 */
      return avx512 && (d7 & tiles) == tiles && (saved & 0x60000) == 0x60000 && may_use_tiles();
    }
    default: return 0;
  }
#endif
}

static const omnic_ops *const tables[] = {&omnic_ops_amx, &omnic_ops_avx512, &omnic_ops_avxvnni, &omnic_ops_avx2,
                                          &omnic_ops_generic};
#elif defined(OMNIC_ARM)
extern const omnic_ops omnic_ops_neon, omnic_ops_dotprod, omnic_ops_i8mm;

static int supported(int level) {
  int dotprod = 0, i8mm = 0;
#if defined(__linux__)
  dotprod = getauxval(AT_HWCAP) >> 20 & 1; /* ASIMDDP */
  i8mm = getauxval(26) >> 13 & 1;          /* AT_HWCAP2, I8MM */
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof value;
  dotprod = sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, NULL, 0) == 0 && value;
  value = 0, size = sizeof value;
  i8mm = sysctlbyname("hw.optional.arm.FEAT_I8MM", &value, &size, NULL, 0) == 0 && value;
#elif defined(_WIN32)
  dotprod = IsProcessorFeaturePresent(43); /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */
#endif
  switch (level) {
    case OMNIC_GENERIC:
    case OMNIC_NEON: return 1;
    case OMNIC_DOTPROD: return dotprod;
    case OMNIC_I8MM: return dotprod && i8mm;
    default: return 0;
  }
}

static const omnic_ops *const tables[] = {&omnic_ops_i8mm, &omnic_ops_dotprod, &omnic_ops_neon, &omnic_ops_generic};
#else
static int supported(int level) { return level == OMNIC_GENERIC; }

static const omnic_ops *const tables[] = {&omnic_ops_generic};
#endif

#define TABLES ((int)(sizeof tables / sizeof *tables))

int omnic_best_level(void) {
  for (int i = 0; i < TABLES; i++)
    if (supported(tables[i]->level)) return tables[i]->level;
  return OMNIC_GENERIC;
}

const omnic_ops *omnic_kernels(int level) {
  for (int i = 0; i < TABLES; i++)
    if (tables[i]->level == level) return supported(level) ? tables[i] : NULL;
  return NULL;
}

const char *omnic_level_name(int level) {
  switch (level) {
    case OMNIC_GENERIC: return "generic";
    case OMNIC_AVX2: return "avx2";
    case OMNIC_AVXVNNI: return "avxvnni";
    case OMNIC_AVX512: return "avx512";
    case OMNIC_AMX: return "amx";
    case OMNIC_NEON: return "neon";
    case OMNIC_DOTPROD: return "dotprod";
    case OMNIC_I8MM: return "i8mm";
    default: return "unknown";
  }
}
