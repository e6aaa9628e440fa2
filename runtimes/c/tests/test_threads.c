/* Sessions on several threads, and several sessions at once. */
#define _DEFAULT_SOURCE
#include "toy.h"

#include "internal.h"

static edgert_session *open_toy(uint32_t threads, uint32_t flags) {
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session;
  options.threads = threads;
  options.flags = flags;
  CHECK_OK(edgert_open("toy.so", &options, &session));
  return session;
}

static void check_least_speed(void) {
  const long big_little[8] = {400, 400, 400, 400, 1024, 1024, 1024, 1024};
  const long three_kinds[8] = {446, 446, 446, 446, 871, 871, 871, 1024};
  const long unknown[4] = {0};
  CHECK(edgert_least_speed(big_little, 8, 1) == 1024 && edgert_least_speed(big_little, 8, 4) == 1024);
  CHECK(edgert_least_speed(big_little, 8, 5) == 400 && edgert_least_speed(big_little, 8, 64) == 400);
  CHECK(edgert_least_speed(three_kinds, 8, 1) == 1024 && edgert_least_speed(three_kinds, 8, 2) == 871);
  CHECK(edgert_least_speed(three_kinds, 8, 4) == 871 && edgert_least_speed(three_kinds, 8, 5) == 446);
  CHECK(edgert_least_speed(unknown, 4, 2) == 0);
}

#if EDGERT_WITH_THREADS

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

/* Every number of threads gives the same bits, whether the workers still spin or have gone to sleep. */
static void check_equal_results(void) {
  const uint32_t counts[] = {1, 2, 3, 5, 8, EDGERT_MAX_THREADS};
  for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
    edgert_session *session = open_toy(counts[i], i % 2 ? EDGERT_PIN_BIG_CORES : 0);
    for (int run = 0; run < 60; run++) {
      toy_run(session, 3);
      if (run % 20 == 19) usleep(2000);
    }
    edgert_close(session);
  }
}

static void check_unused(void) {
  edgert_session *session = open_toy(4, 0);
  edgert_close(session);
}

static void *run_many(void *threads) {
  edgert_session *session = open_toy(*(const uint32_t *)threads, 0);
  for (int run = 0; run < 100; run++) toy_run(session, 3);
  edgert_close(session);
  return NULL;
}

static void check_sessions_at_once(void) {
  uint32_t counts[4] = {1, 2, 3, 4};
  pthread_t users[4];
  for (int i = 0; i < 4; i++) CHECK(pthread_create(&users[i], NULL, run_many, &counts[i]) == 0);
  for (int i = 0; i < 4; i++) CHECK(pthread_join(users[i], NULL) == 0);
}

/* A session may move from thread to thread as long as the calls do not overlap. */
static void *run_once(void *session) {
  toy_run(session, 3);
  return NULL;
}

static void check_moved(void) {
  edgert_session *session = open_toy(3, 0);
  for (int i = 0; i < 3; i++) {
    pthread_t user;
    CHECK(pthread_create(&user, NULL, run_once, session) == 0);
    CHECK(pthread_join(user, NULL) == 0);
    toy_run(session, 3);
  }
  edgert_close(session);
}

static atomic_bool entered, leave;

static void wait_in_step(uint8_t *arena, const uint8_t *weights, void *const *io, int32_t thread,
                         int32_t threads) {
  (void)arena, (void)weights, (void)io, (void)thread, (void)threads;
  atomic_store(&entered, true);
  while (!atomic_load(&leave)) usleep(100);
}

static void *run_waiting(void *session) {
  CHECK_OK(edgert_run(session));
  return NULL;
}

static void check_busy(void) {
  edgert_model model = edgert_model_v1;
  edgert_step step = {wait_in_step, 0, 0, 0, 0, 0};
  edgert_session *session;
  pthread_t user;
  model.steps = &step;
  model.step_count = 1;
  CHECK_OK(edgert_open_model(&model, NULL, &session));
  CHECK(pthread_create(&user, NULL, run_waiting, session) == 0);
  while (!atomic_load(&entered)) usleep(100);
  CHECK_REFUSED(edgert_run(session), EDGERT_ERROR_BUSY, "one session per thread");
  atomic_store(&leave, true);
  CHECK(pthread_join(user, NULL) == 0);
  CHECK_OK(edgert_run(session));
  edgert_close(session);
}

static void *fail_elsewhere(void *unused) {
  CHECK_STATUS(edgert_run(NULL), EDGERT_ERROR_ARGUMENT);
  return unused;
}

static void check_errors_are_per_thread(void) {
  edgert_session *session;
  pthread_t user;
  CHECK_STATUS(edgert_open("no such file", NULL, &session), EDGERT_ERROR_FILE);
  CHECK(pthread_create(&user, NULL, fail_elsewhere, NULL) == 0);
  CHECK(pthread_join(user, NULL) == 0);
  CHECK(strstr(edgert_last_error(), "no such file"));
}

/* A forked child is told, instead of waiting for workers that it does not have. */
static void check_fork(void) {
  edgert_session *several = open_toy(3, 0), *one = open_toy(1, 0);
  int result;
  pid_t child = fork();
  if (child == 0) {
    CHECK_REFUSED(edgert_run(several), EDGERT_ERROR_THREADS, "after the fork");
    edgert_close(several);
    toy_run(one, 3);
    edgert_close(one);
    _exit(0);
  }
  CHECK(waitpid(child, &result, 0) == child && result == 0);
  toy_run(several, 3);
  edgert_close(several);
  edgert_close(one);
}

static void *pin(void *unused) {
  edgert_pin_caller(1);
  CHECK(edgert_cpu_count() >= 1);
  return unused;
}

static void check_pin_caller(void) {
  pthread_t user;
  CHECK(pthread_create(&user, NULL, pin, NULL) == 0);
  CHECK(pthread_join(user, NULL) == 0);
}

int main(void) {
  check_least_speed();
  check_equal_results();
  check_unused();
  check_sessions_at_once();
  check_moved();
  check_busy();
  check_errors_are_per_thread();
  check_fork();
  check_pin_caller();
  return 0;
}

#else

int main(void) {
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session = open_toy(1, 0);
  check_least_speed();
  toy_run(session, 3);
  edgert_close(session);
  options.threads = 2;
  CHECK_REFUSED(edgert_open("toy.so", &options, &session), EDGERT_ERROR_THREADS, "without threads");
  return 0;
}

#endif
