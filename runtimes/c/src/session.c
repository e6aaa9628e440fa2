/* Sessions: one block of memory, the bindings, and the walk over the steps. */
#define _POSIX_C_SOURCE 200809L
#include "internal.h"

#include <string.h>

#if EDGERT_WITH_HEAP
#include <stdlib.h>
#endif

/* Offsets within the block; the session itself stands at 0. */
typedef struct layout {
  size_t io, own, stats, pool, buffers, weights, arena, total;
} layout;

/* ---- options ---- */

static bool all_zero(const uint8_t *bytes, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (bytes[i]) return false;
  return true;
}

/* The caller's options as this library knows them. A larger struct comes from a newer header: its additional
 * fields may only say nothing. */
static edgert_status read_options(const edgert_options *given, edgert_options *options) {
  const uint32_t flags = EDGERT_SKIP_DIGEST | EDGERT_PIN_BIG_CORES | EDGERT_NO_IO_BUFFERS |
                         EDGERT_ON_CPU | EDGERT_FALLBACK_CPU;
  *options = (edgert_options)EDGERT_OPTIONS_DEFAULT;
  if (!given) return EDGERT_OK;
  if (given->struct_bytes < sizeof *options)
    return edgert_fail(EDGERT_ERROR_ARGUMENT, "options.struct_bytes is %u; start from EDGERT_OPTIONS_DEFAULT",
                       (unsigned)given->struct_bytes);
  if (!all_zero((const uint8_t *)given + sizeof *options, given->struct_bytes - sizeof *options))
    return edgert_fail(EDGERT_ERROR_ARGUMENT, "the options ask for more than libedgert %s can do; use a newer "
                       "library", EDGERT_VERSION);
  *options = *given;
  if (options->threads == 0) options->threads = 1;
  if (options->threads > EDGERT_MAX_THREADS)
    return edgert_fail(EDGERT_ERROR_ARGUMENT, "%u threads were asked for; at most %u are possible",
                       (unsigned)options->threads, EDGERT_MAX_THREADS);
  if (options->flags & ~flags || options->reserved)
    return edgert_fail(EDGERT_ERROR_ARGUMENT, "options.flags 0x%x has bits that libedgert %s does not know",
                       (unsigned)(options->flags & ~flags), EDGERT_VERSION);
  return EDGERT_OK;
}

/* ---- memory ---- */

uint32_t edgert_memory_alignment(const edgert_model *model) {
  uint32_t wanted = model ? model->arena_alignment : 0;
  return wanted > EDGERT_ALIGNMENT ? wanted : EDGERT_ALIGNMENT;
}

/* Takes `bytes` after `*used`, aligned; sets `*used` to SIZE_MAX once the sum overflows. */
static size_t take(size_t *used, uint64_t bytes, size_t alignment) {
  size_t start = (*used + alignment - 1) & ~(alignment - 1);
  bool overflow = *used > SIZE_MAX - alignment || bytes > SIZE_MAX - start;
  *used = overflow ? SIZE_MAX : start + (size_t)bytes;
  return start;
}

static void take_tensors(size_t *used, const edgert_tensor *tensors, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) take(used, tensors[i].bytes, EDGERT_ALIGNMENT);
}

/* A session counts steps of the processor or of the GPU. */
static uint32_t most_steps(const edgert_model *model) {
  const edgert_gpu *gpu = edgert_model_gpu(model);
  return gpu && gpu->step_count > model->step_count ? gpu->step_count : model->step_count;
}

static edgert_status plan(const edgert_model *model, const edgert_options *options, uint64_t arena_bytes,
                          layout *place) {
  size_t used = sizeof(edgert_session);
  uint64_t pointers = ((uint64_t)model->input_count + model->output_count) * sizeof(void *);
  place->io = take(&used, pointers, sizeof(void *));
  place->own = take(&used, pointers, sizeof(void *));
  place->stats = take(&used, (uint64_t)most_steps(model) * sizeof(edgert_step_stats), sizeof(uint64_t));
  place->pool = take(&used, edgert_pool_bytes(options->threads), EDGERT_ALIGNMENT);
  place->buffers = take(&used, 0, EDGERT_ALIGNMENT);
  if (!(options->flags & EDGERT_NO_IO_BUFFERS)) {
    take_tensors(&used, model->inputs, model->input_count);
    take_tensors(&used, model->outputs, model->output_count);
  }
  place->weights = take(&used, edgert_model_coded(model) ? model->weights_bytes : 0, EDGERT_ALIGNMENT);
  place->arena = take(&used, arena_bytes, edgert_memory_alignment(model));
  place->total = used;
  if (used != SIZE_MAX) return EDGERT_OK;
  return edgert_fail(EDGERT_ERROR_MEMORY, "model '%s' needs more memory than this machine can address",
                     model->name);
}

edgert_status edgert_memory_required(const edgert_model *model, const edgert_options *options, uint64_t *bytes) {
  edgert_options known;
  layout place;
  if (!model || !bytes) return edgert_fail(EDGERT_ERROR_ARGUMENT, "edgert_memory_required: an argument is NULL");
  edgert_status status = read_options(options, &known);
  if (status == EDGERT_OK) status = edgert_check_model(model, false);
  if (status == EDGERT_OK) status = plan(model, &known, model->arena_bytes, &place);
  if (status == EDGERT_OK) *bytes = place.total;
  return status;
}

static edgert_status check_memory(const edgert_model *model, const edgert_options *options, size_t total) {
  uint32_t alignment = edgert_memory_alignment(model);
  if (options->memory_bytes < total)
    return edgert_fail(EDGERT_ERROR_ARENA,
                       "the memory given to model '%s' has %llu bytes and it needs %llu; ask "
                       "edgert_memory_required",
                       model->name, (unsigned long long)options->memory_bytes, (unsigned long long)total);
  if ((uintptr_t)options->memory % alignment != 0)
    return edgert_fail(EDGERT_ERROR_ARENA,
                       "the memory given to model '%s' at %p is not aligned to %u bytes; ask "
                       "edgert_memory_alignment",
                       model->name, options->memory, (unsigned)alignment);
  return EDGERT_OK;
}

#if EDGERT_WITH_HEAP

static edgert_status allocate(const edgert_model *model, size_t total, void **block) {
  if (posix_memalign(block, edgert_memory_alignment(model), total) == 0) return EDGERT_OK;
  *block = NULL;
  return edgert_fail(EDGERT_ERROR_MEMORY, "model '%s' needs %llu bytes of memory and the system has not that much",
                     model->name, (unsigned long long)total);
}

static void release(void *block) { free(block); }

#else

static edgert_status allocate(const edgert_model *model, size_t total, void **block) {
  (void)block;
  return edgert_fail(EDGERT_ERROR_ARENA,
                     "model '%s' needs %llu bytes of memory and this libedgert was built without a heap; give them as "
                     "options.memory",
                     model->name, (unsigned long long)total);
}

static void release(void *block) { (void)block; }

#endif

static edgert_status get_block(const edgert_model *model, const edgert_options *options, size_t total,
                               void **block) {
  *block = options->memory;
  return options->memory ? check_memory(model, options, total) : allocate(model, total, block);
}

/* ---- open and close ---- */

/* Gives every tensor its own buffer, zeroed, from `buffer` on. */
static uint8_t *give_buffers(void **own, const edgert_tensor *tensors, uint32_t count, uint8_t *buffer) {
  for (uint32_t i = 0; i < count; i++) {
    size_t bytes = (size_t)tensors[i].bytes;
    own[i] = buffer;
    memset(buffer, 0, bytes);
    buffer += (bytes + EDGERT_ALIGNMENT - 1) & ~(size_t)(EDGERT_ALIGNMENT - 1);
  }
  return buffer;
}

static edgert_session *build(const edgert_model *model, const edgert_options *options, const layout *place,
                             uint8_t *block) {
  edgert_session *session = (edgert_session *)(void *)block;
  memset(block, 0, place->buffers);
  session->model = model;
  session->descriptor = -1;
  session->arena = block + place->arena;
  session->width = edgert_width_count(model) ? model->widths : NULL;
  session->weights = edgert_model_coded(model) ? block + place->weights : model->weights;
  session->io = (void **)(void *)(block + place->io);
  session->own = (void **)(void *)(block + place->own);
  session->stats = (edgert_step_stats *)(void *)(block + place->stats);
  session->pool = (edgert_pool *)(void *)(block + place->pool);
  atomic_flag_clear(&session->running);
  if (!(options->flags & EDGERT_NO_IO_BUFFERS)) {
    uint8_t *next = give_buffers(session->own, model->inputs, model->input_count, block + place->buffers);
    give_buffers(session->own + model->input_count, model->outputs, model->output_count, next);
  }
  memcpy(session->io, session->own, place->own - place->io);
  memset(session->arena, 0, (size_t)edgert_model_state_bytes(model));
  return session;
}

/* The GPU of `options`; NULL where the processor is to do it. */
static edgert_status open_gpu(const edgert_model *model, const edgert_options *options, edgert_opencl **gpu) {
  *gpu = NULL;
  if (!edgert_model_gpu(model) || options->flags & EDGERT_ON_CPU) return EDGERT_OK;
  edgert_status status = edgert_opencl_open(model, gpu);
  return status != EDGERT_OK && options->flags & EDGERT_FALLBACK_CPU ? EDGERT_OK : status;
}

/* With a GPU the host's arena holds only what steps on the host read and write. */
static uint64_t arena_bytes(const edgert_model *model, const edgert_opencl *gpu) {
  const edgert_gpu *part = edgert_model_gpu(model);
  for (uint32_t i = 0; gpu && i < part->step_count; i++)
    if (part->steps[i].kind == EDGERT_GPU_HOST) return model->arena_bytes;
  return gpu ? 0 : model->arena_bytes;
}

/* Closes `gpu` if it fails. */
static edgert_status start_on(edgert_opencl *gpu, const edgert_model *model, const edgert_options *options,
                              edgert_session **session) {
  layout place;
  void *block;
  edgert_status status = plan(model, options, arena_bytes(model, gpu), &place);
  if (status == EDGERT_OK) status = get_block(model, options, place.total, &block);
  if (status != EDGERT_OK) {
    edgert_opencl_close(gpu);
    return status;
  }
  edgert_session *made = build(model, options, &place, block);
  made->block = options->memory ? NULL : block;
  made->gpu = gpu;
  if (edgert_model_coded(model)) status = edgert_decode(model, (uint8_t *)block + place.weights);
  if (status == EDGERT_OK && gpu) status = edgert_opencl_prepare(gpu, made->own);
  if (status == EDGERT_OK)
    status = edgert_pool_start(made->pool, options->threads, (options->flags & EDGERT_PIN_BIG_CORES) != 0);
  if (status == EDGERT_OK) {
    *session = made;
    return EDGERT_OK;
  }
  void *own = made->block;
  edgert_opencl_close(gpu); /* before the block that its buffers may lie in */
  release(own);
  return status;
}

static edgert_status start(const edgert_model *model, const edgert_options *options, edgert_session **session) {
  edgert_opencl *gpu;
  edgert_status status = open_gpu(model, options, &gpu);
  return status == EDGERT_OK ? start_on(gpu, model, options, session) : status;
}

edgert_status edgert_open_model(const edgert_model *model, const edgert_options *options,
                                edgert_session **session) {
  edgert_options known;
  if (!session) return edgert_fail(EDGERT_ERROR_ARGUMENT, "edgert_open_model: session is NULL");
  *session = NULL;
  if (!model) return edgert_fail(EDGERT_ERROR_ARGUMENT, "edgert_open_model: model is NULL");
  edgert_status status = read_options(options, &known);
  if (status == EDGERT_OK) status = edgert_check_model(model, !(known.flags & EDGERT_SKIP_DIGEST));
  return status == EDGERT_OK ? start(model, &known, session) : status;
}

/* Opens the file, of which only a signed one is taken where a key is given. */
static edgert_status open_file(const char *path, const uint8_t *public_key, const edgert_options *options,
                               edgert_session **session) {
  edgert_options known;
  void *library = NULL;
  const edgert_model *model = NULL;
  int descriptor = -1;
  if (!path) return edgert_fail(EDGERT_ERROR_ARGUMENT, "edgert_open: path is NULL");
  edgert_status status = read_options(options, &known);
  if (status != EDGERT_OK) return status;
  status = public_key ? edgert_load_signed(path, public_key, &descriptor, &library, &model)
                      : edgert_load(path, !(known.flags & EDGERT_SKIP_DIGEST), &library, &model);
  if (status != EDGERT_OK) return status;
  status = edgert_check_model(model, false); /* the file's digest covers the model's */
  if (status == EDGERT_OK) status = start(model, &known, session);
  if (status == EDGERT_OK) {
    (*session)->library = library;
    (*session)->descriptor = descriptor;
  } else {
    edgert_unload(library);
    edgert_close_descriptor(descriptor);
  }
  return status;
}

edgert_status edgert_open(const char *path, const edgert_options *options, edgert_session **session) {
  if (!session) return edgert_fail(EDGERT_ERROR_ARGUMENT, "edgert_open: session is NULL");
  *session = NULL;
  return open_file(path, NULL, options, session);
}

edgert_status edgert_open_signed(const char *path, const uint8_t public_key[32], const edgert_options *options,
                                 edgert_session **session) {
  if (!session) return edgert_fail(EDGERT_ERROR_ARGUMENT, "edgert_open_signed: session is NULL");
  *session = NULL;
  if (!public_key) return edgert_fail(EDGERT_ERROR_ARGUMENT, "edgert_open_signed: public_key is NULL");
  return open_file(path, public_key, options, session);
}

void edgert_close(edgert_session *session) {
  if (!session) return;
  void *library = session->library, *block = session->block;
  const int descriptor = session->descriptor;
  edgert_pool_stop(session->pool);
  edgert_opencl_close(session->gpu);
  release(block);
  edgert_unload(library);
  edgert_close_descriptor(descriptor);
}

/* ---- queries ---- */

const edgert_model *edgert_session_model(const edgert_session *session) {
  return session ? session->model : NULL;
}

uint32_t edgert_input_count(const edgert_session *session) { return session ? session->model->input_count : 0; }

uint32_t edgert_output_count(const edgert_session *session) {
  return session ? session->model->output_count : 0;
}

uint32_t edgert_step_count(const edgert_session *session) {
  if (!session) return 0;
  return session->gpu ? edgert_model_gpu(session->model)->step_count : session->model->step_count;
}

const char *edgert_device(const edgert_session *session) {
  if (!session) return NULL;
  return session->gpu ? edgert_opencl_device(session->gpu) : "CPU";
}

const edgert_tensor *edgert_input(const edgert_session *session, uint32_t index) {
  return index < edgert_input_count(session) ? &session->model->inputs[index] : NULL;
}

const edgert_tensor *edgert_output(const edgert_session *session, uint32_t index) {
  return index < edgert_output_count(session) ? &session->model->outputs[index] : NULL;
}

static int32_t find(const edgert_tensor *tensors, uint32_t count, const char *name) {
  for (uint32_t i = 0; name && i < count; i++)
    if (strcmp(tensors[i].name, name) == 0) return (int32_t)i;
  return -1;
}

int32_t edgert_find_input(const edgert_session *session, const char *name) {
  return session ? find(session->model->inputs, session->model->input_count, name) : -1;
}

int32_t edgert_find_output(const edgert_session *session, const char *name) {
  return session ? find(session->model->outputs, session->model->output_count, name) : -1;
}

void *edgert_input_data(edgert_session *session, uint32_t index) {
  return index < edgert_input_count(session) ? session->own[index] : NULL;
}

const void *edgert_output_data(const edgert_session *session, uint32_t index) {
  return index < edgert_output_count(session) ? session->own[session->model->input_count + index] : NULL;
}

/* ---- bindings ---- */

static edgert_status bind(edgert_session *session, const edgert_tensor *tensor, uint32_t slot, void *data,
                          uint64_t bytes) {
  uint32_t alignment = edgert_dtype_bytes(tensor->dtype);
  if (!data) {
    if (session->gpu) edgert_opencl_forget(session->gpu, slot);
    session->io[slot] = session->own[slot];
    return EDGERT_OK;
  }
  if (bytes != tensor->bytes)
    return edgert_fail(EDGERT_ERROR_SIZE, "'%s' has %llu bytes and %llu were bound to it", tensor->name,
                       (unsigned long long)tensor->bytes, (unsigned long long)bytes);
  if ((uintptr_t)data % alignment != 0)
    return edgert_fail(EDGERT_ERROR_ALIGNMENT, "the pointer bound to '%s', %p, is not aligned to its %u-byte elements",
                       tensor->name, data, (unsigned)alignment);
  if (session->gpu) edgert_opencl_forget(session->gpu, slot);
  session->io[slot] = data;
  return EDGERT_OK;
}

static edgert_status no_tensor(const char *kind, uint32_t index, uint32_t count) {
  return edgert_fail(EDGERT_ERROR_ARGUMENT, "there is no %s %u: the session is NULL or has only %u", kind,
                     (unsigned)index, (unsigned)count);
}

edgert_status edgert_bind_input(edgert_session *session, uint32_t index, const void *data, uint64_t bytes) {
  const edgert_tensor *tensor = edgert_input(session, index);
  if (!tensor) return no_tensor("input", index, edgert_input_count(session));
  return bind(session, tensor, index, (void *)(uintptr_t)data, bytes); /* kernels do not write inputs */
}

edgert_status edgert_bind_output(edgert_session *session, uint32_t index, void *data, uint64_t bytes) {
  const edgert_tensor *tensor = edgert_output(session, index);
  if (!tensor) return no_tensor("output", index, edgert_output_count(session));
  return bind(session, tensor, session->model->input_count + index, data, bytes);
}

/* ---- run ---- */

typedef struct step_job {
  const edgert_session *session;
  edgert_step_fn run;
} step_job;

static void run_share(void *context, int32_t thread, int32_t threads) {
  const step_job *job = context;
  const edgert_session *session = job->session;
  job->run(session->arena, session->weights, session->io, thread, threads);
}

void edgert_run_step(const edgert_session *session, const edgert_step *step) {
  step_job job = {session, session->width ? session->width->run[step - session->model->steps] : step->run};
  if (step->parallel)
    edgert_pool_run(session->pool, run_share, &job);
  else
    run_share(&job, 0, 1);
}

static void run_measured(const edgert_session *session, uint32_t index) {
  edgert_step_stats *stats = &session->stats[index];
  uint64_t start = edgert_now_ns();
  edgert_run_step(session, &session->model->steps[index]);
  uint64_t elapsed = edgert_now_ns() - start;
  if (stats->calls == 0 || elapsed < stats->min_ns) stats->min_ns = elapsed;
  stats->total_ns += elapsed;
  stats->calls++;
}

/* A step that the GPU leaves to the processor. */
static void run_host_step(void *context, uint32_t index) {
  const edgert_session *session = context;
  edgert_run_step(session, &session->model->steps[index]);
}

static edgert_status check_bindings(const edgert_session *session) {
  const edgert_model *model = session->model;
  for (uint32_t i = 0; i < model->input_count + model->output_count; i++) {
    if (session->io[i]) continue;
    const edgert_tensor *tensor = i < model->input_count ? &model->inputs[i] : &model->outputs[i - model->input_count];
    return edgert_fail(EDGERT_ERROR_UNBOUND,
                       "'%s' has no buffer: bind one, or open the session without EDGERT_NO_IO_BUFFERS",
                       tensor->name);
  }
  return EDGERT_OK;
}

edgert_status edgert_run_steps(edgert_session *session) {
  edgert_status status = check_bindings(session);
  if (status != EDGERT_OK) return status;
  if (session->gpu)
    return edgert_opencl_run(session->gpu, session->io, session->arena, session->profiling ? session->stats : NULL,
                             run_host_step, (void *)(uintptr_t)session);
  for (uint32_t i = 0; i < session->model->step_count; i++) {
    if (session->profiling)
      run_measured(session, i);
    else
      edgert_run_step(session, &session->model->steps[i]);
  }
  return EDGERT_OK;
}

edgert_status edgert_reset(edgert_session *session) {
  if (!session) return edgert_fail(EDGERT_ERROR_ARGUMENT, "edgert_reset: session is NULL");
  if (atomic_flag_test_and_set(&session->running))
    return edgert_fail(EDGERT_ERROR_BUSY, "model '%s' is running in another thread; reset it after the run",
                       session->model->name);
  memset(session->arena, 0, (size_t)edgert_model_state_bytes(session->model));
  atomic_flag_clear(&session->running);
  return EDGERT_OK;
}

edgert_status edgert_exclusively(edgert_session *session, edgert_status (*work)(edgert_session *session)) {
  if (atomic_flag_test_and_set(&session->running))
    return edgert_fail(EDGERT_ERROR_BUSY,
                       "the session is running in another thread; open one session per thread");
  edgert_status status = edgert_pool_check(session->pool);
  if (status == EDGERT_OK) status = work(session);
  atomic_flag_clear(&session->running);
  return status;
}

edgert_status edgert_run(edgert_session *session) {
  if (!session) return edgert_fail(EDGERT_ERROR_ARGUMENT, "edgert_run: session is NULL");
  return edgert_exclusively(session, edgert_run_steps);
}

/* ---- widths ---- */

uint32_t edgert_width_of(const edgert_session *session) {
  return session && session->width ? session->width->bits : 0;
}

edgert_status edgert_set_width(edgert_session *session, uint32_t bits) {
  if (!session) return edgert_fail(EDGERT_ERROR_ARGUMENT, "edgert_set_width: session is NULL");
  const edgert_model *model = session->model;
  const uint32_t count = edgert_width_count(model);
  for (uint32_t i = 0; i < count; i++) {
    if (model->widths[i].bits != bits) continue;
    if (atomic_flag_test_and_set(&session->running))
      return edgert_fail(EDGERT_ERROR_BUSY, "model '%s' is running in another thread; switch its width after the run",
                         model->name);
    session->width = &model->widths[i];
    atomic_flag_clear(&session->running);
    return EDGERT_OK;
  }
  if (count == 0)
    return edgert_fail(EDGERT_ERROR_ARGUMENT, "model '%s' has weights of one width only; compile it with --quantize w4 "
                       "--nested to switch it", model->name);
  return edgert_fail(EDGERT_ERROR_ARGUMENT, "model '%s' cannot run at %u bits; its widths are %u and %u", model->name,
                     (unsigned)bits, (unsigned)model->widths[0].bits, (unsigned)model->widths[count - 1].bits);
}

/* ---- profile ---- */

edgert_status edgert_profile(edgert_session *session, int on) {
  if (!session) return edgert_fail(EDGERT_ERROR_ARGUMENT, "edgert_profile: session is NULL");
  if (on) memset(session->stats, 0, edgert_step_count(session) * sizeof session->stats[0]);
  session->profiling = on != 0;
  return EDGERT_OK;
}

edgert_status edgert_step_stats_get(const edgert_session *session, uint32_t index, edgert_step_stats *stats) {
  if (!stats || index >= edgert_step_count(session))
    return edgert_fail(EDGERT_ERROR_ARGUMENT, "edgert_step_stats_get: no step %u, or an argument is NULL",
                       (unsigned)index);
  *stats = session->stats[index];
  if (session->gpu) {
    const edgert_gpu *gpu = edgert_model_gpu(session->model);
    stats->name = gpu->strings + gpu->steps[index].name;
    stats->kernel = gpu->strings + gpu->steps[index].kernel;
    stats->macs = gpu->steps[index].macs;
    return EDGERT_OK;
  }
  const edgert_step *step = &session->model->steps[index];
  stats->name = session->model->strings + step->name;
  stats->kernel = session->model->strings + step->kernel;
  stats->macs = step->macs;
  return EDGERT_OK;
}
