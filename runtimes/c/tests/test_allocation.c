/* What the library takes from the system: nothing after open, and all is given back. The linker's --wrap
 * sends every allocation of the library through here. */
#include "toy.h"

#include "internal.h"

#include <errno.h>

static atomic_int calls, live;
static int memory_fails, threads_left = 1000;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
int __real_posix_memalign(void **memory, size_t alignment, size_t bytes);
void __real_free(void *memory);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
int __wrap_posix_memalign(void **memory, size_t alignment, size_t bytes);
void __wrap_free(void *memory);

static void *counted(void *memory) {
  calls++;
  live += memory != NULL;
  return memory;
}

void *__wrap_malloc(size_t bytes) { return counted(__real_malloc(bytes)); }

void *__wrap_calloc(size_t count, size_t bytes) { return counted(__real_calloc(count, bytes)); }

void *__wrap_aligned_alloc(size_t alignment, size_t bytes) {
  return counted(__real_aligned_alloc(alignment, bytes));
}

void *__wrap_realloc(void *memory, size_t bytes) {
  calls++;
  live += memory == NULL;
  return __real_realloc(memory, bytes);
}

int __wrap_posix_memalign(void **memory, size_t alignment, size_t bytes) {
  calls++;
  if (memory_fails) return ENOMEM;
  int result = __real_posix_memalign(memory, alignment, bytes);
  live += result == 0;
  return result;
}

void __wrap_free(void *memory) {
  calls++;
  live -= memory != NULL;
  __real_free(memory);
}

#if EDGERT_WITH_THREADS

#include <pthread.h>

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                          void *argument) {
  return threads_left-- > 0 ? __real_pthread_create(thread, attributes, start, argument) : EAGAIN;
}

static const uint32_t most_threads = 3;

static void check_too_few_threads(void) {
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session;
  options.threads = 5;
  for (threads_left = 0; threads_left < 4;) {
    int can_start = threads_left;
    CHECK_REFUSED(edgert_open_model(&edgert_model_v1, &options, &session), EDGERT_ERROR_THREADS, "of 5 threads");
    CHECK(session == NULL && live == 0);
    threads_left = can_start + 1;
  }
  threads_left = 1000;
}

#else

static const uint32_t most_threads = 1;

static void check_too_few_threads(void) { CHECK(threads_left == 1000); }

#endif

static void check_runs(uint32_t threads, bool given) {
  static _Alignas(128) uint8_t memory[32768];
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session;
  float x[TOY_ELEMENTS];
  options.threads = threads;
  options.memory = given ? memory : NULL;
  options.memory_bytes = sizeof memory;
  calls = 0;
  CHECK_OK(edgert_open_model(&edgert_model_v1, &options, &session));
  CHECK(calls == (given ? 0 : 1));
  CHECK_OK(edgert_profile(session, 1));
  CHECK_OK(edgert_bind_output(session, 0, x, sizeof x));
  CHECK_STATUS(edgert_bind_output(session, 0, x, 1), EDGERT_ERROR_SIZE);
  CHECK_OK(edgert_bind_output(session, 0, NULL, 0));
  for (int run = 0; run < 50; run++) toy_run(session, 3);
  CHECK(calls == (given ? 0 : 1));
  edgert_close(session);
  CHECK(live == 0);
}

static void check_file(void) {
  edgert_session *session;
  calls = 0;
  CHECK_OK(edgert_open("toy.so", NULL, &session));
  CHECK(calls == 1);
  toy_run(session, 3);
  CHECK(calls == 1);
  edgert_close(session);
  CHECK(live == 0);
}

static void check_out_of_memory(void) {
  edgert_session *session;
  memory_fails = 1;
  CHECK_REFUSED(edgert_open("toy.so", NULL, &session), EDGERT_ERROR_MEMORY, "bytes of memory");
  CHECK(session == NULL && live == 0);
  memory_fails = 0;
}

int main(void) {
  for (uint32_t threads = 1; threads <= most_threads; threads++) {
    check_runs(threads, false);
    check_runs(threads, true);
  }
  check_file();
  check_out_of_memory();
  check_too_few_threads();
  return 0;
}
