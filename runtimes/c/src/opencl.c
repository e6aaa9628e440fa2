/* Runs the GPU part of a model through OpenCL: everything is made at open, a run only enqueues. */
#include "opencl_api.h"

#include <stdlib.h>
#include <string.h>

#if EDGERT_WITH_OPENCL

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
  cl_mem *io;         /* of every input, then of every output */
  cl_kernel *kernels; /* of every step; NULL for a step without */
  cl_event *events;   /* of every step of a measured run */
  char name[128];
};

static uint32_t io_count(const edgert_model *model) { return model->input_count + model->output_count; }

/* What the driver answers, as a status. */
static edgert_status refused(const char *call, cl_int error) {
  bool memory = error == CL_MEM_OBJECT_ALLOCATION_FAILURE || error == CL_OUT_OF_RESOURCES ||
                error == CL_OUT_OF_HOST_MEMORY || error == CL_INVALID_BUFFER_SIZE;
  if (memory)
    return edgert_fail(EDGERT_ERROR_MEMORY, "the GPU is out of memory or resources: %s answers -%u; free some, or run "
                       "on the CPU (edgec run --fallback cpu)", call, (unsigned)-error);
  return edgert_fail(EDGERT_ERROR_GPU, "the OpenCL driver refuses %s with error -%u; run on the CPU (edgec run "
                     "--fallback cpu) or update the driver", call, (unsigned)-error);
}

/* ---- the program ---- */

/* Divisions and square roots are rounded as the processor rounds them where the device can. */
static const char *const exact_options = "-cl-std=CL1.2 -cl-fp32-correctly-rounded-divide-sqrt";
static const char *const newest_options = "-cl-std=CL3.0 -cl-fp32-correctly-rounded-divide-sqrt";
static const char *const plain_options = "-cl-std=CL1.2";

static void cache_key(const edgert_opencl *gpu, const char *options, uint8_t key[32]) {
  static const cl_uint facts[] = {CL_DEVICE_NAME, CL_DEVICE_VERSION, CL_DRIVER_VERSION};
  edgert_sha256 hash;
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
static bool from_cache(edgert_opencl *gpu, const uint8_t key[32], const char *options) {
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
  if (gpu->program) gpu->cl->clReleaseProgram(gpu->program);
  gpu->program = gpu->cl->clCreateProgramWithSource(gpu->context, 1, &source, &size, &error);
  return gpu->program ? gpu->cl->clBuildProgram(gpu->program, 1, &gpu->device, options, NULL, NULL) : error;
}

/* Sources that multiply four bytes at once say so by this name; only OpenCL C 3.0 has it for every vendor. */
static bool wants_newest(const edgert_opencl *gpu) {
  char version[64];
  edgert_opencl_text(gpu->cl, gpu->device, CL_DEVICE_OPENCL_C_VERSION, version, sizeof version);
  return strncmp(version, "OpenCL C 3", 10) == 0 && strstr(gpu->part->source, "DOT4(");
}

static edgert_status build_program(edgert_opencl *gpu) {
  uint8_t key[32];
  if (gpu->part->source_bytes == 0) return EDGERT_OK; /* every step runs on the host */
  cache_key(gpu, exact_options, key);
  if (from_cache(gpu, key, exact_options)) return EDGERT_OK;
  cl_int error = wants_newest(gpu) ? build_source(gpu, newest_options) : CL_OUT_OF_RESOURCES;
  if (error != CL_SUCCESS) error = build_source(gpu, exact_options);
  if (error != CL_SUCCESS) error = build_source(gpu, plain_options);
  if (!gpu->program) return refused("clCreateProgramWithSource", error);
  if (error != CL_SUCCESS) return build_failed(gpu, error);
  keep(gpu, key);
  return EDGERT_OK;
}

/* ---- memory ---- */

static edgert_status make_buffer(edgert_opencl *gpu, cl_bitfield flags, uint64_t bytes, const void *data, cl_mem *made) {
  cl_int error = CL_INVALID_BUFFER_SIZE;
  if (bytes <= SIZE_MAX)
    *made = gpu->cl->clCreateBuffer(gpu->context, flags | (data ? CL_MEM_COPY_HOST_PTR : 0u), (size_t)(bytes ? bytes : 1),
                                    (void *)(uintptr_t)data, &error);
  return *made ? EDGERT_OK : refused("clCreateBuffer", error);
}

static edgert_status make_buffers(edgert_opencl *gpu) {
  const edgert_model *model = gpu->model;
  const edgert_gpu *part = gpu->part;
  edgert_status status = make_buffer(gpu, CL_MEM_READ_WRITE, part->arena_bytes, NULL, &gpu->arena);
  const void *weights = part->weights_bytes > 0 ? part->weights : NULL;
  if (status == EDGERT_OK) status = make_buffer(gpu, CL_MEM_READ_ONLY, part->weights_bytes, weights, &gpu->weights);
  for (uint32_t i = 0; status == EDGERT_OK && i < io_count(model); i++) {
    uint64_t bytes = i < model->input_count ? model->inputs[i].bytes : model->outputs[i - model->input_count].bytes;
    status = make_buffer(gpu, CL_MEM_READ_WRITE, bytes, NULL, &gpu->io[i]);
  }
  return status;
}

static cl_mem buffer_of(const edgert_opencl *gpu, const edgert_gpu_operand *operand) {
  if (operand->space == EDGERT_GPU_IO) return gpu->io[operand->io];
  return operand->space == EDGERT_GPU_ARENA ? gpu->arena : gpu->weights;
}

/* ---- kernels ---- */

static edgert_status make_kernel(edgert_opencl *gpu, const edgert_gpu_step *step, cl_kernel *made) {
  cl_int error;
  *made = gpu->cl->clCreateKernel(gpu->program, gpu->part->strings + step->function, &error);
  if (!*made) return refused("clCreateKernel", error);
  for (uint32_t i = 0; i < step->operand_count; i++) {
    const edgert_gpu_operand *operand = &gpu->part->operands[step->operand + i];
    cl_mem buffer = buffer_of(gpu, operand);
    cl_uint offset = (cl_uint)operand->offset;
    error = gpu->cl->clSetKernelArg(*made, 2 * i, sizeof buffer, &buffer);
    if (error == CL_SUCCESS) error = gpu->cl->clSetKernelArg(*made, 2 * i + 1, sizeof offset, &offset);
    if (error != CL_SUCCESS) return refused("clSetKernelArg", error);
  }
  return EDGERT_OK;
}

static edgert_status make_kernels(edgert_opencl *gpu) {
  edgert_status status = EDGERT_OK;
  for (uint32_t i = 0; status == EDGERT_OK && i < gpu->part->step_count; i++)
    if (gpu->part->steps[i].kind == EDGERT_GPU_KERNEL)
      status = make_kernel(gpu, &gpu->part->steps[i], &gpu->kernels[i]);
  return status;
}

/* ---- open and close ---- */

static edgert_status make_context(edgert_opencl *gpu) {
  cl_int error;
  edgert_opencl_text(gpu->cl, gpu->device, CL_DEVICE_NAME, gpu->name, sizeof gpu->name);
  gpu->context = gpu->cl->clCreateContext(NULL, 1, &gpu->device, NULL, NULL, &error);
  if (!gpu->context) return refused("clCreateContext", error);
  gpu->queue = gpu->cl->clCreateCommandQueue(gpu->context, gpu->device, 0, &error);
  return gpu->queue ? EDGERT_OK : refused("clCreateCommandQueue", error);
}

static edgert_status fill(edgert_opencl *gpu) {
  edgert_status status = edgert_opencl_functions(&gpu->cl);
  if (status != EDGERT_OK) {
    gpu->cl = NULL;
    return status;
  }
  gpu->io = calloc(io_count(gpu->model) + 1u, sizeof *gpu->io);
  gpu->kernels = calloc(gpu->part->step_count + 1u, sizeof *gpu->kernels);
  gpu->events = calloc(gpu->part->step_count + 1u, sizeof *gpu->events);
  if (!gpu->io || !gpu->kernels || !gpu->events)
    return edgert_fail(EDGERT_ERROR_MEMORY, "the system has no memory for the %u steps on the GPU",
                       gpu->part->step_count);
  status = edgert_opencl_pick(gpu->cl, &gpu->device);
  if (status == EDGERT_OK) status = make_context(gpu);
  if (status == EDGERT_OK) status = build_program(gpu);
  if (status == EDGERT_OK) status = make_buffers(gpu);
  return status == EDGERT_OK ? make_kernels(gpu) : status;
}

edgert_status edgert_opencl_open(const edgert_model *model, edgert_opencl **gpu) {
  edgert_opencl *made = calloc(1, sizeof *made);
  *gpu = NULL;
  if (!made) return edgert_fail(EDGERT_ERROR_MEMORY, "the system has no memory for a session on the GPU");
  made->model = model;
  made->part = edgert_model_gpu(model);
  edgert_status status = fill(made);
  if (status == EDGERT_OK)
    *gpu = made;
  else
    edgert_opencl_close(made);
  return status;
}

static void release(edgert_opencl *gpu) {
  const opencl_functions *cl = gpu->cl;
  for (uint32_t i = 0; gpu->kernels && i < gpu->part->step_count; i++)
    if (gpu->kernels[i]) cl->clReleaseKernel(gpu->kernels[i]);
  for (uint32_t i = 0; gpu->io && i < io_count(gpu->model); i++)
    if (gpu->io[i]) cl->clReleaseMemObject(gpu->io[i]);
  if (gpu->arena) cl->clReleaseMemObject(gpu->arena);
  if (gpu->weights) cl->clReleaseMemObject(gpu->weights);
  if (gpu->program) cl->clReleaseProgram(gpu->program);
  if (gpu->profiling) cl->clReleaseCommandQueue(gpu->profiling);
  if (gpu->queue) cl->clReleaseCommandQueue(gpu->queue);
  if (gpu->context) cl->clReleaseContext(gpu->context);
}

void edgert_opencl_close(edgert_opencl *gpu) {
  if (!gpu) return;
  if (gpu->cl) release(gpu);
  free(gpu->io);
  free(gpu->kernels);
  free(gpu->events);
  free(gpu);
}

const char *edgert_opencl_device(const edgert_opencl *gpu) { return gpu->name; }

/* ---- run ---- */

/* One inference under way. */
typedef struct run {
  edgert_opencl *gpu;
  cl_command_queue queue;
  void *const *io;
  uint8_t *arena;
  edgert_step_stats *stats;
} run;

static void add_time(edgert_step_stats *stats, uint64_t elapsed) {
  if (stats->calls == 0 || elapsed < stats->min_ns) stats->min_ns = elapsed;
  stats->total_ns += elapsed;
  stats->calls++;
}

static cl_int enqueue_kernel(const run *now, const edgert_gpu_step *step, cl_kernel kernel, cl_event *event) {
  size_t items[3], group[3];
  for (int i = 0; i < 3; i++) {
    group[i] = step->group[i] ? step->group[i] : 1u;
    items[i] = (step->items[i] + group[i] - 1) / group[i] * group[i];
  }
  return now->gpu->cl->clEnqueueNDRangeKernel(now->queue, kernel, 3, NULL, items, step->group[0] ? group : NULL, 0,
                                              NULL, event);
}

static cl_int enqueue_copy(const run *now, const edgert_gpu_step *step, cl_event *event) {
  const edgert_gpu_operand *operand = &now->gpu->part->operands[step->operand];
  uint8_t *host = operand->space == EDGERT_GPU_IO ? now->io[operand->io] : now->arena;
  cl_mem buffer = buffer_of(now->gpu, operand);
  size_t offset = (size_t)operand->offset, bytes = (size_t)operand->bytes;
  if (bytes == 0) return CL_SUCCESS;
  if (step->kind == EDGERT_GPU_TO_DEVICE)
    return now->gpu->cl->clEnqueueWriteBuffer(now->queue, buffer, 0, offset, bytes, host + offset, 0, NULL, event);
  return now->gpu->cl->clEnqueueReadBuffer(now->queue, buffer, 0, offset, bytes, host + offset, 0, NULL, event);
}

static edgert_status run_step(const run *now, uint32_t index, edgert_host_fn host, void *context) {
  edgert_opencl *gpu = now->gpu;
  const edgert_gpu_step *step = &gpu->part->steps[index];
  cl_event *event = now->stats ? &gpu->events[index] : NULL;
  if (step->kind == EDGERT_GPU_HOST) {
    cl_int error = gpu->cl->clFinish(now->queue);
    if (error != CL_SUCCESS) return refused("clFinish", error);
    uint64_t start = now->stats ? edgert_now_ns() : 0;
    host(context, step->host);
    if (now->stats) add_time(&now->stats[index], edgert_now_ns() - start);
    return EDGERT_OK;
  }
  if (step->kind == EDGERT_GPU_KERNEL) {
    cl_int error = enqueue_kernel(now, step, gpu->kernels[index], event);
    return error == CL_SUCCESS ? EDGERT_OK : refused(gpu->part->strings + step->kernel, error);
  }
  cl_int error = enqueue_copy(now, step, event);
  return error == CL_SUCCESS ? EDGERT_OK : refused("a copy", error);
}

static void read_events(const run *now) {
  const opencl_functions *cl = now->gpu->cl;
  for (uint32_t i = 0; i < now->gpu->part->step_count; i++) {
    cl_ulong start, end;
    cl_event event = now->gpu->events[i];
    if (!event) continue;
    if (cl->clGetEventProfilingInfo(event, CL_PROFILING_COMMAND_START, sizeof start, &start, NULL) == CL_SUCCESS &&
        cl->clGetEventProfilingInfo(event, CL_PROFILING_COMMAND_END, sizeof end, &end, NULL) == CL_SUCCESS)
      add_time(&now->stats[i], end - start);
    cl->clReleaseEvent(event);
    now->gpu->events[i] = NULL;
  }
}

static edgert_status profiling_queue(edgert_opencl *gpu) {
  cl_int error;
  if (!gpu->profiling)
    gpu->profiling = gpu->cl->clCreateCommandQueue(gpu->context, gpu->device, CL_QUEUE_PROFILING_ENABLE, &error);
  return gpu->profiling ? EDGERT_OK : refused("clCreateCommandQueue", error);
}

edgert_status edgert_opencl_run(edgert_opencl *gpu, void *const *io, uint8_t *arena, edgert_step_stats *stats,
                                edgert_host_fn host, void *context) {
  edgert_status status = stats ? profiling_queue(gpu) : EDGERT_OK;
  run now = {.gpu = gpu, .queue = stats ? gpu->profiling : gpu->queue, .io = io, .arena = arena, .stats = stats};
  if (status != EDGERT_OK) return status;
  for (uint32_t i = 0; status == EDGERT_OK && i < gpu->part->step_count; i++)
    status = run_step(&now, i, host, context);
  cl_int error = gpu->cl->clFinish(now.queue);
  if (stats) read_events(&now);
  return status == EDGERT_OK && error != CL_SUCCESS ? refused("clFinish", error) : status;
}

#else

edgert_status edgert_opencl_open(const edgert_model *model, edgert_opencl **gpu) {
  *gpu = NULL;
  return edgert_fail(EDGERT_ERROR_GPU,
                     "model '%s' is for a GPU and this libedgert was built without OpenCL; build it with "
                     "EDGERT_OPENCL, or run on the CPU (edgec run --fallback cpu)",
                     model->name);
}

const char *edgert_opencl_device(const edgert_opencl *gpu) {
  (void)gpu;
  return NULL;
}

edgert_status edgert_opencl_run(edgert_opencl *gpu, void *const *io, uint8_t *arena, edgert_step_stats *stats,
                                edgert_host_fn host, void *context) {
  (void)gpu, (void)io, (void)arena, (void)stats, (void)host, (void)context;
  return EDGERT_OK;
}

void edgert_opencl_close(edgert_opencl *gpu) { (void)gpu; }

#endif
