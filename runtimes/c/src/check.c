/* Checks of a descriptor: none of its pointers is followed before the one that counts its targets. */
#include "internal.h"

#include <string.h>

#define MAX_WIDTHS 8u
#define MAX_COUNT (1u << 20) /* of tensors or steps: far above any model, far below any overflow */

const edgert_tests *edgert_tests_of(const edgert_model *model) {
  const bool has_place = model->struct_bytes >= offsetof(edgert_model, tests) + sizeof model->tests;
  return has_place && model->tests && model->tests->count ? model->tests : NULL;
}

uint32_t edgert_dtype_bytes(uint32_t dtype) {
  switch (dtype) {
    case EDGERT_UINT8:
    case EDGERT_INT8:
    case EDGERT_BOOL: return 1;
    case EDGERT_UINT16:
    case EDGERT_INT16:
    case EDGERT_FLOAT16: return 2;
    case EDGERT_FLOAT32:
    case EDGERT_INT32:
    case EDGERT_UINT32: return 4;
    case EDGERT_INT64:
    case EDGERT_UINT64:
    case EDGERT_FLOAT64: return 8;
    default: return 0;
  }
}

static edgert_status broken(const edgert_model *model, const char *what) {
  return edgert_fail(EDGERT_ERROR_MODEL, "the descriptor of model '%s' is broken: %s; compile the model again",
                     model->name ? model->name : "?", what);
}

static bool shape_fits(const edgert_tensor *tensor) {
  uint64_t bytes = edgert_dtype_bytes(tensor->dtype);
  for (uint32_t axis = 0; axis < tensor->rank; axis++) {
    uint64_t extent = (uint64_t)tensor->shape[axis];
    if (tensor->shape[axis] < 0 || (extent != 0 && bytes > UINT64_MAX / extent)) return false;
    bytes *= extent;
  }
  return bytes == tensor->bytes;
}

static edgert_status check_tensors(const edgert_model *model, const edgert_tensor *tensors, uint32_t count) {
  if (count > MAX_COUNT || (count > 0 && !tensors)) return broken(model, "its inputs or outputs are missing");
  for (uint32_t i = 0; i < count; i++) {
    if (!tensors[i].name) return broken(model, "an input or output has no name");
    if (tensors[i].rank > EDGERT_MAX_RANK) return broken(model, "an input or output has more than 8 axes");
    if (edgert_dtype_bytes(tensors[i].dtype) == 0) return broken(model, "an input or output has an unknown type");
    if (!shape_fits(&tensors[i])) return broken(model, "an input's or output's size is not that of its shape");
  }
  return EDGERT_OK;
}

static edgert_status check_steps(const edgert_model *model) {
  if (model->step_count > MAX_COUNT || (model->step_count > 0 && !model->steps))
    return broken(model, "its steps are missing");
  if (model->strings_bytes > 0 && (!model->strings || model->strings[model->strings_bytes - 1] != 0))
    return broken(model, "the names of its steps are missing");
  for (uint32_t i = 0; i < model->step_count; i++) {
    const edgert_step *step = &model->steps[i];
    if (!step->run || step->name >= model->strings_bytes || step->kernel >= model->strings_bytes)
      return broken(model, "a step has no function or no name");
  }
  return EDGERT_OK;
}

/* The file's digest, or the program around it, vouches for what the tables hold; this is against wrong pointers. */
static edgert_status check_tests(const edgert_model *model) {
  const edgert_tests *tests = edgert_tests_of(model);
  if (!tests) return EDGERT_OK;
  if (tests->count > MAX_COUNT || !tests->regions || !tests->expected || !tests->inputs || !tests->outputs)
    return broken(model, "its tests are missing");
  for (uint32_t i = 0; i < model->step_count; i++) {
    const edgert_region *region = &tests->regions[i];
    if (region->dtype && (!edgert_dtype_bytes(region->dtype) || region->place > model->input_count + model->output_count))
      return broken(model, "a step's test has an unknown type or place");
  }
  return EDGERT_OK;
}

const edgert_gpu *edgert_model_gpu(const edgert_model *model) {
  return model->struct_bytes >= offsetof(edgert_model, gpu) + sizeof model->gpu ? model->gpu : NULL;
}

uint64_t edgert_model_state_bytes(const edgert_model *model) {
  const size_t end = offsetof(edgert_model, state_bytes) + sizeof model->state_bytes;
  return model->struct_bytes >= end ? model->state_bytes : 0;
}

uint32_t edgert_width_count(const edgert_model *model) {
  const size_t end = offsetof(edgert_model, width_count) + sizeof model->width_count;
  return model->struct_bytes >= end && model->widths ? model->width_count : 0;
}

static edgert_status check_widths(const edgert_model *model) {
  for (uint32_t i = 0; i < edgert_width_count(model); i++) {
    if (i >= MAX_WIDTHS || !model->widths[i].bits || !model->widths[i].run)
      return broken(model, "a width of its weights has no bits or no functions");
    for (uint32_t step = 0; step < model->step_count; step++)
      if (!model->widths[i].run[step]) return broken(model, "a step has no function at a width of its weights");
  }
  return EDGERT_OK;
}

static bool operand_fits(const edgert_model *model, const edgert_gpu *gpu, const edgert_gpu_operand *operand) {
  uint64_t size = operand->space == EDGERT_GPU_WEIGHTS ? gpu->weights_bytes : gpu->arena_bytes;
  if (operand->space > EDGERT_GPU_IO) return false;
  if (operand->space == EDGERT_GPU_WEIGHTS && operand->io > EDGERT_GPU_BYTES) return false;
  if (operand->space == EDGERT_GPU_ARENA && operand->io > gpu->operand_count) return false;
  if (operand->space == EDGERT_GPU_IO) {
    if (operand->io >= model->input_count + model->output_count) return false;
    size = operand->io < model->input_count ? model->inputs[operand->io].bytes
                                            : model->outputs[operand->io - model->input_count].bytes;
  }
  return operand->bytes <= size && operand->offset <= size - operand->bytes && operand->offset <= UINT32_MAX;
}

static bool gpu_step_fits(const edgert_model *model, const edgert_gpu *gpu, const edgert_gpu_step *step) {
  if (step->name >= gpu->strings_bytes || step->kernel >= gpu->strings_bytes || step->function >= gpu->strings_bytes)
    return false;
  if (step->operand > gpu->operand_count || step->operand_count > gpu->operand_count - step->operand) return false;
  switch (step->kind) {
    case EDGERT_GPU_KERNEL: return step->items[0] > 0 && step->items[1] > 0 && step->items[2] > 0;
    case EDGERT_GPU_HOST: return step->host < model->step_count && gpu->arena_bytes <= model->arena_bytes;
    case EDGERT_GPU_TO_DEVICE:
    case EDGERT_GPU_TO_HOST: return step->operand_count == 1 && gpu->operands[step->operand].space != EDGERT_GPU_WEIGHTS;
    default: return false;
  }
}

static edgert_status check_gpu(const edgert_model *model) {
  const edgert_gpu *gpu = edgert_model_gpu(model);
  if (!gpu) return EDGERT_OK;
  if (gpu->struct_bytes < sizeof *gpu || gpu->step_count > MAX_COUNT || gpu->operand_count > 64u * MAX_COUNT)
    return broken(model, "its part for a GPU is cut short");
  if ((gpu->step_count > 0 && !gpu->steps) || (gpu->operand_count > 0 && !gpu->operands) || !gpu->source)
    return broken(model, "its part for a GPU lacks its steps or its source");
  if (!gpu->strings || gpu->strings_bytes == 0 || gpu->strings[gpu->strings_bytes - 1] != 0 ||
      (gpu->weights_bytes > 0 && !gpu->weights) || gpu->source_bytes > SIZE_MAX || gpu->weights_bytes > SIZE_MAX)
    return broken(model, "its part for a GPU lacks its names or its weights");
  for (uint64_t i = 0; i < gpu->operand_count; i++)
    if (!operand_fits(model, gpu, &gpu->operands[i])) return broken(model, "an operand on the GPU leaves its buffer");
  for (uint32_t i = 0; i < gpu->step_count; i++)
    if (!gpu_step_fits(model, gpu, &gpu->steps[i])) return broken(model, "a step on the GPU has no name or operand");
  return EDGERT_OK;
}

static edgert_status check_fields(const edgert_model *model) {
  uint32_t alignment = model->arena_alignment;
  if (!model->name || !model->target || !model->triple) return broken(model, "its name or target is missing");
  if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > 65536)
    return broken(model, "the arena's alignment is not a power of two up to 65536");
  if (model->weights_bytes > 0 && !model->weights && !edgert_model_coded(model))
    return broken(model, "its weights are missing");
  if (model->weights && edgert_model_coded(model)) return broken(model, "its weights are there twice");
  if (edgert_model_state_bytes(model) > model->arena_bytes) return broken(model, "its states leave the arena");
  if (model->manifest_bytes > 0 && !model->manifest) return broken(model, "its manifest is missing");
  if (model->weights_bytes > SIZE_MAX || model->manifest_bytes > SIZE_MAX ||
      (edgert_model_coded(model) && model->coded_bytes > SIZE_MAX))
    return broken(model, "its weights are larger than the address space");
  edgert_status status = check_tensors(model, model->inputs, model->input_count);
  if (status == EDGERT_OK) status = check_tensors(model, model->outputs, model->output_count);
  if (status == EDGERT_OK) status = check_steps(model);
  if (status == EDGERT_OK) status = check_widths(model);
  if (status == EDGERT_OK) status = check_gpu(model);
  return status == EDGERT_OK ? check_tests(model) : status;
}

static edgert_status check_abi(const edgert_model *model) {
  if (model->abi_version == EDGERT_ABI_VERSION && model->struct_bytes >= EDGERT_MODEL_LEAST_BYTES) return EDGERT_OK;
  return edgert_fail(EDGERT_ERROR_ABI,
                     "the model has descriptor version %u of %u bytes and libedgert %s reads version %u of %u "
                     "bytes; compile the model again with the edgec that this library came with",
                     (unsigned)model->abi_version, (unsigned)model->struct_bytes, EDGERT_VERSION, EDGERT_ABI_VERSION,
                     (unsigned)EDGERT_MODEL_LEAST_BYTES);
}

static edgert_status check_cpu(const edgert_model *model) {
  char missing[160];
  if (model->arch != edgert_cpu_arch())
    return edgert_fail(EDGERT_ERROR_ARCH,
                       "the model was built for %s and this machine is %s; compile it again with --target host "
                       "or with this machine's target",
                       edgert_arch_name(model->arch), edgert_arch_name(edgert_cpu_arch()));
  uint32_t lacking = model->cpu_features & ~edgert_cpu_features();
  if (lacking == 0) return EDGERT_OK;
  edgert_feature_names(lacking, missing, sizeof missing);
  return edgert_fail(EDGERT_ERROR_CPU,
                     "the model needs CPU features that this machine lacks: %s; compile it again for this "
                     "machine's target (see: edgec targets)",
                     missing);
}

static edgert_status check_content(const edgert_model *model) {
  edgert_sha256 hash;
  uint8_t digest[32];
  const uint8_t *coded = edgert_model_coded(model);
  edgert_sha256_start(&hash);
  edgert_sha256_add(&hash, coded ? coded : model->weights, (size_t)(coded ? model->coded_bytes : model->weights_bytes));
  edgert_sha256_add(&hash, model->manifest, (size_t)model->manifest_bytes);
  edgert_sha256_finish(&hash, digest);
  if (memcmp(digest, model->sha256, sizeof digest) == 0) return EDGERT_OK;
  return edgert_fail(EDGERT_ERROR_DIGEST,
                     "the weights or the manifest of model '%s' are not those that edgec wrote: their SHA-256 "
                     "differs from the descriptor's; compile the model again or copy it anew",
                     model->name);
}

edgert_status edgert_check_model(const edgert_model *model, bool check_digest) {
  edgert_status status = check_abi(model);
  if (status == EDGERT_OK) status = check_cpu(model);
  if (status == EDGERT_OK) status = check_fields(model);
  if (status == EDGERT_OK && check_digest) status = check_content(model);
  return status;
}
