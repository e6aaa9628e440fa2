/* libFuzzer: descriptors that say anything. Counts, sizes, types and offsets are the fuzzer's; every table has exactly
 * the entries that its count says (or is NULL), so that a read behind one is seen by AddressSanitizer. What opens is
 * asked all that a program may ask. */
#include <edgert/edgert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

typedef struct source {
  const uint8_t *next, *end;
} source;

#define MOST_TABLES 64
static void *tables[MOST_TABLES];
static unsigned table_count;

static void take(source *from, void *into, size_t bytes) {
  size_t there = (size_t)(from->end - from->next), part = bytes < there ? bytes : there;
  memset(into, 0, bytes);
  memcpy(into, from->next, part);
  from->next += part;
}

static uint8_t take_byte(source *from) {
  uint8_t byte;
  take(from, &byte, 1);
  return byte;
}

/* A table of its own, filled by the fuzzer; NULL now and then, or where it would be large. */
static void *table(source *from, uint64_t count, size_t entry) {
  if (take_byte(from) > 250 || count > 4096 || count == 0 || table_count == MOST_TABLES) return NULL;
  void *made = malloc((size_t)count * entry);
  if (!made) return NULL;
  take(from, made, (size_t)count * entry);
  tables[table_count++] = made;
  return made;
}

static void step(uint8_t *arena, const uint8_t *weights, void *const *io, int32_t thread, int32_t threads) {
  (void)arena, (void)weights, (void)io, (void)thread, (void)threads;
}

static const edgert_tensor *tensors(source *from, uint32_t count) {
  edgert_tensor *made = table(from, count, sizeof *made);
  for (uint32_t i = 0; made && i < count; i++) {
    made[i].name = made[i].rank % 16 ? "name" : NULL;
    if (made[i].dtype % 4 == 0) { /* often something sound */
      made[i].dtype = EDGERT_FLOAT32, made[i].rank = 1, made[i].shape[0] = (int64_t)(made[i].bytes & 0xfff);
      made[i].bytes = 4 * (uint64_t)made[i].shape[0];
    }
  }
  return made;
}

static const edgert_step *steps(source *from, uint32_t count, uint64_t strings_bytes) {
  edgert_step *made = table(from, count, sizeof *made);
  for (uint32_t i = 0; made && i < count; i++) {
    made[i].run = made[i].reserved % 32 == 31 ? NULL : step;
    if (strings_bytes && made[i].parallel % 2 == 0) made[i].name %= strings_bytes, made[i].kernel %= strings_bytes;
  }
  return made;
}

static const edgert_tests *tests(source *from, const edgert_model *model) {
  edgert_tests *made = table(from, 1, sizeof *made);
  if (!made) return NULL;
  made->count %= 4;
  made->regions = table(from, model->step_count, sizeof *made->regions);
  made->expected = table(from, (uint64_t)made->count * model->step_count, sizeof *made->expected);
  made->inputs = table(from, 64, 1);
  made->outputs = table(from, 64, 1);
  return made;
}

static const edgert_gpu *gpu(source *from) {
  edgert_gpu *made = table(from, 1, sizeof *made);
  if (!made) return NULL;
  made->steps = table(from, made->step_count, sizeof *made->steps);
  made->operands = table(from, made->operand_count, sizeof *made->operands);
  made->strings = table(from, made->strings_bytes, 1);
  made->source = table(from, made->source_bytes, 1);
  made->weights = table(from, made->weights_bytes, 1);
  return made;
}

/* Coded weights whose head and runs are often sound. */
static const uint8_t *coded(source *from, edgert_model *model) {
  model->coded_bytes %= 4096, model->weights_bytes %= 65536;
  uint8_t *made = table(from, model->coded_bytes, 1);
  edgert_coded head = {take_byte(from) % 4u, take_byte(from) % 4u};
  size_t at = sizeof head + head.table_count * EDGERT_CODE_TABLE_BYTES;
  if (!made || at + head.run_count * sizeof(edgert_coded_run) > model->coded_bytes) return made;
  memcpy(made, &head, sizeof head);
  if (take_byte(from) % 2) /* sixteen codes of four bits: complete */
    for (size_t i = sizeof head; i < at; i++) made[i] = (i - sizeof head) % EDGERT_CODE_TABLE_BYTES < 8 ? 0x44 : 0;
  for (uint32_t i = 0; i < head.run_count; i++, at += sizeof(edgert_coded_run)) {
    edgert_coded_run run;
    memcpy(&run, made + at, sizeof run);
    run.offset %= 512, run.count %= 1024, run.step %= 16, run.bytes = (run.count + 1) / 2, run.table %= 4;
    memcpy(made + at, &run, sizeof run);
  }
  return made;
}

static const edgert_width *widths(source *from, const edgert_model *model) {
  edgert_width *made = table(from, model->width_count, sizeof *made);
  for (uint32_t i = 0; made && i < model->width_count; i++) {
    edgert_step_fn *run = table(from, model->step_count, sizeof *run);
    for (uint32_t place = 0; run && place < model->step_count; place++)
      run[place] = made[i].reserved % 32 == 31 ? NULL : step;
    made[i].run = run;
  }
  return made;
}

static void fill(source *from, edgert_model *model) {
  take(from, model, sizeof *model);
  if (take_byte(from) % 8) model->abi_version = EDGERT_ABI_VERSION, model->struct_bytes = sizeof *model;
  if (take_byte(from) % 8) model->arch = EDGERT_X86_64, model->cpu_features = 0;
  model->name = take_byte(from) % 16 ? "model" : NULL;
  model->target = "target", model->triple = "triple";
  model->inputs = tensors(from, model->input_count %= 64);
  model->outputs = tensors(from, model->output_count %= 64);
  if (take_byte(from) % 4) model->strings_bytes &= 0xff, model->step_count %= 16, model->arena_bytes &= 0xffffff;
  char *strings = table(from, model->strings_bytes, 1);
  if (strings && take_byte(from) % 8) strings[model->strings_bytes - 1] = 0;
  model->strings = strings;
  model->steps = steps(from, model->step_count, model->strings_bytes);
  model->coded = take_byte(from) % 2 ? coded(from, model) : NULL;
  model->weights = model->coded ? NULL : table(from, model->weights_bytes, 1);
  model->manifest = table(from, model->manifest_bytes, 1);
  model->width_count %= 4;
  model->widths = take_byte(from) % 2 ? widths(from, model) : NULL;
  model->tests = tests(from, model);
  model->gpu = gpu(from);
}

static void ask(edgert_session *session) {
  edgert_step_stats stats;
  for (uint32_t i = 0; i <= edgert_input_count(session); i++) {
    const edgert_tensor *tensor = edgert_input(session, i);
    edgert_bind_input(session, i, &stats, tensor ? tensor->bytes : 0);
    edgert_bind_input(session, i, NULL, 0);
  }
  edgert_find_input(session, "name");
  edgert_find_output(session, "other");
  edgert_profile(session, 1);
  edgert_run(session); /* its steps do nothing */
  for (uint32_t i = 0; i < edgert_step_count(session); i++)
    if (edgert_step_stats_get(session, i, &stats) == EDGERT_OK && strlen(stats.name) + strlen(stats.kernel) == SIZE_MAX)
      abort();
  edgert_reset(session);
  edgert_set_width(session, edgert_width_of(session));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  source from = {data, data + bytes};
  edgert_model *model = malloc(sizeof *model);
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session = NULL;
  uint64_t required;
  if (!model) return 0;
  fill(&from, model);
  options.flags = EDGERT_SKIP_DIGEST | EDGERT_ON_CPU | (take_byte(&from) % 2 ? EDGERT_NO_IO_BUFFERS : 0u);
  if (edgert_memory_required(model, &options, &required) == EDGERT_OK && required < 1u << 26) {
    if (edgert_open_model(model, &options, &session) == EDGERT_OK) ask(session);
    edgert_close(session);
  }
  while (table_count) free(tables[--table_count]);
  free(model);
  return 0;
}
