/* What libedgert uses of OpenCL 1.2, so that it builds without the Khronos headers, and the driver's functions. */
#ifndef EDGERT_OPENCL_API_H
#define EDGERT_OPENCL_API_H

#include "internal.h"

typedef struct _cl_platform_id *cl_platform_id;
typedef struct _cl_device_id *cl_device_id;
typedef struct _cl_context *cl_context;
typedef struct _cl_command_queue *cl_command_queue;
typedef struct _cl_mem *cl_mem;
typedef struct _cl_program *cl_program;
typedef struct _cl_kernel *cl_kernel;
typedef struct _cl_event *cl_event;
typedef int32_t cl_int;
typedef uint32_t cl_uint, cl_bool;
typedef uint64_t cl_ulong, cl_bitfield;

typedef struct cl_image_format {
  cl_uint order, type;
} cl_image_format;

typedef struct cl_image_desc {
  cl_uint type;
  size_t width, height, depth, array_size, row_pitch, slice_pitch;
  cl_uint mip_levels, samples;
  cl_mem buffer;
} cl_image_desc;

typedef struct cl_buffer_region {
  size_t origin, size;
} cl_buffer_region;

enum {
  CL_SUCCESS = 0,
  CL_MEM_OBJECT_ALLOCATION_FAILURE = -4,
  CL_OUT_OF_RESOURCES = -5,
  CL_OUT_OF_HOST_MEMORY = -6,
  CL_INVALID_BUFFER_SIZE = -61,
  CL_DEVICE_TYPE_GPU = 1 << 2,
  CL_DEVICE_MAX_WORK_GROUP_SIZE = 0x1004,
  CL_DEVICE_MEM_BASE_ADDR_ALIGN = 0x1019,
  CL_DEVICE_NAME = 0x102B,
  CL_DEVICE_HOST_UNIFIED_MEMORY = 0x1035,
  CL_DEVICE_VERSION = 0x102F,
  CL_DEVICE_EXTENSIONS = 0x1030,
  CL_DEVICE_PLATFORM = 0x1031,
  CL_DEVICE_OPENCL_C_VERSION = 0x103D,
  CL_DRIVER_VERSION = 0x102D,
  CL_MEM_READ_WRITE = 1 << 0,
  CL_MEM_READ_ONLY = 1 << 2,
  CL_MEM_USE_HOST_PTR = 1 << 3,
  CL_MEM_COPY_HOST_PTR = 1 << 5,
  CL_MAP_READ = 1 << 0,
  CL_MAP_WRITE = 1 << 1,
  CL_QUEUE_PROFILING_ENABLE = 1 << 1,
  CL_RGBA = 0x10B5,
  CL_SIGNED_INT8 = 0x10D7,
  CL_HALF_FLOAT = 0x10DD,
  CL_FLOAT = 0x10DE,
  CL_MEM_OBJECT_IMAGE1D_BUFFER = 0x10F6,
  CL_BUFFER_CREATE_TYPE_REGION = 0x1220,
  CL_PROGRAM_BINARY_SIZES = 0x1165,
  CL_PROGRAM_BINARIES = 0x1166,
  CL_PROGRAM_BUILD_LOG = 0x1183,
  CL_PROFILING_COMMAND_START = 0x1282,
  CL_PROFILING_COMMAND_END = 0x1283,
  CL_IMPORT_TYPE_ARM = 0x40B2,
  CL_IMPORT_TYPE_HOST_ARM = 0x40B3
};
#define CL_DEVICE_TYPE_ALL 0xFFFFFFFFu

/* Every function that is used: X(result, name, parameters). */
#define EDGERT_OPENCL_FUNCTIONS(X)                                                                                  \
  X(cl_int, clGetPlatformIDs, (cl_uint, cl_platform_id *, cl_uint *))                                               \
  X(cl_int, clGetDeviceIDs, (cl_platform_id, cl_bitfield, cl_uint, cl_device_id *, cl_uint *))                      \
  X(cl_int, clGetDeviceInfo, (cl_device_id, cl_uint, size_t, void *, size_t *))                                     \
  X(cl_context, clCreateContext,                                                                                    \
    (const intptr_t *, cl_uint, const cl_device_id *, void (*)(const char *, const void *, size_t, void *), void *, \
     cl_int *))                                                                                                     \
  X(cl_int, clReleaseContext, (cl_context))                                                                         \
  X(cl_command_queue, clCreateCommandQueue, (cl_context, cl_device_id, cl_bitfield, cl_int *))                      \
  X(cl_int, clReleaseCommandQueue, (cl_command_queue))                                                              \
  X(cl_mem, clCreateBuffer, (cl_context, cl_bitfield, size_t, void *, cl_int *))                                    \
  X(cl_mem, clCreateSubBuffer, (cl_mem, cl_bitfield, cl_uint, const void *, cl_int *))                              \
  X(cl_mem, clCreateImage,                                                                                           \
    (cl_context, cl_bitfield, const cl_image_format *, const cl_image_desc *, void *, cl_int *))                     \
  X(cl_int, clReleaseMemObject, (cl_mem))                                                                           \
  X(cl_program, clCreateProgramWithSource, (cl_context, cl_uint, const char **, const size_t *, cl_int *))          \
  X(cl_program, clCreateProgramWithBinary,                                                                          \
    (cl_context, cl_uint, const cl_device_id *, const size_t *, const uint8_t **, cl_int *, cl_int *))              \
  X(cl_int, clBuildProgram,                                                                                         \
    (cl_program, cl_uint, const cl_device_id *, const char *, void (*)(cl_program, void *), void *))                \
  X(cl_int, clGetProgramInfo, (cl_program, cl_uint, size_t, void *, size_t *))                                      \
  X(cl_int, clGetProgramBuildInfo, (cl_program, cl_device_id, cl_uint, size_t, void *, size_t *))                   \
  X(cl_int, clReleaseProgram, (cl_program))                                                                         \
  X(cl_kernel, clCreateKernel, (cl_program, const char *, cl_int *))                                                \
  X(cl_int, clReleaseKernel, (cl_kernel))                                                                           \
  X(cl_int, clSetKernelArg, (cl_kernel, cl_uint, size_t, const void *))                                             \
  X(cl_int, clEnqueueNDRangeKernel,                                                                                 \
    (cl_command_queue, cl_kernel, cl_uint, const size_t *, const size_t *, const size_t *, cl_uint,                 \
     const cl_event *, cl_event *))                                                                                 \
  X(cl_int, clEnqueueWriteBuffer,                                                                                   \
    (cl_command_queue, cl_mem, cl_bool, size_t, size_t, const void *, cl_uint, const cl_event *, cl_event *))       \
  X(cl_int, clEnqueueReadBuffer,                                                                                    \
    (cl_command_queue, cl_mem, cl_bool, size_t, size_t, void *, cl_uint, const cl_event *, cl_event *))             \
  X(void *, clEnqueueMapBuffer,                                                                                     \
    (cl_command_queue, cl_mem, cl_bool, cl_bitfield, size_t, size_t, cl_uint, const cl_event *, cl_event *, cl_int *)) \
  X(cl_int, clEnqueueUnmapMemObject,                                                                                \
    (cl_command_queue, cl_mem, void *, cl_uint, const cl_event *, cl_event *))                                      \
  X(cl_int, clFinish, (cl_command_queue))                                                                           \
  X(void *, clGetExtensionFunctionAddressForPlatform, (cl_platform_id, const char *))                               \
  X(cl_int, clGetEventProfilingInfo, (cl_event, cl_uint, size_t, void *, size_t *))                                 \
  X(cl_int, clReleaseEvent, (cl_event))

typedef struct opencl_functions {
#define X(result, name, parameters) result(*name) parameters;
  EDGERT_OPENCL_FUNCTIONS(X)
#undef X
} opencl_functions;

/* clImportMemoryARM of cl_arm_import_memory. */
typedef cl_mem (*edgert_import_fn)(cl_context, cl_bitfield, const intptr_t *, void *, size_t, cl_int *);

/* Where some of the arena's buffers stand, one after the other: `start` to `end`, in bytes of the arena. */
typedef struct edgert_place {
  uint64_t start, end;
  cl_mem buffer; /* NULL where the kernels take the whole arena */
} edgert_place;

/* What the kernels read an input from, or write an output to. */
typedef struct edgert_io {
  cl_mem buffer;
  void *shared; /* the host's memory that `buffer` is over; NULL where it is copied */
  void *mapped; /* what the host has it as: all the time but in a run */
} edgert_io;

/* A model on a GPU. */
struct edgert_opencl {
  const opencl_functions *cl;
  const edgert_model *model;
  const edgert_gpu *part;
  cl_device_id device;
  cl_context context;
  cl_command_queue queue;     /* without profiling, which some drivers make slow */
  cl_command_queue profiling; /* made when a run is first measured */
  cl_program program;
  cl_mem arena, weights;
  cl_mem images[EDGERT_GPU_BYTES + 1]; /* of the weights, by edgert_gpu_image; NULL where none is needed */
  bool uses_images;                    /* whether the kernels take them */
  edgert_place *places; /* of the arena; NULL where the plan has none */
  uint32_t place_count;
  edgert_io *io;      /* of every input, then of every output */
  bool shares;        /* whether the device may work in the host's memory */
  edgert_import_fn import; /* what gives it to an ARM GPU; NULL where CL_MEM_USE_HOST_PTR does */
  cl_kernel *kernels; /* of every step; NULL for a step without */
  cl_event *events;   /* of every step of a measured run */
  char name[128];
};

/* opencl_driver.c */

/* The driver's functions; loaded once a process, and never unloaded, since drivers do not bear it. */
edgert_status edgert_opencl_functions(const opencl_functions **functions);
/* The device to use. */
edgert_status edgert_opencl_pick(const opencl_functions *cl, cl_device_id *device);
/* A text that the driver has about `device`, cut to `bytes`. */
void edgert_opencl_text(const opencl_functions *cl, cl_device_id device, cl_uint what, char *text, size_t bytes);

/* opencl_memory.c */

/* Makes arena and weights. */
edgert_status edgert_opencl_make_memory(edgert_opencl *gpu);
void edgert_opencl_release_memory(edgert_opencl *gpu);
/* The buffer that `operand` stands in, and the bytes from its start on. */
uint32_t edgert_opencl_place(const edgert_opencl *gpu, const edgert_gpu_operand *operand, cl_mem *buffer);
/* Lets kernels work in `host`, the memory of every input and output, or makes buffers to copy to and from. */
edgert_status edgert_opencl_settle_io(edgert_opencl *gpu, void *const *host);
/* Maps what is shared, and waits; and before a run, unmaps it. */
edgert_status edgert_opencl_give_to_host(edgert_opencl *gpu, cl_command_queue queue);
edgert_status edgert_opencl_take_from_host(edgert_opencl *gpu, cl_command_queue queue);

/* opencl_program.c */

/* What the driver answers to `call`, as a status. */
edgert_status edgert_opencl_refused(const char *call, cl_int error);
/* Make `program` of the model's source. */
edgert_status edgert_opencl_build(edgert_opencl *gpu);

#endif
