/* The GPU's memory: the arena and its places, the weights, and what the host has of inputs and outputs. */
#include "opencl_api.h"

#if EDGERT_WITH_OPENCL

#include <stdlib.h>
#include <string.h>

static edgert_status make_buffer(edgert_opencl *gpu, cl_bitfield flags, uint64_t bytes, const void *data,
                                 cl_mem *made) {
  cl_int error = CL_INVALID_BUFFER_SIZE;
  if (bytes <= SIZE_MAX)
    *made = gpu->cl->clCreateBuffer(gpu->context, flags, (size_t)(bytes ? bytes : 1), (void *)(uintptr_t)data, &error);
  return *made ? EDGERT_OK : edgert_opencl_refused("clCreateBuffer", error);
}

/* ---- the arena ---- */

/* Grows every place over what operands have of it; a place begins where the device lets a sub-buffer begin. */
static void measure_places(edgert_opencl *gpu, uint64_t alignment) {
  for (uint64_t i = 0; i < gpu->part->operand_count; i++) {
    const edgert_gpu_operand *operand = &gpu->part->operands[i];
    if (operand->space != EDGERT_GPU_ARENA || operand->io == 0) continue;
    edgert_place *place = &gpu->places[operand->io - 1];
    uint64_t start = operand->offset / alignment * alignment, end = operand->offset + operand->bytes;
    if (place->end == 0 || start < place->start) place->start = start;
    if (end > place->end) place->end = end;
  }
}

static const edgert_place *place_of(const edgert_opencl *gpu, const edgert_gpu_operand *operand) {
  return operand->space == EDGERT_GPU_ARENA && operand->io > 0 ? &gpu->places[operand->io - 1] : NULL;
}

/* Whether a kernel would get two places that overlap, which OpenCL leaves undefined: the memory plan is for devices
 * whose sub-buffers begin more closely. */
static bool places_overlap(const edgert_opencl *gpu, const edgert_gpu_step *step) {
  const edgert_gpu_operand *operands = &gpu->part->operands[step->operand];
  for (uint32_t i = 0; i < step->operand_count; i++)
    for (uint32_t k = 0; k < i; k++) {
      const edgert_place *one = place_of(gpu, &operands[i]), *other = place_of(gpu, &operands[k]);
      if (one && other && one != other && one->start < other->end && other->start < one->end) return true;
    }
  return false;
}

/* The bytes at whose multiples a sub-buffer may begin. */
static uint64_t sub_buffer_alignment(const edgert_opencl *gpu) {
  cl_uint bits = 0;
  if (gpu->cl->clGetDeviceInfo(gpu->device, CL_DEVICE_MEM_BASE_ADDR_ALIGN, sizeof bits, &bits, NULL) != CL_SUCCESS)
    return 0;
  return bits / 8;
}

static edgert_status make_place(edgert_opencl *gpu, edgert_place *place) {
  cl_int error;
  cl_buffer_region region = {(size_t)place->start, (size_t)(place->end - place->start)};
  if (place->end == place->start) return EDGERT_OK;
  place->buffer =
      gpu->cl->clCreateSubBuffer(gpu->arena, CL_MEM_READ_WRITE, CL_BUFFER_CREATE_TYPE_REGION, &region, &error);
  return place->buffer ? EDGERT_OK : edgert_opencl_refused("clCreateSubBuffer", error);
}

/* The arena's places as sub-buffers, or none. */
static edgert_status make_places(edgert_opencl *gpu) {
  uint64_t alignment = sub_buffer_alignment(gpu);
  edgert_status status = EDGERT_OK;
  for (uint64_t i = 0; i < gpu->part->operand_count; i++)
    if (gpu->part->operands[i].space == EDGERT_GPU_ARENA && gpu->part->operands[i].io > gpu->place_count)
      gpu->place_count = gpu->part->operands[i].io;
  if (alignment == 0 || gpu->place_count == 0) return EDGERT_OK;
  gpu->places = calloc(gpu->place_count, sizeof *gpu->places);
  if (!gpu->places) return edgert_fail(EDGERT_ERROR_MEMORY, "the system has no memory for the places of the arena");
  measure_places(gpu, alignment);
  for (uint32_t i = 0; i < gpu->part->step_count; i++)
    if (gpu->part->steps[i].kind == EDGERT_GPU_KERNEL && places_overlap(gpu, &gpu->part->steps[i])) return EDGERT_OK;
  for (uint32_t i = 0; status == EDGERT_OK && i < gpu->place_count; i++) status = make_place(gpu, &gpu->places[i]);
  return status;
}

/* ---- weights ---- */

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

/* ---- inputs and outputs ---- */

static uint32_t io_count(const edgert_model *model) { return model->input_count + model->output_count; }

static uint64_t io_bytes(const edgert_model *model, uint32_t i) {
  return i < model->input_count ? model->inputs[i].bytes : model->outputs[i - model->input_count].bytes;
}

/* Whether the GPU may work in the host's memory. Steps on the host would have to map it in between. */
static bool shares_memory(const edgert_opencl *gpu) {
  cl_bool unified = 0;
  for (uint32_t i = 0; i < gpu->part->step_count; i++)
    if (gpu->part->steps[i].kind == EDGERT_GPU_HOST) return false;
  return gpu->cl->clGetDeviceInfo(gpu->device, CL_DEVICE_HOST_UNIFIED_MEMORY, sizeof unified, &unified, NULL) ==
             CL_SUCCESS && unified;
}

static bool has_extension(const edgert_opencl *gpu, const char *name) {
  size_t size = 0;
  bool found = false;
  if (gpu->cl->clGetDeviceInfo(gpu->device, CL_DEVICE_EXTENSIONS, 0, NULL, &size) != CL_SUCCESS) return false;
  char *all = calloc(1, size + 1);
  if (all && gpu->cl->clGetDeviceInfo(gpu->device, CL_DEVICE_EXTENSIONS, size, all, NULL) == CL_SUCCESS)
    found = strstr(all, name) != NULL;
  free(all);
  return found;
}

/* ARM's driver copies what it is given as CL_MEM_USE_HOST_PTR, and works in what is imported. */
static edgert_import_fn find_import(const edgert_opencl *gpu) {
  cl_platform_id platform;
  if (!has_extension(gpu, "cl_arm_import_memory")) return NULL;
  if (gpu->cl->clGetDeviceInfo(gpu->device, CL_DEVICE_PLATFORM, sizeof platform, &platform, NULL) != CL_SUCCESS)
    return NULL;
  void *found = gpu->cl->clGetExtensionFunctionAddressForPlatform(platform, "clImportMemoryARM");
  edgert_import_fn import;
  memcpy(&import, &found, sizeof import); /* C has no cast from an object's pointer to a function's */
  return import;
}

/* A buffer over `bytes` of the host's memory; NULL where the driver makes none. */
static cl_mem share(const edgert_opencl *gpu, void *host, uint64_t bytes) {
  const intptr_t properties[] = {CL_IMPORT_TYPE_ARM, CL_IMPORT_TYPE_HOST_ARM, 0};
  cl_int error;
  if (gpu->import) return gpu->import(gpu->context, CL_MEM_READ_WRITE, properties, host, (size_t)bytes, &error);
  return gpu->cl->clCreateBuffer(gpu->context, CL_MEM_READ_WRITE | CL_MEM_USE_HOST_PTR, (size_t)bytes, host, &error);
}

/* Whether `host`, of input or output `i`, shares no byte with another one: OpenCL leaves undefined what becomes of
 * two buffers over the same memory. */
static bool stands_alone(const edgert_opencl *gpu, void *const *io, uint32_t i) {
  uintptr_t start = (uintptr_t)io[i], end = start + (size_t)io_bytes(gpu->model, i);
  for (uint32_t k = 0; k < io_count(gpu->model); k++) {
    uintptr_t other = (uintptr_t)io[k];
    if (k != i && io[k] && start < other + (size_t)io_bytes(gpu->model, k) && other < end) return false;
  }
  return true;
}

/* Whether the GPU can work in io[i] itself. It has the host's cache lines whole, so that nothing else is in them. */
static bool can_share(const edgert_opencl *gpu, void *const *io, uint32_t i) {
  return gpu->shares && io[i] && io_bytes(gpu->model, i) > 0 && (uintptr_t)io[i] % EDGERT_ALIGNMENT == 0 &&
         stands_alone(gpu, io, i);
}

/* Kernels that have been made take the buffer of input or output `i` as it is now. */
static edgert_status set_arguments(const edgert_opencl *gpu, uint32_t i) {
  for (uint32_t s = 0; s < gpu->part->step_count; s++) {
    const edgert_gpu_step *step = &gpu->part->steps[s];
    for (uint32_t k = 0; gpu->kernels[s] && k < step->operand_count; k++) {
      const edgert_gpu_operand *operand = &gpu->part->operands[step->operand + k];
      if (operand->space != EDGERT_GPU_IO || operand->io != i) continue;
      cl_int error = gpu->cl->clSetKernelArg(gpu->kernels[s], 2 * k, sizeof gpu->io[i].buffer, &gpu->io[i].buffer);
      if (error != CL_SUCCESS) return edgert_opencl_refused("clSetKernelArg", error);
    }
  }
  return EDGERT_OK;
}

void edgert_opencl_forget(edgert_opencl *gpu, uint32_t i) {
  edgert_io *io = &gpu->io[i];
  if (!io->shared) return;
  if (io->mapped && gpu->cl->clEnqueueUnmapMemObject(gpu->queue, io->buffer, io->mapped, 0, NULL, NULL) == CL_SUCCESS)
    gpu->cl->clFinish(gpu->queue);
  gpu->cl->clReleaseMemObject(io->buffer);
  *io = (edgert_io){0};
}

/* Releases the buffer of input or output `i`, the host's memory or not. */
static void drop(edgert_opencl *gpu, uint32_t i) {
  edgert_opencl_forget(gpu, i);
  if (gpu->io[i].buffer) gpu->cl->clReleaseMemObject(gpu->io[i].buffer);
  gpu->io[i] = (edgert_io){0};
}

/* A buffer over io[i] or, where that cannot be, one to copy it to and from. */
static edgert_status settle(edgert_opencl *gpu, void *const *host, uint32_t i) {
  edgert_io *io = &gpu->io[i];
  uint64_t bytes = io_bytes(gpu->model, i);
  bool shares = can_share(gpu, host, i);
  if (io->buffer && io->shared == (shares ? host[i] : NULL)) return EDGERT_OK;
  drop(gpu, i);
  if (shares) io->buffer = share(gpu, host[i], bytes);
  if (io->buffer) io->shared = host[i];
  if (shares && !io->buffer) gpu->shares = false;
  edgert_status status = io->buffer ? EDGERT_OK : make_buffer(gpu, CL_MEM_READ_WRITE, bytes, NULL, &io->buffer);
  return status == EDGERT_OK ? set_arguments(gpu, i) : status;
}

edgert_status edgert_opencl_settle_io(edgert_opencl *gpu, void *const *host) {
  edgert_status status = EDGERT_OK;
  for (uint32_t i = 0; status == EDGERT_OK && i < io_count(gpu->model); i++) status = settle(gpu, host, i);
  return status;
}

edgert_status edgert_opencl_give_to_host(edgert_opencl *gpu, cl_command_queue queue) {
  cl_int error = CL_SUCCESS;
  for (uint32_t i = 0; error == CL_SUCCESS && i < io_count(gpu->model); i++) {
    edgert_io *io = &gpu->io[i];
    if (io->shared && !io->mapped)
      io->mapped = gpu->cl->clEnqueueMapBuffer(queue, io->buffer, 0, CL_MAP_READ | CL_MAP_WRITE, 0,
                                               (size_t)io_bytes(gpu->model, i), 0, NULL, NULL, &error);
  }
  if (error != CL_SUCCESS) return edgert_opencl_refused("clEnqueueMapBuffer", error);
  error = gpu->cl->clFinish(queue);
  return error == CL_SUCCESS ? EDGERT_OK : edgert_opencl_refused("clFinish", error);
}

edgert_status edgert_opencl_take_from_host(edgert_opencl *gpu, cl_command_queue queue) {
  cl_int error = CL_SUCCESS;
  for (uint32_t i = 0; error == CL_SUCCESS && i < io_count(gpu->model); i++) {
    edgert_io *io = &gpu->io[i];
    if (io->mapped) error = gpu->cl->clEnqueueUnmapMemObject(queue, io->buffer, io->mapped, 0, NULL, NULL);
    if (error == CL_SUCCESS) io->mapped = NULL;
  }
  return error == CL_SUCCESS ? EDGERT_OK : edgert_opencl_refused("clEnqueueUnmapMemObject", error);
}

/* ---- all of it ---- */

edgert_status edgert_opencl_make_memory(edgert_opencl *gpu) {
  const edgert_gpu *part = gpu->part;
  const void *weights = part->weights_bytes > 0 ? part->weights : NULL;
  cl_bitfield flags = CL_MEM_READ_ONLY | (weights ? CL_MEM_COPY_HOST_PTR : 0u);
  gpu->io = calloc(io_count(gpu->model) + 1u, sizeof *gpu->io);
  if (!gpu->io) return edgert_fail(EDGERT_ERROR_MEMORY, "the system has no memory for a session on the GPU");
  gpu->shares = shares_memory(gpu);
  gpu->import = gpu->shares ? find_import(gpu) : NULL;
  edgert_status status = make_buffer(gpu, CL_MEM_READ_WRITE, part->arena_bytes, NULL, &gpu->arena);
  if (status == EDGERT_OK) status = make_places(gpu);
  if (status == EDGERT_OK) status = make_buffer(gpu, flags, part->weights_bytes, weights, &gpu->weights);
  if (status == EDGERT_OK) make_images(gpu);
  return status;
}

uint32_t edgert_opencl_place(const edgert_opencl *gpu, const edgert_gpu_operand *operand, cl_mem *buffer) {
  const edgert_place *place = gpu->places ? place_of(gpu, operand) : NULL;
  uint32_t offset = (uint32_t)operand->offset;
  switch (operand->space) {
    case EDGERT_GPU_IO: *buffer = gpu->io[operand->io].buffer; return offset;
    case EDGERT_GPU_WEIGHTS:
      *buffer = operand->io != EDGERT_GPU_NO_IMAGE && gpu->uses_images ? gpu->images[operand->io] : gpu->weights;
      return offset;
    default:
      *buffer = place && place->buffer ? place->buffer : gpu->arena;
      return place && place->buffer ? offset - (uint32_t)place->start : offset;
  }
}

void edgert_opencl_release_memory(edgert_opencl *gpu) {
  const opencl_functions *cl = gpu->cl;
  for (uint32_t i = 0; gpu->io && i < io_count(gpu->model); i++) drop(gpu, i);
  for (uint32_t i = 0; gpu->places && i < gpu->place_count; i++)
    if (gpu->places[i].buffer) cl->clReleaseMemObject(gpu->places[i].buffer);
  release_images(gpu);
  if (gpu->arena) cl->clReleaseMemObject(gpu->arena);
  if (gpu->weights) cl->clReleaseMemObject(gpu->weights);
  free(gpu->places);
  free(gpu->io);
}

#endif
