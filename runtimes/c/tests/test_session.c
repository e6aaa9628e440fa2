/* What a session does when it is used as the header says. */
#include "toy.h"

static edgert_session *open_toy(const edgert_options *options) {
  edgert_session *session;
  CHECK_OK(edgert_open_model(&edgert_model_v1, options, &session));
  return session;
}

static void check_queries(void) {
  edgert_session *session = open_toy(NULL);
  CHECK(strcmp(edgert_version(), EDGERT_VERSION) == 0);
  CHECK(edgert_session_model(session) == &edgert_model_v1);
  CHECK(edgert_input_count(session) == 2 && edgert_output_count(session) == 2 && edgert_step_count(session) == 3);
  CHECK(strcmp(edgert_input(session, 1)->name, "q") == 0 && edgert_input(session, 1)->zero_point == -3);
  CHECK(edgert_output(session, 0)->rank == 2 && edgert_output(session, 0)->shape[1] == 17);
  CHECK(edgert_find_input(session, "q") == 1 && edgert_find_input(session, "y") == -1);
  CHECK(edgert_find_output(session, "sum") == 1 && edgert_find_output(session, NULL) == -1);
  CHECK(edgert_input(session, 2) == NULL && edgert_output(session, 2) == NULL);
  CHECK(edgert_input_data(session, 2) == NULL && edgert_output_data(session, 2) == NULL);
  edgert_close(session);
}

static void check_null(void) {
  edgert_step_stats stats;
  float value;
  CHECK(edgert_session_model(NULL) == NULL && edgert_input_count(NULL) == 0 && edgert_step_count(NULL) == 0);
  CHECK(edgert_output_count(NULL) == 0 && edgert_input(NULL, 0) == NULL && edgert_output(NULL, 0) == NULL);
  CHECK(edgert_find_input(NULL, "x") == -1 && edgert_find_output(NULL, "y") == -1);
  CHECK(edgert_input_data(NULL, 0) == NULL && edgert_output_data(NULL, 0) == NULL);
  CHECK_STATUS(edgert_run(NULL), EDGERT_ERROR_ARGUMENT);
  CHECK_STATUS(edgert_bind_input(NULL, 0, &value, 4), EDGERT_ERROR_ARGUMENT);
  CHECK_STATUS(edgert_bind_output(NULL, 0, &value, 4), EDGERT_ERROR_ARGUMENT);
  CHECK_STATUS(edgert_profile(NULL, 1), EDGERT_ERROR_ARGUMENT);
  CHECK_STATUS(edgert_step_stats_get(NULL, 0, &stats), EDGERT_ERROR_ARGUMENT);
  edgert_close(NULL);
}

static void check_own_buffers(void) {
  edgert_session *session = open_toy(NULL);
  for (uint32_t i = 0; i < 2; i++) {
    CHECK((uintptr_t)edgert_input_data(session, i) % EDGERT_ALIGNMENT == 0);
    CHECK((uintptr_t)edgert_output_data(session, i) % EDGERT_ALIGNMENT == 0);
  }
  toy_run(session, 3);
  CHECK_OK(edgert_run(session)); /* inputs keep their content */
  toy_expect(edgert_output_data(session, 0), edgert_output_data(session, 1), 3);
  edgert_close(session);
}

static void check_bindings(void) {
  edgert_session *session = open_toy(NULL);
  float x[TOY_ELEMENTS + 1], y[TOY_ELEMENTS + 1];
  int8_t q[5];
  int32_t sum = 0;
  toy_fill(x + 1, q); /* aligned to an element and to nothing more */
  CHECK_OK(edgert_bind_input(session, 0, x + 1, TOY_ELEMENTS * 4));
  CHECK_OK(edgert_bind_input(session, 1, q, 5));
  CHECK_OK(edgert_bind_output(session, 0, y + 1, TOY_ELEMENTS * 4));
  CHECK_OK(edgert_bind_output(session, 1, &sum, 4));
  CHECK_REFUSED(edgert_bind_input(session, 0, x, 4), EDGERT_ERROR_SIZE, "'x' has 476 bytes and 4 were bound");
  CHECK_REFUSED(edgert_bind_input(session, 0, (char *)x + 2, TOY_ELEMENTS * 4), EDGERT_ERROR_ALIGNMENT, "'x'");
  CHECK_REFUSED(edgert_bind_output(session, 2, y, 4), EDGERT_ERROR_ARGUMENT, "no output 2");
  CHECK_OK(edgert_run(session)); /* on what was bound before the refusals */
  toy_expect(y + 1, &sum, 3);
  CHECK(((const float *)edgert_output_data(session, 0))[0] == 0.0f);
  CHECK_OK(edgert_bind_input(session, 0, NULL, 0));
  CHECK_OK(edgert_bind_input(session, 1, NULL, 0));
  CHECK_OK(edgert_bind_output(session, 0, NULL, 0));
  CHECK_OK(edgert_bind_output(session, 1, NULL, 0));
  toy_run(session, 3);
  edgert_close(session);
}

static void check_unbound(void) {
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  float x[TOY_ELEMENTS], y[TOY_ELEMENTS];
  int8_t q[5];
  int32_t sum;
  options.flags = EDGERT_NO_IO_BUFFERS;
  edgert_session *session = open_toy(&options);
  CHECK(edgert_input_data(session, 0) == NULL && edgert_output_data(session, 1) == NULL);
  CHECK_REFUSED(edgert_run(session), EDGERT_ERROR_UNBOUND, "'x'");
  toy_fill(x, q);
  CHECK_OK(edgert_bind_input(session, 0, x, sizeof x));
  CHECK_OK(edgert_bind_input(session, 1, q, sizeof q));
  CHECK_OK(edgert_bind_output(session, 0, y, sizeof y));
  CHECK_REFUSED(edgert_run(session), EDGERT_ERROR_UNBOUND, "'sum'");
  CHECK_OK(edgert_bind_output(session, 1, &sum, sizeof sum));
  CHECK_OK(edgert_run(session));
  toy_expect(y, &sum, 3);
  edgert_close(session);
}

static void check_profile(void) {
  edgert_session *session = open_toy(NULL);
  edgert_step_stats stats;
  toy_run(session, 3);
  CHECK_OK(edgert_step_stats_get(session, 0, &stats));
  CHECK(stats.calls == 0 && stats.min_ns == 0 && stats.macs == TOY_ELEMENTS);
  CHECK_OK(edgert_profile(session, 1));
  for (int i = 0; i < 7; i++) toy_run(session, 3);
  CHECK_OK(edgert_profile(session, 0));
  toy_run(session, 3);
  CHECK_OK(edgert_step_stats_get(session, 2, &stats));
  CHECK(stats.calls == 7 && stats.macs == 5 && strcmp(stats.kernel, "toy_sum") == 0);
  CHECK(stats.total_ns >= 7 * stats.min_ns && strcmp(stats.name, "ReduceSum") == 0);
  CHECK_OK(edgert_profile(session, 1)); /* from zero */
  CHECK_OK(edgert_step_stats_get(session, 2, &stats));
  CHECK(stats.calls == 0 && stats.total_ns == 0);
  CHECK_STATUS(edgert_step_stats_get(session, 3, &stats), EDGERT_ERROR_ARGUMENT);
  edgert_close(session);
}

static void check_memory(void) {
  static _Alignas(128) uint8_t memory[16384];
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  uint64_t required, without_buffers;
  CHECK(edgert_memory_alignment(&edgert_model_v1) == 128);
  CHECK_OK(edgert_memory_required(&edgert_model_v1, NULL, &required));
  CHECK(required > 2 * 476 && required < sizeof memory);
  options.memory = memory;
  options.memory_bytes = required;
  memory[required] = 0xa5;
  edgert_session *session = open_toy(&options);
  CHECK((void *)session == memory);
  toy_run(session, 3);
  edgert_close(session);
  CHECK(memory[required] == 0xa5);
  options.flags = EDGERT_NO_IO_BUFFERS;
  CHECK_OK(edgert_memory_required(&edgert_model_v1, &options, &without_buffers));
  CHECK(without_buffers < required);
}

static edgert_model of_one_step(const edgert_step *step) {
  edgert_model model = edgert_model_v1;
  model.steps = step;
  model.step_count = 1;
  return model;
}

static const uint8_t *arena_seen;

static void see_arena(uint8_t *arena, const uint8_t *weights, void *const *io, int32_t thread, int32_t threads) {
  (void)weights, (void)io, (void)thread, (void)threads;
  arena_seen = arena;
}

static void check_arena_alignment(void) {
  const edgert_step step = {see_arena, 0, 0, 0, 0, 0};
  edgert_model model = of_one_step(&step);
  edgert_session *session;
  for (uint32_t alignment = 1; alignment <= 4096; alignment *= 16) {
    model.arena_alignment = alignment;
    CHECK_OK(edgert_open_model(&model, NULL, &session));
    CHECK_OK(edgert_run(session));
    CHECK((uintptr_t)arena_seen % (alignment > 64 ? alignment : 64) == 0);
    edgert_close(session);
  }
}

/* The arena's first bytes are a state: how often the step ran. */
static void count_runs(uint8_t *arena, const uint8_t *weights, void *const *io, int32_t thread, int32_t threads) {
  (void)weights, (void)thread, (void)threads;
  *(int32_t *)io[3] = ++*(int32_t *)(void *)arena;
}

static void count_tens(uint8_t *arena, const uint8_t *weights, void *const *io, int32_t thread, int32_t threads) {
  count_runs(arena, weights, io, thread, threads);
  *(int32_t *)io[3] *= 10;
}

static int32_t run_and_read(edgert_session *session) {
  CHECK_OK(edgert_run(session));
  return *(const int32_t *)edgert_output_data(session, 1);
}

static void check_reset(void) {
  const edgert_step step = {count_runs, 0, 0, 0, 0, 0};
  edgert_model model = of_one_step(&step);
  edgert_session *session;
  model.state_bytes = 4;
  CHECK_OK(edgert_open_model(&model, NULL, &session));
  for (int32_t sequence = 0; sequence < 3; sequence++) {
    for (int32_t run = 1; run <= 5; run++) CHECK(run_and_read(session) == run);
    CHECK_OK(edgert_reset(session));
  }
  edgert_close(session);
  CHECK_STATUS(edgert_reset(NULL), EDGERT_ERROR_ARGUMENT);
}

static void check_widths(void) {
  const edgert_step step = {count_runs, 0, 0, 0, 0, 0};
  const edgert_step_fn wide[] = {count_runs}, narrow[] = {count_tens}, none[] = {NULL};
  edgert_width widths[] = {{8, 0, wide}, {4, 0, narrow}};
  edgert_model model = of_one_step(&step);
  edgert_session *session = open_toy(NULL);
  CHECK(edgert_width_of(session) == 0 && edgert_width_of(NULL) == 0);
  CHECK_REFUSED(edgert_set_width(session, 4), EDGERT_ERROR_ARGUMENT, "--nested");
  CHECK_STATUS(edgert_set_width(NULL, 4), EDGERT_ERROR_ARGUMENT);
  edgert_close(session);
  model.state_bytes = 4;
  model.widths = widths;
  model.width_count = 2;
  CHECK_OK(edgert_open_model(&model, NULL, &session));
  CHECK(edgert_width_of(session) == 8 && run_and_read(session) == 1);
  CHECK_OK(edgert_set_width(session, 4));
  CHECK(edgert_width_of(session) == 4 && run_and_read(session) == 20);
  CHECK_REFUSED(edgert_set_width(session, 3), EDGERT_ERROR_ARGUMENT, "its widths are 8 and 4");
  CHECK(run_and_read(session) == 30);
  CHECK_OK(edgert_set_width(session, 8));
  CHECK(run_and_read(session) == 4);
  edgert_close(session);
  widths[1].run = NULL;
  CHECK_REFUSED(edgert_open_model(&model, NULL, &session), EDGERT_ERROR_MODEL, "no functions");
  widths[1].run = none;
  CHECK_REFUSED(edgert_open_model(&model, NULL, &session), EDGERT_ERROR_MODEL, "a step has no function");
}

int main(void) {
  CHECK(strcmp(edgert_last_error(), "") == 0);
  check_queries();
  check_null();
  check_own_buffers();
  check_bindings();
  check_unbound();
  check_profile();
  check_memory();
  check_arena_alignment();
  check_reset();
  check_widths();
  return 0;
}
