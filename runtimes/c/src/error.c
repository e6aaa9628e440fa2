/* Status codes, their names, and the last sentence of each thread. */
#include "internal.h"

#if EDGERT_WITH_OPENCL
static _Thread_local char last_error[2048]; /* the log of a GPU's compiler is long */
#elif EDGERT_WITH_SYSTEM
static _Thread_local char last_error[512];
#else
static char last_error[256];
#endif

edgert_status edgert_fail(edgert_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  edgert_vformat(last_error, sizeof last_error, format, &arguments);
  va_end(arguments);
  return status;
}

const char *edgert_last_error(void) { return last_error; }

const char *edgert_version(void) { return EDGERT_VERSION; }

const char *edgert_status_name(edgert_status status) {
  static const char *const names[] = {
      [EDGERT_OK] = "EDGERT_OK",
      [EDGERT_ERROR_ARGUMENT] = "EDGERT_ERROR_ARGUMENT",
      [EDGERT_ERROR_FILE] = "EDGERT_ERROR_FILE",
      [EDGERT_ERROR_FORMAT] = "EDGERT_ERROR_FORMAT",
      [EDGERT_ERROR_DIGEST] = "EDGERT_ERROR_DIGEST",
      [EDGERT_ERROR_ARCH] = "EDGERT_ERROR_ARCH",
      [EDGERT_ERROR_CPU] = "EDGERT_ERROR_CPU",
      [EDGERT_ERROR_ABI] = "EDGERT_ERROR_ABI",
      [EDGERT_ERROR_LOAD] = "EDGERT_ERROR_LOAD",
      [EDGERT_ERROR_MODEL] = "EDGERT_ERROR_MODEL",
      [EDGERT_ERROR_ARENA] = "EDGERT_ERROR_ARENA",
      [EDGERT_ERROR_MEMORY] = "EDGERT_ERROR_MEMORY",
      [EDGERT_ERROR_THREADS] = "EDGERT_ERROR_THREADS",
      [EDGERT_ERROR_SIZE] = "EDGERT_ERROR_SIZE",
      [EDGERT_ERROR_ALIGNMENT] = "EDGERT_ERROR_ALIGNMENT",
      [EDGERT_ERROR_UNBOUND] = "EDGERT_ERROR_UNBOUND",
      [EDGERT_ERROR_BUSY] = "EDGERT_ERROR_BUSY",
      [EDGERT_ERROR_GPU] = "EDGERT_ERROR_GPU",
      [EDGERT_ERROR_GPU_BUILD] = "EDGERT_ERROR_GPU_BUILD",
      [EDGERT_ERROR_TEST] = "EDGERT_ERROR_TEST",
      [EDGERT_ERROR_SIGNATURE] = "EDGERT_ERROR_SIGNATURE",
  };
  size_t index = (size_t)status;
  return index < sizeof names / sizeof names[0] ? names[index] : "unknown status";
}
