/* Runs the GPU part of a model through OpenCL: everything is made at open, a run only enqueues. */
#include "opencl_api.h"

#include <stdlib.h>
#include <string.h>

#if EDGERT_WITH_OPENCL

static uint32_t io_count(const edgert_model *model) { return model->input_count + model->output_count; }

/* ---- memory ---- */

static edgert_status make_buffer(edgert_opencl *gpu, cl_bitfield flags, uint64_t bytes, const void *data,
                                 cl_mem *made) {
  cl_int error = CL_INVALID_BUFFER_SIZE;
  if (bytes <= SIZE_MAX)
    *made = gpu->cl->clCreateBuffer(gpu->context, flags, (size_t)(bytes ? bytes : 1), (void *)(uintptr_t)data, &error);
  return *made ? EDGERT_OK : edgert_opencl_refused("clCreateBuffer", error);
}

/* Arena and weights. */
static edgert_status make_memory(edgert_opencl *gpu) {
  const edgert_gpu *part = gpu->part;
  edgert_status status = make_buffer(gpu, CL_MEM_READ_WRITE, part->arena_bytes, NULL, &gpu->arena);
  const void *weights = part->weights_bytes > 0 ? part->weights : NULL;
  cl_bitfield flags = CL_MEM_READ_ONLY | (weights ? CL_MEM_COPY_HOST_PTR : 0u);
  return status == EDGERT_OK ? make_buffer(gpu, flags, part->weights_bytes, weights, &gpu->weights) : status;
}

/* An image of all weights. A kernel's own begin and end with whole points. */
static bool make_image(edgert_opencl *gpu, uint32_t kind) {
  static const cl_image_format formats[] = {{0, 0}, {CL_RGBA, CL_FLOAT}, {CL_RGBA, CL_HALF_FLOAT},
                                            {CL_RGBA, CL_SIGNED_INT8}};
  static const uint64_t point[] = {0, 16, 8, 4};
  cl_image_desc shape = {.type = CL_MEM_OBJECT_IMAGE1D_BUFFER, .buffer = gpu->weights};
  cl_int error;
  shape.width = (size_t)(gpu->part->weights_bytes / point[kind]);
  gpu->images[kind] = gpu->cl->clCreateImage(gpu->context, CL_MEM_READ_ONLY, &formats[kind], &shape, NULL, &error);
  return gpu->images[kind] != NULL;
}

static void release_images(edgert_opencl *gpu) {
  for (uint32_t kind = 1; kind <= EDGERT_GPU_BYTES; kind++) {
    if (gpu->images[kind]) gpu->cl->clReleaseMemObject(gpu->images[kind]);
    gpu->images[kind] = NULL;
  }
}

/* The images that kernels ask for; all or none, and none where the device has no such images or only smaller ones. */
static void make_images(edgert_opencl *gpu) {
  for (uint64_t i = 0; i < gpu->part->operand_count; i++) {
    const edgert_gpu_operand *operand = &gpu->part->operands[i];
    if (operand->space != EDGERT_GPU_WEIGHTS || operand->io == EDGERT_GPU_NO_IMAGE) continue;
    if (gpu->images[operand->io]) continue;
    gpu->uses_images = make_image(gpu, operand->io);
    if (gpu->uses_images) continue;
    release_images(gpu);
    return;
  }
}

static uint64_t io_bytes(const edgert_model *model, uint32_t i) {
  return i < model->input_count ? model->inputs[i].bytes : model->outputs[i - model->input_count].bytes;
}

/* Whether the GPU may work in the host's own buffers. Steps on the host would have to map them in between. */
static bool shares_memory(const edgert_opencl *gpu) {
  cl_bool unified = 0;
  for (uint32_t i = 0; i < gpu->part->step_count; i++)
    if (gpu->part->steps[i].kind == EDGERT_GPU_HOST) return false;
  return gpu->cl->clGetDeviceInfo(gpu->device, CL_DEVICE_HOST_UNIFIED_MEMORY, sizeof unified, &unified, NULL) ==
             CL_SUCCESS && unified;
}

static edgert_status make_io(edgert_opencl *gpu, void *const *own) {
  bool shares = shares_memory(gpu);
  for (uint32_t i = 0; i < io_count(gpu->model); i++) {
    uint64_t bytes = io_bytes(gpu->model, i);
    void *shared = shares && bytes > 0 ? own[i] : NULL;
    cl_bitfield flags = CL_MEM_READ_WRITE | (shared ? CL_MEM_USE_HOST_PTR : 0u);
    edgert_status status = make_buffer(gpu, flags, bytes, shared, &gpu->io[i]);
    if (status != EDGERT_OK) return status;
    gpu->shared[i] = shared;
  }
  return EDGERT_OK;
}

/* The session's buffers go to the host, which keeps them until the next run. */
static cl_int map_shared(edgert_opencl *gpu, cl_command_queue queue) {
  cl_int error = CL_SUCCESS;
  for (uint32_t i = 0; error == CL_SUCCESS && i < io_count(gpu->model); i++)
    if (gpu->shared[i])
      gpu->cl->clEnqueueMapBuffer(queue, gpu->io[i], 0, CL_MAP_READ | CL_MAP_WRITE, 0,
                                  (size_t)io_bytes(gpu->model, i), 0, NULL, NULL, &error);
  return error;
}

static cl_int unmap_shared(edgert_opencl *gpu, cl_command_queue queue) {
  cl_int error = CL_SUCCESS;
  for (uint32_t i = 0; error == CL_SUCCESS && i < io_count(gpu->model); i++)
    if (gpu->shared[i]) error = gpu->cl->clEnqueueUnmapMemObject(queue, gpu->io[i], gpu->shared[i], 0, NULL, NULL);
  return error;
}

static cl_mem buffer_of(const edgert_opencl *gpu, const edgert_gpu_operand *operand) {
  if (operand->space == EDGERT_GPU_IO) return gpu->io[operand->io];
  if (operand->space == EDGERT_GPU_WEIGHTS && operand->io != EDGERT_GPU_NO_IMAGE && gpu->uses_images)
    return gpu->images[operand->io];
  return operand->space == EDGERT_GPU_ARENA ? gpu->arena : gpu->weights;
}

/* ---- kernels ---- */

static edgert_status make_kernel(edgert_opencl *gpu, const edgert_gpu_step *step, cl_kernel *made) {
  cl_int error;
  *made = gpu->cl->clCreateKernel(gpu->program, gpu->part->strings + step->function, &error);
  if (!*made) return edgert_opencl_refused("clCreateKernel", error);
  for (uint32_t i = 0; i < step->operand_count; i++) {
    const edgert_gpu_operand *operand = &gpu->part->operands[step->operand + i];
    cl_mem buffer = buffer_of(gpu, operand);
    cl_uint offset = (cl_uint)operand->offset;
    error = gpu->cl->clSetKernelArg(*made, 2 * i, sizeof buffer, &buffer);
    if (error == CL_SUCCESS) error = gpu->cl->clSetKernelArg(*made, 2 * i + 1, sizeof offset, &offset);
    if (error != CL_SUCCESS) return edgert_opencl_refused("clSetKernelArg", error);
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
  if (!gpu->context) return edgert_opencl_refused("clCreateContext", error);
  gpu->queue = gpu->cl->clCreateCommandQueue(gpu->context, gpu->device, 0, &error);
  return gpu->queue ? EDGERT_OK : edgert_opencl_refused("clCreateCommandQueue", error);
}

static edgert_status fill(edgert_opencl *gpu) {
  edgert_status status = edgert_opencl_functions(&gpu->cl);
  if (status != EDGERT_OK) {
    gpu->cl = NULL;
    return status;
  }
  gpu->io = calloc(io_count(gpu->model) + 1u, sizeof *gpu->io);
  gpu->shared = calloc(io_count(gpu->model) + 1u, sizeof *gpu->shared);
  gpu->kernels = calloc(gpu->part->step_count + 1u, sizeof *gpu->kernels);
  gpu->events = calloc(gpu->part->step_count + 1u, sizeof *gpu->events);
  if (!gpu->io || !gpu->shared || !gpu->kernels || !gpu->events)
    return edgert_fail(EDGERT_ERROR_MEMORY, "the system has no memory for the %u steps on the GPU",
                       gpu->part->step_count);
  status = edgert_opencl_pick(gpu->cl, &gpu->device);
  if (status == EDGERT_OK) status = make_context(gpu);
  if (status == EDGERT_OK) status = make_memory(gpu);
  if (status != EDGERT_OK) return status;
  make_images(gpu);
  return edgert_opencl_build(gpu);
}

edgert_status edgert_opencl_prepare(edgert_opencl *gpu, void *const *own) {
  edgert_status status = make_io(gpu, own);
  if (status == EDGERT_OK) status = make_kernels(gpu);
  if (status != EDGERT_OK) return status;
  cl_int error = map_shared(gpu, gpu->queue);
  if (error == CL_SUCCESS) error = gpu->cl->clFinish(gpu->queue);
  return error == CL_SUCCESS ? EDGERT_OK : edgert_opencl_refused("clEnqueueMapBuffer", error);
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
  release_images(gpu);
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
  free(gpu->shared);
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
  bool in_place = operand->space == EDGERT_GPU_IO && now->gpu->shared[operand->io] == host;
  if (bytes == 0 || (in_place && host)) return CL_SUCCESS;
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
    if (error != CL_SUCCESS) return edgert_opencl_refused("clFinish", error);
    uint64_t start = now->stats ? edgert_now_ns() : 0;
    host(context, step->host);
    if (now->stats) add_time(&now->stats[index], edgert_now_ns() - start);
    return EDGERT_OK;
  }
  if (step->kind == EDGERT_GPU_KERNEL) {
    cl_int error = enqueue_kernel(now, step, gpu->kernels[index], event);
    return error == CL_SUCCESS ? EDGERT_OK : edgert_opencl_refused(gpu->part->strings + step->kernel, error);
  }
  cl_int error = enqueue_copy(now, step, event);
  return error == CL_SUCCESS ? EDGERT_OK : edgert_opencl_refused("a copy", error);
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
  return gpu->profiling ? EDGERT_OK : edgert_opencl_refused("clCreateCommandQueue", error);
}

edgert_status edgert_opencl_run(edgert_opencl *gpu, void *const *io, uint8_t *arena, edgert_step_stats *stats,
                                edgert_host_fn host, void *context) {
  edgert_status status = stats ? profiling_queue(gpu) : EDGERT_OK;
  run now = {.gpu = gpu, .queue = stats ? gpu->profiling : gpu->queue, .io = io, .arena = arena, .stats = stats};
  if (status != EDGERT_OK) return status;
  cl_int error = unmap_shared(gpu, now.queue);
  if (error != CL_SUCCESS) status = edgert_opencl_refused("clEnqueueUnmapMemObject", error);
  for (uint32_t i = 0; status == EDGERT_OK && i < gpu->part->step_count; i++)
    status = run_step(&now, i, host, context);
  error = map_shared(gpu, now.queue);
  cl_int finished = gpu->cl->clFinish(now.queue);
  if (error == CL_SUCCESS) error = finished;
  if (stats) read_events(&now);
  return status == EDGERT_OK && error != CL_SUCCESS ? edgert_opencl_refused("clFinish", error) : status;
}

#else

edgert_status edgert_opencl_open(const edgert_model *model, edgert_opencl **gpu) {
  *gpu = NULL;
  return edgert_fail(EDGERT_ERROR_GPU,
                     "model '%s' is for a GPU and this libedgert was built without OpenCL; build it with "
                     "EDGERT_OPENCL, or run on the CPU (edgec run --fallback cpu)",
                     model->name);
}

edgert_status edgert_opencl_prepare(edgert_opencl *gpu, void *const *own) {
  (void)gpu, (void)own;
  return EDGERT_OK;
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
