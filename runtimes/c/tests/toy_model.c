/* A model written by hand, as the compiler would write it. Macros make the variants that must be refused.
 *
 *   y[7,17] = rotate(x * weights, by one element) + 1     float32, in two parallel steps
 *   sum[1]  = sum of q[5]                                 int8 to int32, in one sequential step
 */
#include <edgert/model.h>

#define ROWS 7
#define COLUMNS 17
#define ELEMENTS (ROWS * COLUMNS)

#ifndef TOY_ABI
#define TOY_ABI EDGERT_ABI_VERSION
#endif
#ifndef TOY_FEATURES
#define TOY_FEATURES 0
#endif
#ifndef TOY_ARCH
#if defined(__x86_64__)
#define TOY_ARCH EDGERT_X86_64
#elif defined(__aarch64__)
#define TOY_ARCH EDGERT_AARCH64
#else
#define TOY_ARCH EDGERT_ARMV7
#endif
#endif
#ifndef TOY_SYMBOL
#define TOY_SYMBOL edgert_model_v1
#endif
#ifndef TOY_Y_BYTES
#define TOY_Y_BYTES (ELEMENTS * 4)
#endif
/* The digests of weights and manifest, from Python's hashlib. */
#ifdef TOY_OTHER_WEIGHTS
#define TOY_WEIGHT 7
#define TOY_SHA256                                                                                       \
  {0x3a, 0x26, 0x6c, 0x09, 0x1d, 0x56, 0x6e, 0x50, 0x19, 0x12, 0xb9, 0x68, 0x50, 0xe6, 0x6c, 0x3e,       \
   0xc4, 0x9f, 0xc4, 0x73, 0x06, 0xca, 0x6b, 0x3c, 0x4e, 0x8c, 0x49, 0x4e, 0x95, 0x2a, 0x8a, 0xb3}
#else
#define TOY_WEIGHT 3
#define TOY_SHA256                                                                                       \
  {0x7e, 0x9c, 0x73, 0xd3, 0x58, 0xb0, 0x7a, 0xf9, 0x43, 0x7c, 0x22, 0x0d, 0x42, 0xdc, 0x50, 0x3c,       \
   0xef, 0x0c, 0x7d, 0xec, 0xf4, 0xb0, 0xd4, 0x0f, 0xc6, 0x91, 0xac, 0x84, 0x36, 0x2c, 0x8b, 0xc2}
#endif

static const union {
  int32_t values[COLUMNS + 1];
  uint8_t bytes[(COLUMNS + 1) * 4];
} weights = {{TOY_WEIGHT, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 0}};

static const char manifest[] = "{\"name\": \"toy\", \"arena_bytes\": 476}";

#ifdef TOY_CONSTRUCTOR
/* Code that runs as soon as the file is loaded: the tests see by it what was loaded. */
int setenv(const char *name, const char *value, int overwrite);
__attribute__((constructor)) static void leave_mark(void) { setenv("TOY_MODEL_LOADED", "1", 1); }
#endif

static void multiply(uint8_t *arena, const uint8_t *data, void *const *io, int32_t thread, int32_t threads) {
  const float *x = io[0];
  const int32_t *scale = (const int32_t *)(const void *)data;
  float *product = (float *)(void *)arena;
  for (int32_t i = thread; i < ELEMENTS; i += threads) product[i] = x[i] * (float)scale[i % COLUMNS];
}

static void rotate(uint8_t *arena, const uint8_t *data, void *const *io, int32_t thread, int32_t threads) {
  const float *product = (const float *)(const void *)arena;
  float *y = io[2];
  (void)data;
  for (int32_t i = thread; i < ELEMENTS; i += threads) y[i] = product[(i + 1) % ELEMENTS] + 1.0f;
}

static void sum(uint8_t *arena, const uint8_t *data, void *const *io, int32_t thread, int32_t threads) {
  const int8_t *q = io[1];
  int32_t total = thread * 1000 + (threads - 1) * 100; /* neither may be seen: the step is sequential */
  (void)arena;
  (void)data;
  for (int i = 0; i < 5; i++) total += q[i];
  *(int32_t *)io[3] = total;
}

static const edgert_tensor inputs[] = {
    {"x", ELEMENTS * 4, {ROWS, COLUMNS}, 2, EDGERT_FLOAT32, 0.0f, 0},
    {"q", 5, {5}, 1, EDGERT_INT8, 0.5f, -3},
};
static const edgert_tensor outputs[] = {
    {"y", TOY_Y_BYTES, {ROWS, COLUMNS}, 2, EDGERT_FLOAT32, 0.0f, 0},
    {"sum", 4, {1}, 1, EDGERT_INT32, 0.0f, 0},
};
static const char strings[] = "Mul \"a\"\0toy_multiply\0Concat\0toy_rotate\0ReduceSum\0toy_sum";
static const edgert_step steps[] = {
    {multiply, ELEMENTS, 0, 8, 1, 0},
    {rotate, 0, 21, 28, 1, 0},
    {sum, 5, 39, 49, 0, 0},
};

extern const edgert_model TOY_SYMBOL;
const edgert_model TOY_SYMBOL __attribute__((visibility("default"))) = {
    .abi_version = TOY_ABI,
    .struct_bytes = sizeof(edgert_model),
    .name = "toy",
    .target = "host",
    .triple = "any",
    .arch = TOY_ARCH,
    .cpu_features = TOY_FEATURES,
    .input_count = 2,
    .output_count = 2,
    .inputs = inputs,
    .outputs = outputs,
    .arena_bytes = ELEMENTS * 4,
    .arena_alignment = 128,
    .step_count = 3,
    .steps = steps,
    .strings = strings,
    .strings_bytes = sizeof strings,
    .weights = weights.bytes,
    .weights_bytes = sizeof weights.bytes,
    .manifest = manifest,
    .manifest_bytes = sizeof manifest - 1,
    .sha256 = TOY_SHA256,
};
