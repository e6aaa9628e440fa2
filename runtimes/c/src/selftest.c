/* The tests inside a model: what each step stores, compared with what the compiler's reference stored. */
#include "internal.h"

#include <string.h>

/* ---- elements ---- */

static uint32_t crc32_of(uint32_t crc, const uint8_t *data, size_t bytes) {
  static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
                                     0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                     0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
  for (size_t i = 0; i < bytes; i++) {
    crc ^= data[i];
    crc = crc >> 4 ^ table[crc & 15];
    crc = crc >> 4 ^ table[crc & 15];
  }
  return crc;
}

static float half(uint16_t bits) {
  uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  union {
    uint32_t bits;
    float value;
  } made;
  if (exponent == 0) { /* zero and subnormals: fraction times 2^-24 */
    float value = (float)fraction * 5.9604644775390625e-8f;
    return sign ? -value : value;
  }
  made.bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
  return made.value;
}

#define READ(type)                                                                                                    \
  do {                                                                                                                \
    type value;                                                                                                       \
    memcpy(&value, data, sizeof value);                                                                               \
    return (double)value;                                                                                             \
  } while (0)

static double element(const uint8_t *data, uint32_t dtype) {
  uint16_t bits;
  switch (dtype) {
    case EDGERT_FLOAT32: READ(float);
    case EDGERT_FLOAT64: READ(double);
    case EDGERT_INT8: READ(int8_t);
    case EDGERT_INT16: READ(int16_t);
    case EDGERT_UINT16: READ(uint16_t);
    case EDGERT_INT32: READ(int32_t);
    case EDGERT_UINT32: READ(uint32_t);
    case EDGERT_INT64: READ(int64_t);
    case EDGERT_UINT64: READ(uint64_t);
    case EDGERT_FLOAT16: memcpy(&bits, data, sizeof bits); return (double)half(bits);
    default: READ(uint8_t);
  }
}

static bool is_nan(double value) { return value != value; }

static double distance(double a, double b) { return a > b ? a - b : b - a; }

/* ---- regions ---- */

typedef struct sums {
  uint32_t crc;
  double sum, squares, count;
} sums;

static void take_in(sums *total, const edgert_region *region, const uint8_t *data, uint32_t bytes) {
  if (region->exact) {
    total->crc = crc32_of(total->crc, data, bytes);
    return;
  }
  double value = element(data, region->dtype);
  total->sum += value;
  total->squares += value * value;
  total->count += 1;
}

static void walk(sums *total, const edgert_region *region, const uint8_t *data, uint32_t bytes, unsigned axis) {
  int32_t stride = region->strides[axis];
  uint32_t extent = region->extents[axis];
  if (axis + 1 == EDGERT_REGION_AXES && stride == 1 && region->exact) {
    total->crc = crc32_of(total->crc, data, (size_t)extent * bytes);
    return;
  }
  for (uint32_t i = 0; i < extent; i++, data += (ptrdiff_t)stride * (ptrdiff_t)bytes) {
    if (axis + 1 == EDGERT_REGION_AXES)
      take_in(total, region, data, bytes);
    else
      walk(total, region, data, bytes, axis + 1);
  }
}

/* Whether mean and mean square lie within `tolerance` of the expected ones; no square root, which is libm's. */
static bool is_near(const sums *total, const edgert_expected *expected, double tolerance) {
  double rms = (double)expected->rms, mean = total->count ? total->sum / total->count : 0;
  double squares = total->count ? total->squares / total->count : 0;
  double low = rms * (1 - tolerance), high = rms * (1 + tolerance);
  if (is_nan(rms)) return true;
  return distance(mean, (double)expected->mean) <= tolerance * rms && squares >= low * low && squares <= high * high;
}

static bool step_agrees(const edgert_session *session, const edgert_region *region, const edgert_expected *expected) {
  sums total = {.crc = 0xffffffffu};
  if (region->dtype == 0) return true;
  const uint8_t *base = region->place ? session->io[region->place - 1] : session->arena;
  walk(&total, region, base + region->offset, edgert_dtype_bytes(region->dtype), 0);
  if (region->exact) return (total.crc ^ 0xffffffffu) == expected->crc;
  return is_near(&total, expected, (double)edgert_tests_of(session->model)->tolerance);
}

/* ---- outputs ---- */

static bool is_float(uint32_t dtype) {
  return dtype == EDGERT_FLOAT32 || dtype == EDGERT_FLOAT64 || dtype == EDGERT_FLOAT16;
}

/* Every element within `tolerance` of the expected ones' range; NaN only where one is expected. */
static bool output_is_near(const edgert_tensor *tensor, const uint8_t *found, const uint8_t *wanted, double tolerance) {
  uint32_t bytes = edgert_dtype_bytes(tensor->dtype);
  double least = 0, most = 0;
  for (uint64_t i = 0; i < tensor->bytes; i += bytes) {
    double value = element(wanted + i, tensor->dtype);
    if (value < least) least = value;
    if (value > most) most = value;
  }
  for (uint64_t i = 0; i < tensor->bytes; i += bytes) {
    double a = element(found + i, tensor->dtype), b = element(wanted + i, tensor->dtype);
    if (is_nan(a) != is_nan(b) || (a != b && distance(a, b) > tolerance * (most - least))) return false;
  }
  return true;
}

static const uint8_t *after(const uint8_t *data, const edgert_tensor *tensor) {
  return data + ((tensor->bytes + EDGERT_ALIGNMENT - 1) & ~(uint64_t)(EDGERT_ALIGNMENT - 1));
}

static uint64_t bytes_of(const edgert_tensor *tensors, uint32_t count) {
  const uint8_t *end = NULL;
  uint64_t total = 0;
  for (uint32_t i = 0; i < count; i++) total += (uint64_t)(after(end, &tensors[i]) - end);
  return total;
}

/* ---- tests ---- */

static edgert_status differs(const edgert_session *session, uint32_t test, const char *what, const char *name,
                             const char *kernel) {
  return edgert_fail(EDGERT_ERROR_TEST,
                     "test %u of %u of model '%s' differs first at %s '%s'%s%s: this machine computes something else "
                     "than the compiler's reference",
                     (unsigned)test + 1, (unsigned)edgert_tests_of(session->model)->count, session->model->name, what, name,
                     *kernel ? ", kernel " : "", kernel);
}

static edgert_status check_outputs(const edgert_session *session, uint32_t test) {
  const edgert_model *model = session->model;
  const edgert_tests *tests = edgert_tests_of(model);
  const uint8_t *wanted = tests->outputs + test * bytes_of(model->outputs, model->output_count);
  for (uint32_t i = 0; i < model->output_count; wanted = after(wanted, &model->outputs[i]), i++) {
    const edgert_tensor *tensor = &model->outputs[i];
    const uint8_t *found = session->io[model->input_count + i];
    bool exact = i < 64 && (tests->exact_outputs >> i & 1);
    bool same = exact              ? memcmp(found, wanted, (size_t)tensor->bytes) == 0
                : is_float(tensor->dtype) ? output_is_near(tensor, found, wanted, (double)tests->tolerance)
                                          : true;
    if (!same) return differs(session, test, "output", tensor->name, "");
  }
  return EDGERT_OK;
}

static void give_inputs(edgert_session *session, uint32_t test) {
  const edgert_model *model = session->model;
  const uint8_t *data = edgert_tests_of(model)->inputs + test * bytes_of(model->inputs, model->input_count);
  for (uint32_t i = 0; i < model->input_count; data = after(data, &model->inputs[i]), i++)
    memcpy(session->own[i], data, (size_t)model->inputs[i].bytes);
}

static edgert_status run_test(edgert_session *session, uint32_t test) {
  const edgert_model *model = session->model;
  const edgert_tests *tests = edgert_tests_of(model);
  give_inputs(session, test);
  memset(session->arena, 0, (size_t)edgert_model_state_bytes(model)); /* every test begins a sequence */
  if (session->gpu) { /* its steps are not the processor's */
    edgert_status status = edgert_run_steps(session);
    return status == EDGERT_OK ? check_outputs(session, test) : status;
  }
  for (uint32_t i = 0; i < model->step_count; i++) {
    const edgert_step *step = &model->steps[i];
    edgert_run_step(session, step);
    if (!step_agrees(session, &tests->regions[i], &tests->expected[test * model->step_count + i]))
      return differs(session, test, "step", model->strings + step->name, model->strings + step->kernel);
  }
  return check_outputs(session, test);
}

static edgert_status run_tests(edgert_session *session) {
  const edgert_model *model = session->model;
  edgert_status status = EDGERT_OK;
  for (uint32_t i = 0; i < model->input_count + model->output_count; i++) {
    if (!session->own[i])
      return edgert_fail(EDGERT_ERROR_UNBOUND, "a selftest needs a session without EDGERT_NO_IO_BUFFERS");
    session->io[i] = session->own[i];
  }
  for (uint32_t test = 0; status == EDGERT_OK && test < edgert_tests_of(model)->count; test++)
    status = run_test(session, test);
  return status;
}

edgert_status edgert_selftest(edgert_session *session, uint32_t *count) {
  if (!session) return edgert_fail(EDGERT_ERROR_ARGUMENT, "edgert_selftest: session is NULL");
  const edgert_tests *tests = edgert_tests_of(session->model);
  if (!tests)
    return edgert_fail(EDGERT_ERROR_ARGUMENT,
                       "model '%s' holds no tests; compile it again with: edgec compile --bundle-tests SAMPLES.npz",
                       session->model->name);
  if (session->width && session->width != session->model->widths)
    return edgert_fail(EDGERT_ERROR_ARGUMENT, "the tests of model '%s' are for %u bits; edgert_set_width back to them first",
                       session->model->name, (unsigned)session->model->widths->bits);
  if (count) *count = tests->count;
  return edgert_exclusively(session, run_tests);
}
