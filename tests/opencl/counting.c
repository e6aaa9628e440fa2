/* An OpenCL library in front of the real one: it counts the objects that are alive, and can refuse a call.
 *
 * COUNTING_FAIL=clCreateBuffer:2 makes the second call of that function fail as a device out of memory does, and
 * COUNTING_ALIGN=65536 makes sub-buffers begin at multiples of so many bits. With COUNTING_IMPORT=1 the device has
 * cl_arm_import_memory; with COUNTING_DISCRETE=1 it has memory of its own. */
#define _GNU_SOURCE
#include "opencl_api.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

static long alive;
static unsigned long copies, imports;

/* Objects that were made and not released. */
EXPORT long counting_alive(void) { return alive; }

/* Copies that were enqueued. */
EXPORT unsigned long counting_copies(void) { return copies; }

/* Memory of the host's that was imported. */
EXPORT unsigned long counting_imports(void) { return imports; }

/* At the end of the process: how many copies were enqueued. */
__attribute__((destructor)) static void report(void) {
  if (getenv("COUNTING_COPIES")) fprintf(stderr, "copies %lu\n", copies);
}

static void *real(const char *name) {
  static void *library;
  if (!library) library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
  void *symbol = library ? dlsym(library, name) : NULL;
  if (!symbol) abort();
  return symbol;
}

static int refuses(const char *name) {
  static int seen;
  const char *wanted = getenv("COUNTING_FAIL");
  size_t length = strlen(name);
  if (!wanted || strncmp(wanted, name, length) != 0 || wanted[length] != ':') return 0;
  return ++seen == atoi(wanted + length + 1);
}

#define REAL(name) ((opencl_functions *)0)->name
#define CALL(name) ((__typeof__(REAL(name)))real(#name))

#define MAKES(type, name, parameters, arguments, error)          \
  EXPORT type name parameters {                                  \
    if (refuses(#name)) {                                        \
      *(error) = CL_MEM_OBJECT_ALLOCATION_FAILURE;               \
      return NULL;                                               \
    }                                                            \
    type made = CALL(name) arguments;                            \
    if (made) alive++;                                           \
    return made;                                                 \
  }
#define RELEASES(name, type)                   \
  EXPORT cl_int name(type object) {            \
    alive--;                                   \
    return CALL(name)(object);                 \
  }
#define PASSES(name, parameters, arguments)    \
  EXPORT cl_int name parameters {              \
    if (refuses(#name)) return CL_OUT_OF_RESOURCES; \
    return CALL(name) arguments;               \
  }
#define ENQUEUES(name, parameters, arguments)  \
  EXPORT cl_int name parameters {              \
    if (refuses(#name)) return CL_OUT_OF_RESOURCES; \
    if (strstr(#name, "Buffer")) copies++;     \
    cl_int error = CALL(name) arguments;       \
    if (error == CL_SUCCESS && event) alive++; \
    return error;                              \
  }

MAKES(cl_context, clCreateContext,
      (const intptr_t *p, cl_uint n, const cl_device_id *d, void (*f)(const char *, const void *, size_t, void *), void *u,
       cl_int *e),
      (p, n, d, f, u, e), e)
MAKES(cl_command_queue, clCreateCommandQueue, (cl_context c, cl_device_id d, cl_bitfield p, cl_int *e), (c, d, p, e), e)
MAKES(cl_mem, clCreateBuffer, (cl_context c, cl_bitfield f, size_t n, void *h, cl_int *e), (c, f, n, h, e), e)
MAKES(cl_mem, clCreateSubBuffer, (cl_mem b, cl_bitfield f, cl_uint t, const void *r, cl_int *e), (b, f, t, r, e), e)
MAKES(cl_mem, clCreateImage,
      (cl_context c, cl_bitfield f, const cl_image_format *a, const cl_image_desc *d, void *h, cl_int *e),
      (c, f, a, d, h, e), e)
MAKES(cl_program, clCreateProgramWithSource,
      (cl_context c, cl_uint n, const char **s, const size_t *l, cl_int *e), (c, n, s, l, e), e)
MAKES(cl_program, clCreateProgramWithBinary,
      (cl_context c, cl_uint n, const cl_device_id *d, const size_t *l, const uint8_t **b, cl_int *s, cl_int *e),
      (c, n, d, l, b, s, e), e)
MAKES(cl_kernel, clCreateKernel, (cl_program p, const char *n, cl_int *e), (p, n, e), e)

RELEASES(clReleaseContext, cl_context)
RELEASES(clReleaseCommandQueue, cl_command_queue)
RELEASES(clReleaseMemObject, cl_mem)
RELEASES(clReleaseProgram, cl_program)
RELEASES(clReleaseKernel, cl_kernel)
RELEASES(clReleaseEvent, cl_event)

ENQUEUES(clEnqueueNDRangeKernel,
         (cl_command_queue q, cl_kernel k, cl_uint d, const size_t *o, const size_t *g, const size_t *l, cl_uint n,
          const cl_event *w, cl_event *event),
         (q, k, d, o, g, l, n, w, event))
ENQUEUES(clEnqueueWriteBuffer,
         (cl_command_queue q, cl_mem b, cl_bool k, size_t o, size_t s, const void *p, cl_uint n, const cl_event *w,
          cl_event *event),
         (q, b, k, o, s, p, n, w, event))
ENQUEUES(clEnqueueReadBuffer,
         (cl_command_queue q, cl_mem b, cl_bool k, size_t o, size_t s, void *p, cl_uint n, const cl_event *w,
          cl_event *event),
         (q, b, k, o, s, p, n, w, event))

PASSES(clGetPlatformIDs, (cl_uint n, cl_platform_id *p, cl_uint *c), (n, p, c))
PASSES(clGetDeviceIDs, (cl_platform_id p, cl_bitfield t, cl_uint n, cl_device_id *d, cl_uint *c), (p, t, n, d, c))
EXPORT cl_int clGetDeviceInfo(cl_device_id d, cl_uint w, size_t n, void *v, size_t *s) {
  static const char extensions[] = "cl_khr_a cl_arm_import_memory cl_khr_b";
  const char *bits = getenv("COUNTING_ALIGN");
  if (w == CL_DEVICE_EXTENSIONS && getenv("COUNTING_IMPORT")) {
    if (s) *s = sizeof extensions;
    if (v) memcpy(v, extensions, n < sizeof extensions ? n : sizeof extensions);
    return CL_SUCCESS;
  }
  if (w == CL_DEVICE_HOST_UNIFIED_MEMORY && getenv("COUNTING_DISCRETE")) {
    *(cl_bool *)v = 0;
    return CL_SUCCESS;
  }
  if (w != CL_DEVICE_MEM_BASE_ADDR_ALIGN || !bits) return CALL(clGetDeviceInfo)(d, w, n, v, s);
  *(cl_uint *)v = (cl_uint)atoi(bits);
  return CL_SUCCESS;
}
static cl_mem import(cl_context c, cl_bitfield f, const intptr_t *p, void *h, size_t n, cl_int *e) {
  if (p[0] != CL_IMPORT_TYPE_ARM || p[1] != CL_IMPORT_TYPE_HOST_ARM || p[2] != 0) abort();
  imports++;
  return clCreateBuffer(c, f | CL_MEM_USE_HOST_PTR, n, h, e);
}
EXPORT void *clGetExtensionFunctionAddressForPlatform(cl_platform_id p, const char *name) {
  (void)p;
  return strcmp(name, "clImportMemoryARM") == 0 ? (void *)(uintptr_t)import : NULL;
}
PASSES(clBuildProgram,
       (cl_program p, cl_uint n, const cl_device_id *d, const char *o, void (*f)(cl_program, void *), void *u),
       (p, n, d, o, f, u))
PASSES(clGetProgramInfo, (cl_program p, cl_uint w, size_t n, void *v, size_t *s), (p, w, n, v, s))
PASSES(clGetProgramBuildInfo, (cl_program p, cl_device_id d, cl_uint w, size_t n, void *v, size_t *s), (p, d, w, n, v, s))
PASSES(clSetKernelArg, (cl_kernel k, cl_uint i, size_t n, const void *v), (k, i, n, v))
EXPORT void *clEnqueueMapBuffer(cl_command_queue q, cl_mem b, cl_bool k, cl_bitfield f, size_t o, size_t s, cl_uint n,
                                const cl_event *w, cl_event *event, cl_int *error) {
  return CALL(clEnqueueMapBuffer)(q, b, k, f, o, s, n, w, event, error);
}
PASSES(clEnqueueUnmapMemObject,
       (cl_command_queue q, cl_mem b, void *p, cl_uint n, const cl_event *w, cl_event *event), (q, b, p, n, w, event))
PASSES(clFinish, (cl_command_queue q), (q))
PASSES(clGetEventProfilingInfo, (cl_event e, cl_uint w, size_t n, void *v, size_t *s), (e, w, n, v, s))
