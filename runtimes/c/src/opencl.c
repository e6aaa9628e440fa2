/* Runs the GPU part of a model through OpenCL: everything is made at open, a run only enqueues. */
#include "opencl_api.h"

#include <stdlib.h>
#include <string.h>

#if EDGERT_WITH_OPENCL

/* ---- kernels ---- */

static edgert_status make_kernel(edgert_opencl *gpu, const edgert_gpu_step *step, cl_kernel *made) {
  cl_int error;
  *made = gpu->cl->clCreateKernel(gpu->program, gpu->part->strings + step->function, &error);
  if (!*made) return edgert_opencl_refused("clCreateKernel", error);
  for (uint32_t i = 0; i < step->operand_count; i++) {
    const edgert_gpu_operand *operand = &gpu->part->operands[step->operand + i];
    cl_mem buffer;
    cl_uint offset = edgert_opencl_place(gpu, operand, &buffer);
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
  gpu->kernels = calloc(gpu->part->step_count + 1u, sizeof *gpu->kernels);
  gpu->events = calloc(gpu->part->step_count + 1u, sizeof *gpu->events);
  if (!gpu->kernels || !gpu->events)
    return edgert_fail(EDGERT_ERROR_MEMORY, "the system has no memory for the %u steps on the GPU",
                       gpu->part->step_count);
  status = edgert_opencl_pick(gpu->cl, &gpu->device);
  if (status == EDGERT_OK) status = make_context(gpu);
  if (status == EDGERT_OK) status = edgert_opencl_make_memory(gpu);
  return status == EDGERT_OK ? edgert_opencl_build(gpu) : status;
}

edgert_status edgert_opencl_prepare(edgert_opencl *gpu, void *const *own) {
  edgert_status status = edgert_opencl_settle_io(gpu, own);
  if (status == EDGERT_OK) status = make_kernels(gpu);
  return status == EDGERT_OK ? edgert_opencl_give_to_host(gpu, gpu->queue) : status;
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
  edgert_opencl_release_memory(gpu);
  if (gpu->program) cl->clReleaseProgram(gpu->program);
  if (gpu->profiling) cl->clReleaseCommandQueue(gpu->profiling);
  if (gpu->queue) cl->clReleaseCommandQueue(gpu->queue);
  if (gpu->context) cl->clReleaseContext(gpu->context);
}

void edgert_opencl_close(edgert_opencl *gpu) {
  if (!gpu) return;
  if (gpu->cl) release(gpu);
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
  cl_mem buffer;
  size_t offset = edgert_opencl_place(now->gpu, operand, &buffer), bytes = (size_t)operand->bytes;
  if (bytes == 0 || (operand->space == EDGERT_GPU_IO && now->gpu->io[operand->io].shared)) return CL_SUCCESS;
  host += operand->offset;
  if (step->kind == EDGERT_GPU_TO_DEVICE)
    return now->gpu->cl->clEnqueueWriteBuffer(now->queue, buffer, 0, offset, bytes, host, 0, NULL, event);
  return now->gpu->cl->clEnqueueReadBuffer(now->queue, buffer, 0, offset, bytes, host, 0, NULL, event);
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
  if (status == EDGERT_OK) status = edgert_opencl_settle_io(gpu, io);
  if (status == EDGERT_OK) status = edgert_opencl_take_from_host(gpu, now.queue);
  for (uint32_t i = 0; status == EDGERT_OK && i < gpu->part->step_count; i++)
    status = run_step(&now, i, host, context);
  edgert_status finished = edgert_opencl_give_to_host(gpu, now.queue);
  if (stats) read_events(&now);
  return status == EDGERT_OK ? finished : status;
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

void edgert_opencl_forget(edgert_opencl *gpu, uint32_t io) { (void)gpu, (void)io; }

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
