/* Finds the system's OpenCL driver and a device of it. */
#include "opencl_api.h"

#if EDGERT_WITH_OPENCL

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_PLATFORMS = 16, MOST_DEVICES = 16 };

/* Debian's and other loaders; then where Android's vendors put the driver, for apps that may open it. */
static const char *const libraries[] = {
    "libOpenCL.so.1",
    "libOpenCL.so",
    "libOpenCL-pixel.so",
#if defined(__LP64__)
    "/vendor/lib64/libOpenCL.so",
    "/system/vendor/lib64/libOpenCL.so",
    "/vendor/lib64/egl/libGLES_mali.so",
    "/system/vendor/lib64/egl/libGLES_mali.so",
    "/vendor/lib64/libPVROCL.so",
#else
    "/vendor/lib/libOpenCL.so",
    "/system/vendor/lib/libOpenCL.so",
    "/vendor/lib/egl/libGLES_mali.so",
    "/system/vendor/lib/egl/libGLES_mali.so",
    "/vendor/lib/libPVROCL.so",
#endif
};

static void *open_library(void) {
  const char *own = getenv("EDGERT_OPENCL_LIBRARY");
  if (own && *own) return dlopen(own, RTLD_NOW | RTLD_LOCAL);
  for (size_t i = 0; i < sizeof libraries / sizeof libraries[0]; i++) {
    void *library = dlopen(libraries[i], RTLD_NOW | RTLD_LOCAL);
    if (library) return library;
  }
  return NULL;
}

/* dlsym gives an object pointer; copying its bytes is how ISO C makes it a function's. */
static bool find(void *library, const char *name, void *function) {
  void *symbol = dlsym(library, name);
  memcpy(function, &symbol, sizeof symbol);
  return symbol != NULL;
}

static const char *missing_function(void *library, opencl_functions *cl) {
#define X(result, name, parameters) \
  if (!find(library, #name, &cl->name)) return #name;
  EDGERT_OPENCL_FUNCTIONS(X)
#undef X
  return NULL;
}

static edgert_status load(opencl_functions *cl) {
  void *library = open_library();
  if (!library)
    return edgert_fail(EDGERT_ERROR_GPU,
                       "the model is for a GPU and this system has no OpenCL driver (libOpenCL.so): install it, name "
                       "it in EDGERT_OPENCL_LIBRARY, or run on the CPU (edgec run --fallback cpu)");
  const char *missing = missing_function(library, cl);
  if (!missing) return EDGERT_OK;
  dlclose(library);
  return edgert_fail(EDGERT_ERROR_GPU, "the OpenCL driver has no function %s; it is too old for OpenCL 1.2", missing);
}

edgert_status edgert_opencl_functions(const opencl_functions **functions) {
  static atomic_flag loading = ATOMIC_FLAG_INIT;
  static opencl_functions loaded;
  static bool is_loaded;
  edgert_status status = EDGERT_OK;
  while (atomic_flag_test_and_set(&loading)) continue; /* another thread is loading, a few milliseconds at most */
  if (!is_loaded) status = load(&loaded);
  is_loaded = status == EDGERT_OK;
  atomic_flag_clear(&loading);
  *functions = &loaded;
  return status;
}

void edgert_opencl_text(const opencl_functions *cl, cl_device_id device, cl_uint what, char *text, size_t bytes) {
  char whole[512] = "";
  if (cl->clGetDeviceInfo(device, what, sizeof whole, whole, NULL) != CL_SUCCESS) whole[0] = 0;
  whole[sizeof whole - 1] = 0;
  size_t length = strlen(whole) < bytes - 1 ? strlen(whole) : bytes - 1;
  memcpy(text, whole, length);
  text[length] = 0;
}

/* The first device of `type` whose name has `wanted` in it. */
static bool pick(const opencl_functions *cl, cl_bitfield type, const char *wanted, cl_device_id *device) {
  cl_platform_id platforms[MOST_PLATFORMS];
  cl_uint count = 0;
  if (cl->clGetPlatformIDs(MOST_PLATFORMS, platforms, &count) != CL_SUCCESS) return false;
  for (cl_uint i = 0; i < count && i < MOST_PLATFORMS; i++) {
    cl_device_id devices[MOST_DEVICES];
    cl_uint found = 0;
    if (cl->clGetDeviceIDs(platforms[i], type, MOST_DEVICES, devices, &found) != CL_SUCCESS) continue;
    for (cl_uint k = 0; k < found && k < MOST_DEVICES; k++) {
      char name[256];
      edgert_opencl_text(cl, devices[k], CL_DEVICE_NAME, name, sizeof name);
      if (!strstr(name, wanted)) continue;
      *device = devices[k];
      return true;
    }
  }
  return false;
}

edgert_status edgert_opencl_pick(const opencl_functions *cl, cl_device_id *device) {
  const char *wanted = getenv("EDGERT_OPENCL_DEVICE");
  if (!wanted) wanted = "";
  if (pick(cl, CL_DEVICE_TYPE_GPU, wanted, device) || pick(cl, CL_DEVICE_TYPE_ALL, wanted, device)) return EDGERT_OK;
  if (*wanted)
    return edgert_fail(EDGERT_ERROR_GPU, "no OpenCL device has '%s' in its name, which EDGERT_OPENCL_DEVICE asks for",
                       wanted);
  return edgert_fail(EDGERT_ERROR_GPU,
                     "the model is for a GPU and the OpenCL driver offers no device: install the GPU's driver, or run "
                     "on the CPU (edgec run --fallback cpu)");
}

#endif
