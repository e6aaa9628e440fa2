/* soak MODEL.so RUNS OPENINGS: many inferences, many openings, and sessions side by side; nothing may grow or differ.
 *
 * Exit code 0 and a line of figures, or 1 and a sentence. Linux only: it reads /proc/self/statm.
 */
#define _GNU_SOURCE
#include <edgert/edgert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIDE_BY_SIDE 4
#ifdef __SANITIZE_THREAD__ /* which keeps memory of its own for every access */
#define MEASURES_MEMORY 0
#else
#define MEASURES_MEMORY 1
#endif

static const char *path;
static unsigned long runs_each;
static uint8_t *wanted; /* the outputs, dense, one after the other */

static void require(int condition, const char *sentence) {
  if (condition) return;
  fprintf(stderr, "soak: %s; %s\n", sentence, edgert_last_error());
  exit(1);
}

static long resident_kb(void) {
  long pages = 0, ignored;
  FILE *file = fopen("/proc/self/statm", "r");
  if (!file || fscanf(file, "%ld %ld", &ignored, &pages) != 2) exit(1);
  fclose(file);
  return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static edgert_session *open_session(void) {
  edgert_session *session;
  require(edgert_open(path, NULL, &session) == EDGERT_OK, "the artifact does not open");
  for (uint32_t i = 0; i < edgert_input_count(session); i++)
    memset(edgert_input_data(session, i), 0x3d, (size_t)edgert_input(session, i)->bytes); /* floats of 0.046 */
  return session;
}

static size_t output_bytes(const edgert_session *session) {
  size_t bytes = 0;
  for (uint32_t i = 0; i < edgert_output_count(session); i++) bytes += (size_t)edgert_output(session, i)->bytes;
  return bytes;
}

static int has_wanted(const edgert_session *session) {
  const uint8_t *next = wanted;
  for (uint32_t i = 0; i < edgert_output_count(session); i++) {
    size_t bytes = (size_t)edgert_output(session, i)->bytes;
    if (memcmp(edgert_output_data(session, i), next, bytes) != 0) return 0;
    next += bytes;
  }
  return 1;
}

static void keep_outputs(const edgert_session *session) {
  uint8_t *next = wanted = malloc(output_bytes(session));
  require(wanted != NULL, "out of memory");
  for (uint32_t i = 0; i < edgert_output_count(session); i++) {
    size_t bytes = (size_t)edgert_output(session, i)->bytes;
    memcpy(next, edgert_output_data(session, i), bytes);
    next += bytes;
  }
}

static void run(edgert_session *session, unsigned long count) {
  for (unsigned long i = 0; i < count; i++) {
    require(edgert_run(session) == EDGERT_OK, "a run fails");
    require(has_wanted(session), "a run gives other bits");
  }
}

static void *run_own_session(void *weights) {
  edgert_session *session = open_session();
  require(edgert_session_model(session)->weights == weights, "sessions of one artifact do not share its weights");
  run(session, runs_each);
  edgert_close(session);
  return NULL;
}

static void run_side_by_side(edgert_session *session) {
  pthread_t threads[SIDE_BY_SIDE];
  void *weights = (void *)(uintptr_t)edgert_session_model(session)->weights;
  for (int i = 0; i < SIDE_BY_SIDE; i++)
    require(pthread_create(&threads[i], NULL, run_own_session, weights) == 0, "no thread");
  for (int i = 0; i < SIDE_BY_SIDE; i++) pthread_join(threads[i], NULL);
}

int main(int argc, char **argv) {
  if (argc != 4) return 1;
  path = argv[1];
  unsigned long runs = strtoul(argv[2], NULL, 10), openings = strtoul(argv[3], NULL, 10);
  edgert_session *session = open_session();
  require(edgert_run(session) == EDGERT_OK, "the first run fails");
  keep_outputs(session);
  run(session, runs / 100 + 1);
  long before = resident_kb();
  run(session, runs);
  long after_runs = resident_kb();
  runs_each = runs / 100 + 1;
  run_side_by_side(session);
  for (unsigned long i = 0; i < openings / 100 + 1; i++) edgert_close(open_session());
  long before_openings = resident_kb();
  for (unsigned long i = 0; i < openings; i++) edgert_close(open_session());
  edgert_close(session); /* the last one: the artifact is unloaded */
  for (unsigned long i = 0; i < openings / 10; i++) edgert_close(open_session());
  long after_openings = resident_kb();
  printf("%lu runs: %+ld kB; %lu openings: %+ld kB\n", runs, after_runs - before, openings,
         after_openings - before_openings);
  free(wanted);
  require(!MEASURES_MEMORY || after_runs - before <= 64, "runs make the process grow");
  require(!MEASURES_MEMORY || after_openings - before_openings <= 256, "openings make the process grow");
  return 0;
}
