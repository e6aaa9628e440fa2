/* Which architecture this is and what its CPU can do. */
#include "internal.h"


#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

uint32_t edgert_cpu_arch(void) {
#if defined(__x86_64__)
  return EDGERT_X86_64;
#elif defined(__aarch64__)
  return EDGERT_AARCH64;
#elif defined(__arm__) && EDGERT_WITH_SYSTEM
  return EDGERT_ARMV7;
#elif defined(__arm__)
  return EDGERT_CORTEX_M;
#else
#error "libedgert knows x86_64, aarch64, armv7 and Cortex-M"
#endif
}

const char *edgert_arch_name(uint32_t arch) {
  switch (arch) {
    case EDGERT_X86_64: return "x86_64";
    case EDGERT_AARCH64: return "aarch64";
    case EDGERT_ARMV7: return "armv7";
    case EDGERT_CORTEX_M: return "Cortex-M";
    default: return "an unknown architecture";
  }
}

#if EDGERT_WITH_SYSTEM

typedef struct feature_bit {
  uint32_t feature;
  uint32_t bit;
} feature_bit;

static uint32_t pick(uint64_t word, const feature_bit *bits, size_t count) {
  uint32_t features = 0;
  for (size_t i = 0; i < count; i++)
    if (word >> bits[i].bit & 1) features |= bits[i].feature;
  return features;
}

#define PICK(word, bits) pick(word, bits, sizeof bits / sizeof bits[0])

#endif

#if defined(__x86_64__)

/* Which register files the operating system saves (XCR0): bit 1 SSE, bit 2 AVX, bits 5 to 7 AVX-512. */
static uint32_t saved_state(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

uint32_t edgert_cpu_features(void) {
  static const feature_bit leaf1_ecx[] = {{EDGERT_X86_FMA, 12}};
  static const feature_bit leaf7_ebx[] = {{EDGERT_X86_AVX2, 5}};
  static const feature_bit leaf7_ebx_512[] = {{EDGERT_X86_AVX512F, 16},
                                              {EDGERT_X86_AVX512DQ, 17},
                                              {EDGERT_X86_AVX512BW, 30},
                                              {EDGERT_X86_AVX512VL, 31}};
  static const feature_bit leaf7_ecx_512[] = {{EDGERT_X86_AVX512VBMI, 1}, {EDGERT_X86_AVX512VNNI, 11}};
  const uint32_t osxsave = 1u << 27, avx_state = 0x06, avx512_state = 0xe6;
  uint32_t a, b, c, d, features = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & osxsave)) return 0;
  uint32_t saved = saved_state();
  if ((saved & avx_state) != avx_state) return 0;
  features |= PICK(c, leaf1_ecx);
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  features |= PICK(b, leaf7_ebx);
  if ((saved & avx512_state) == avx512_state) features |= PICK(b, leaf7_ebx_512) | PICK(c, leaf7_ecx_512);
  return features;
}

#elif defined(__aarch64__) && defined(__linux__)

/* Bits as Linux's Documentation/arch/arm64/elf_hwcaps.rst gives them. */
uint32_t edgert_cpu_features(void) {
  static const feature_bit hwcap[] = {{EDGERT_ARM_NEON, 1}, {EDGERT_ARM_FP16, 10}, {EDGERT_ARM_DOTPROD, 20}};
  static const feature_bit hwcap2[] = {{EDGERT_ARM_I8MM, 13}};
  return PICK(getauxval(AT_HWCAP), hwcap) | PICK(getauxval(AT_HWCAP2), hwcap2);
}

#elif defined(__arm__) && defined(__linux__)

/* Bits as Linux's arch/arm/include/uapi/asm/hwcap.h gives them. */
uint32_t edgert_cpu_features(void) {
  static const feature_bit hwcap[] = {{EDGERT_ARM_NEON, 12},
                                      {EDGERT_ARM_FP16, 23},
                                      {EDGERT_ARM_DOTPROD, 24},
                                      {EDGERT_ARM_I8MM, 27}};
  return PICK(getauxval(AT_HWCAP), hwcap);
}

#elif !EDGERT_WITH_SYSTEM

/* Nothing tells at run time; what the library was compiled for is there. */
uint32_t edgert_cpu_features(void) {
  uint32_t features = 0;
#if defined(__ARM_FEATURE_DSP)
  features |= EDGERT_ARM_DSP;
#endif
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2)
  features |= EDGERT_ARM_MVE;
#endif
  return features;
}

#else

uint32_t edgert_cpu_features(void) { return 0; }

#endif

void edgert_feature_names(uint32_t features, char *text, size_t bytes) {
  static const struct {
    uint32_t feature;
    const char *name;
  } known[] = {
      {EDGERT_X86_AVX2, "avx2"},           {EDGERT_X86_FMA, "fma"},
      {EDGERT_X86_AVX512F, "avx512f"},     {EDGERT_X86_AVX512BW, "avx512bw"},
      {EDGERT_X86_AVX512DQ, "avx512dq"},   {EDGERT_X86_AVX512VL, "avx512vl"},
      {EDGERT_X86_AVX512VNNI, "avx512vnni"}, {EDGERT_X86_AVX512VBMI, "avx512vbmi"},
      {EDGERT_ARM_NEON, "neon"},           {EDGERT_ARM_FP16, "fp16"},
      {EDGERT_ARM_DOTPROD, "dotprod"},     {EDGERT_ARM_I8MM, "i8mm"},
      {EDGERT_ARM_DSP, "dsp"},             {EDGERT_ARM_MVE, "mve.fp"},
  };
  size_t used = 0;
  text[0] = '\0';
  for (size_t i = 0; i < sizeof known / sizeof known[0] && used < bytes; i++) {
    if (!(features & known[i].feature)) continue;
    used += edgert_format(text + used, bytes - used, "%s%s", used ? ", " : "", known[i].name);
    features &= ~known[i].feature;
  }
  if (features && used < bytes)
    edgert_format(text + used, bytes - used, "%sunknown to this library (0x%x)", used ? ", " : "", (unsigned)features);
}
