/* Compiles a model's kernels by the OpenCL driver, or takes what it made of them before. */
#include "opencl_api.h"

#if EDGERT_WITH_OPENCL

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

edgert_status edgert_opencl_refused(const char *call, cl_int error) {
  bool memory = error == CL_MEM_OBJECT_ALLOCATION_FAILURE || error == CL_OUT_OF_RESOURCES ||
                error == CL_OUT_OF_HOST_MEMORY || error == CL_INVALID_BUFFER_SIZE;
  if (memory)
    return edgert_fail(EDGERT_ERROR_MEMORY, "the GPU is out of memory or resources: %s answers -%u; free some, or run "
                       "on the CPU (edgec run --fallback cpu)", call, (unsigned)-error);
  return edgert_fail(EDGERT_ERROR_GPU, "the OpenCL driver refuses %s with error -%u; run on the CPU (edgec run "
                     "--fallback cpu) or update the driver", call, (unsigned)-error);
}

/* Divisions and square roots are rounded as the processor rounds them where the device can. */
static const char exact_options[] = "-cl-std=CL1.2 -cl-fp32-correctly-rounded-divide-sqrt";
static const char newest_options[] = "-cl-std=CL3.0 -cl-fp32-correctly-rounded-divide-sqrt";
static const char plain_options[] = "-cl-std=CL1.2";

/* `options`, and whether kernels take images. */
static void all_options(const edgert_opencl *gpu, const char *options, char text[128]) {
  snprintf(text, 128, "%s%s", options, gpu->uses_images ? " -DEDGERT_IMAGES" : "");
}

static void cache_key(const edgert_opencl *gpu, uint8_t key[32]) {
  char options[128];
  static const cl_uint facts[] = {CL_DEVICE_NAME, CL_DEVICE_VERSION, CL_DRIVER_VERSION};
  edgert_sha256 hash;
  all_options(gpu, exact_options, options);
  edgert_sha256_start(&hash);
  edgert_sha256_add(&hash, gpu->part->source, (size_t)gpu->part->source_bytes);
  edgert_sha256_add(&hash, options, strlen(options) + 1);
  for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++) {
    char text[256];
    edgert_opencl_text(gpu->cl, gpu->device, facts[i], text, sizeof text);
    edgert_sha256_add(&hash, text, strlen(text) + 1);
  }
  edgert_sha256_finish(&hash, key);
}

/* The program from the cache; false where it is not there or the driver does not take it any more. */
static bool from_cache(edgert_opencl *gpu, const uint8_t key[32]) {
  char options[128];
  uint8_t *bytes;
  size_t size;
  cl_int error, loaded;
  edgert_cache_read(key, &bytes, &size);
  if (!bytes) return false;
  const uint8_t *binary = bytes;
  cl_program program =
      gpu->cl->clCreateProgramWithBinary(gpu->context, 1, &gpu->device, &size, &binary, &loaded, &error);
  free(bytes);
  if (!program) return false;
  all_options(gpu, exact_options, options);
  if (error == CL_SUCCESS && loaded == CL_SUCCESS &&
      gpu->cl->clBuildProgram(program, 1, &gpu->device, options, NULL, NULL) == CL_SUCCESS) {
    gpu->program = program;
    return true;
  }
  gpu->cl->clReleaseProgram(program);
  return false;
}

static void keep(const edgert_opencl *gpu, const uint8_t key[32]) {
  size_t size = 0;
  if (gpu->cl->clGetProgramInfo(gpu->program, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, NULL) != CL_SUCCESS) return;
  uint8_t *bytes = size > 0 ? malloc(size) : NULL;
  if (!bytes) return;
  if (gpu->cl->clGetProgramInfo(gpu->program, CL_PROGRAM_BINARIES, sizeof bytes, &bytes, NULL) == CL_SUCCESS)
    edgert_cache_write(key, bytes, size);
  free(bytes);
}

static edgert_status build_failed(const edgert_opencl *gpu, cl_int error) {
  char log[1536] = "";
  size_t size = 0;
  char *whole = NULL;
  if (gpu->cl->clGetProgramBuildInfo(gpu->program, gpu->device, CL_PROGRAM_BUILD_LOG, 0, NULL, &size) == CL_SUCCESS)
    whole = malloc(size + 1);
  if (whole && gpu->cl->clGetProgramBuildInfo(gpu->program, gpu->device, CL_PROGRAM_BUILD_LOG, size, whole, NULL) ==
                   CL_SUCCESS) {
    size_t length = size < sizeof log - 1 ? size : sizeof log - 1;
    memcpy(log, whole, length);
    log[length] = 0;
  }
  free(whole);
  return edgert_fail(EDGERT_ERROR_GPU_BUILD,
                     "the driver of '%s' cannot compile the model's kernels (error -%u); run on the CPU (edgec run "
                     "--fallback cpu); the driver says: %s",
                     gpu->name, (unsigned)-error, log[0] ? log : "nothing");
}

static cl_int build_source(edgert_opencl *gpu, const char *options) {
  cl_int error;
  size_t size = (size_t)gpu->part->source_bytes;
  const char *source = gpu->part->source;
  char all[128];
  if (gpu->program) gpu->cl->clReleaseProgram(gpu->program);
  gpu->program = gpu->cl->clCreateProgramWithSource(gpu->context, 1, &source, &size, &error);
  all_options(gpu, options, all);
  return gpu->program ? gpu->cl->clBuildProgram(gpu->program, 1, &gpu->device, all, NULL, NULL) : error;
}

/* Sources that multiply four bytes at once say so by this name; only OpenCL C 3.0 has it for every vendor. */
static bool wants_newest(const edgert_opencl *gpu) {
  char version[64];
  edgert_opencl_text(gpu->cl, gpu->device, CL_DEVICE_OPENCL_C_VERSION, version, sizeof version);
  return strncmp(version, "OpenCL C 3", 10) == 0 && strstr(gpu->part->source, "DOT4(");
}

edgert_status edgert_opencl_build(edgert_opencl *gpu) {
  uint8_t key[32];
  if (gpu->part->source_bytes == 0) return EDGERT_OK; /* every step runs on the host */
  cache_key(gpu, key);
  if (from_cache(gpu, key)) return EDGERT_OK;
  cl_int error = wants_newest(gpu) ? build_source(gpu, newest_options) : CL_OUT_OF_RESOURCES;
  if (error != CL_SUCCESS) error = build_source(gpu, exact_options);
  if (error != CL_SUCCESS) error = build_source(gpu, plain_options);
  if (!gpu->program) return edgert_opencl_refused("clCreateProgramWithSource", error);
  if (error != CL_SUCCESS) return build_failed(gpu, error);
  keep(gpu, key);
  return EDGERT_OK;
}

#endif
