/* Options, memory and descriptors that must be refused, each with its own status and a useful sentence. */
#include "toy.h"

#include "internal.h"

static const edgert_model *const toy = &edgert_model_v1;

static edgert_status try_model(const edgert_model *model) {
  edgert_session *session = (edgert_session *)(uintptr_t)1;
  edgert_status status = edgert_open_model(model, NULL, &session);
  CHECK(status != EDGERT_OK && session == NULL);
  return status;
}

static edgert_status try_options(const edgert_options *options) {
  edgert_session *session = (edgert_session *)(uintptr_t)1;
  edgert_status status = edgert_open_model(toy, options, &session);
  CHECK(status != EDGERT_OK && session == NULL);
  return status;
}

static void check_options(void) {
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  uint64_t required;
  options.struct_bytes = 8;
  CHECK_REFUSED(try_options(&options), EDGERT_ERROR_ARGUMENT, "EDGERT_OPTIONS_DEFAULT");
  options = (edgert_options)EDGERT_OPTIONS_DEFAULT;
  options.threads = EDGERT_MAX_THREADS + 1;
  CHECK_REFUSED(try_options(&options), EDGERT_ERROR_ARGUMENT, "65 threads");
  options.threads = 1;
  options.flags = 1u << 30;
  CHECK_REFUSED(try_options(&options), EDGERT_ERROR_ARGUMENT, "0x40000000");
  CHECK_STATUS(edgert_memory_required(toy, &options, &required), EDGERT_ERROR_ARGUMENT);
  CHECK_STATUS(edgert_memory_required(NULL, NULL, &required), EDGERT_ERROR_ARGUMENT);
  CHECK_STATUS(edgert_open_model(toy, NULL, NULL), EDGERT_ERROR_ARGUMENT);
  CHECK_STATUS(try_model(NULL), EDGERT_ERROR_ARGUMENT);
}

/* Options of a newer header are taken as long as what this library does not know says nothing. */
static void check_newer_options(void) {
  struct {
    edgert_options known;
    uint64_t unknown;
  } newer = {EDGERT_OPTIONS_DEFAULT, 0};
  edgert_session *session;
  newer.known.struct_bytes = sizeof newer;
  CHECK_OK(edgert_open_model(toy, &newer.known, &session));
  toy_run(session, 3);
  edgert_close(session);
  newer.unknown = 1;
  CHECK_REFUSED(try_options(&newer.known), EDGERT_ERROR_ARGUMENT, "newer");
}

static void check_memory(void) {
  static _Alignas(128) uint8_t memory[16384];
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  uint64_t required;
  CHECK_OK(edgert_memory_required(toy, NULL, &required));
  options.memory = memory;
  options.memory_bytes = required - 1;
  CHECK_REFUSED(try_options(&options), EDGERT_ERROR_ARENA, "edgert_memory_required");
  options.memory = memory + 64;
  options.memory_bytes = required;
  CHECK_REFUSED(try_options(&options), EDGERT_ERROR_ARENA, "not aligned to 128");
}

static void check_machine(void) {
  edgert_model model = *toy;
  model.abi_version = EDGERT_ABI_VERSION + 1;
  CHECK_REFUSED(try_model(&model), EDGERT_ERROR_ABI, "version 2");
  model = *toy;
  model.struct_bytes = EDGERT_MODEL_LEAST_BYTES - 8;
  CHECK_STATUS(try_model(&model), EDGERT_ERROR_ABI);
  model = *toy;
  model.arch = toy->arch == EDGERT_X86_64 ? EDGERT_AARCH64 : EDGERT_X86_64;
  CHECK_REFUSED(try_model(&model), EDGERT_ERROR_ARCH, toy->arch == EDGERT_X86_64 ? "for aarch64" : "for x86_64");
  model = *toy;
  model.cpu_features = EDGERT_X86_AVX512VNNI | EDGERT_ARM_DOTPROD | 1u << 30;
  CHECK_REFUSED(try_model(&model), EDGERT_ERROR_CPU, "unknown to this library (0x40000000)");
  CHECK(strstr(edgert_last_error(), toy->arch == EDGERT_X86_64 ? "dotprod" : "avx512vnni"));
}

/* A descriptor from before there was a part for a GPU has no such field to look at. */
static void check_older_model(void) {
  edgert_model model = *toy;
  edgert_session *session;
  model.struct_bytes = EDGERT_MODEL_LEAST_BYTES;
  model.gpu = (const edgert_gpu *)(const void *)&model;
  CHECK_OK(edgert_open_model(&model, NULL, &session));
  CHECK(strcmp(edgert_device(session), "CPU") == 0);
  toy_run(session, 3);
  edgert_close(session);
}

/* A larger descriptor is one with fields appended: it is accepted. */
static void check_newer_model(void) {
  edgert_model model = *toy;
  edgert_session *session;
  model.struct_bytes += 16;
  CHECK_OK(edgert_open_model(&model, NULL, &session));
  toy_run(session, 3);
  edgert_close(session);
}

static void check_own_features(void) {
  edgert_model model = *toy;
  edgert_session *session;
  model.cpu_features = edgert_cpu_features();
  CHECK(toy->arch != EDGERT_AARCH64 || model.cpu_features & EDGERT_ARM_NEON);
  CHECK_OK(edgert_open_model(&model, NULL, &session));
  edgert_close(session);
}

static void check_digest(void) {
  edgert_model model = *toy;
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session;
  model.sha256[31] ^= 1;
  CHECK_REFUSED(try_model(&model), EDGERT_ERROR_DIGEST, "SHA-256");
  options.flags = EDGERT_SKIP_DIGEST;
  CHECK_OK(edgert_open_model(&model, &options, &session));
  edgert_close(session);
  model = *toy;
  model.manifest_bytes--;
  CHECK_STATUS(try_model(&model), EDGERT_ERROR_DIGEST);
}

static void check_broken_tensor(uint64_t bytes, uint32_t rank, uint32_t dtype, int64_t extent, const char *words) {
  edgert_model model = *toy;
  edgert_tensor inputs[2] = {toy->inputs[0], toy->inputs[1]};
  inputs[1].bytes = bytes;
  inputs[1].rank = rank;
  inputs[1].dtype = dtype;
  inputs[1].shape[0] = extent;
  model.inputs = inputs;
  CHECK_REFUSED(try_model(&model), EDGERT_ERROR_MODEL, words);
}

static void check_broken_tensors(void) {
  check_broken_tensor(5, 9, EDGERT_INT8, 5, "more than 8 axes");
  check_broken_tensor(5, 1, 8, 5, "unknown type");
  check_broken_tensor(5, 1, 0, 5, "unknown type");
  check_broken_tensor(6, 1, EDGERT_INT8, 5, "size");
  check_broken_tensor(5, 1, EDGERT_INT16, 5, "size");
  check_broken_tensor(5, 1, EDGERT_INT8, -5, "size");
  check_broken_tensor(0, 1, EDGERT_INT16, INT64_MIN, "size");
  check_broken_tensor(5, 2, EDGERT_INT8, INT64_MAX, "size");
}

#define CHECK_BROKEN(field, value)                      \
  do {                                                  \
    edgert_model model_ = *toy;                         \
    model_.field = value;                               \
    CHECK_STATUS(try_model(&model_), EDGERT_ERROR_MODEL); \
  } while (0)

static void check_broken_fields(void) {
  CHECK_BROKEN(name, NULL);
  CHECK_BROKEN(target, NULL);
  CHECK_BROKEN(triple, NULL);
  CHECK_BROKEN(inputs, NULL);
  CHECK_BROKEN(outputs, NULL);
  CHECK_BROKEN(steps, NULL);
  CHECK_BROKEN(weights, NULL);
  CHECK_BROKEN(manifest, NULL);
  CHECK_BROKEN(input_count, UINT32_MAX);
  CHECK_BROKEN(step_count, UINT32_MAX);
  CHECK_BROKEN(arena_alignment, 0);
  CHECK_BROKEN(arena_alignment, 48);
  CHECK_BROKEN(arena_alignment, 1u << 20);
}

static void check_broken_steps(void) {
  edgert_model model = *toy;
  edgert_step steps[3] = {toy->steps[0], toy->steps[1], toy->steps[2]};
  model.steps = steps;
  steps[2].run = NULL;
  CHECK_STATUS(try_model(&model), EDGERT_ERROR_MODEL);
  steps[2] = toy->steps[2];
  steps[1].name = (uint32_t)toy->strings_bytes;
  CHECK_STATUS(try_model(&model), EDGERT_ERROR_MODEL);
  steps[1] = toy->steps[1];
  model.strings_bytes -= 1; /* its last name does not end */
  CHECK_STATUS(try_model(&model), EDGERT_ERROR_MODEL);
}

static const edgert_gpu_operand gpu_operand = {EDGERT_GPU_IO, 0, 8, 4};
static const edgert_gpu_step gpu_step = {EDGERT_GPU_TO_DEVICE, 0, 0, 0, 0, 1, {1, 1, 1}, {0, 0, 0}, 0, 0, 0};
static const edgert_gpu gpu_part = {sizeof(edgert_gpu), 1, &gpu_step, &gpu_operand, 1, "copy", 5, "", 0, NULL, 0, 0};

/* With EDGERT_ON_CPU no driver is asked: what is told is the check of the descriptor alone. */
static edgert_status try_gpu(const edgert_gpu *gpu) {
  edgert_model model = *toy;
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session;
  model.gpu = gpu;
  options.flags = EDGERT_ON_CPU;
  edgert_status status = edgert_open_model(&model, &options, &session);
  edgert_close(session);
  return status;
}

#define CHECK_BROKEN_GPU(field, value)                     \
  do {                                                     \
    edgert_gpu gpu_ = gpu_part;                            \
    gpu_.field = value;                                    \
    CHECK_STATUS(try_gpu(&gpu_), EDGERT_ERROR_MODEL);      \
  } while (0)

#define CHECK_BROKEN_GPU_STEP(field, value)                \
  do {                                                     \
    edgert_gpu_step step_ = gpu_step;                      \
    step_.field = value;                                   \
    CHECK_BROKEN_GPU(steps, &step_);                       \
  } while (0)

#define CHECK_BROKEN_GPU_OPERAND(field, value)             \
  do {                                                     \
    edgert_gpu_operand operand_ = gpu_operand;             \
    operand_.field = value;                                \
    CHECK_BROKEN_GPU(operands, &operand_);                 \
  } while (0)

static void check_broken_gpu(void) {
  CHECK_OK(try_gpu(&gpu_part));
  CHECK_BROKEN_GPU(struct_bytes, 8);
  CHECK_BROKEN_GPU(steps, NULL);
  CHECK_BROKEN_GPU(operands, NULL);
  CHECK_BROKEN_GPU(source, NULL);
  CHECK_BROKEN_GPU(strings, NULL);
  CHECK_BROKEN_GPU(strings_bytes, 3);
  CHECK_BROKEN_GPU(weights_bytes, 1);
  CHECK_BROKEN_GPU(step_count, UINT32_MAX);
  CHECK_BROKEN_GPU_STEP(kind, 9);
  CHECK_BROKEN_GPU_STEP(name, 5);
  CHECK_BROKEN_GPU_STEP(operand, 2);
  CHECK_BROKEN_GPU_STEP(operand_count, 0);
  CHECK_BROKEN_GPU_OPERAND(space, EDGERT_GPU_WEIGHTS);
  CHECK_BROKEN_GPU_OPERAND(space, 7);
  CHECK_BROKEN_GPU_OPERAND(io, 4);
  CHECK_BROKEN_GPU_OPERAND(offset, UINT64_MAX);
  CHECK_BROKEN_GPU_OPERAND(bytes, UINT64_MAX);

  edgert_gpu_operand in_arena = {EDGERT_GPU_ARENA, 1, 0, 4};
  edgert_gpu with_arena = gpu_part;
  with_arena.operands = &in_arena;
  with_arena.arena_bytes = 4;
  CHECK_OK(try_gpu(&with_arena));
  in_arena.io = 2; /* more sub-buffers than operands */
  CHECK_STATUS(try_gpu(&with_arena), EDGERT_ERROR_MODEL);
}

static void check_huge(void) {
  edgert_model model = *toy;
  model.arena_bytes = UINT64_MAX;
  CHECK_STATUS(try_model(&model), EDGERT_ERROR_MEMORY);
  model.arena_bytes = SIZE_MAX / 4;
  CHECK_REFUSED(try_model(&model), EDGERT_ERROR_MEMORY, "bytes of memory");
}

static void check_names(void) {
  for (int status = EDGERT_OK; status <= EDGERT_ERROR_GPU_BUILD; status++)
    CHECK(strncmp(edgert_status_name((edgert_status)status), "EDGERT_", 7) == 0);
  CHECK(strcmp(edgert_status_name((edgert_status)(EDGERT_ERROR_SIGNATURE + 1)), "unknown status") == 0);
  CHECK(strcmp(edgert_status_name((edgert_status)-1), "unknown status") == 0);
}

int main(void) {
  check_options();
  check_newer_options();
  check_memory();
  check_machine();
  check_older_model();
  check_newer_model();
  check_broken_gpu();
  check_own_features();
  check_digest();
  check_broken_tensors();
  check_broken_fields();
  check_broken_steps();
  check_huge();
  check_names();
  return 0;
}
