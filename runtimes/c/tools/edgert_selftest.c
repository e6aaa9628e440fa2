/* edgert-selftest: runs the tests that an artifact holds.
 *
 *   edgert-selftest MODEL.so [THREADS]
 *
 * Exit code 0 and "pass" if every step of every test stores what the compiler's reference stored; 1 and a sentence
 * that names the first step that does not; 2 and a sentence if the artifact cannot be opened or holds no tests.
 */
#include <edgert/edgert.h>
#include <stdio.h>
#include <stdlib.h>

static int report(edgert_status status) {
  fprintf(stderr, "edgert-selftest: %s\n", edgert_last_error());
  return status == EDGERT_ERROR_TEST ? 1 : 2;
}

int main(int argc, char **argv) {
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session;
  uint32_t count = 0;
  char *end = "";
  unsigned long threads = argc > 2 ? strtoul(argv[2], &end, 10) : 1;
  if (argc < 2 || argc > 3 || *end || threads < 1 || threads > EDGERT_MAX_THREADS) {
    fprintf(stderr, "usage: edgert-selftest MODEL.so [THREADS]\n");
    return 2;
  }
  options.threads = (uint32_t)threads;
  edgert_status status = edgert_open(argv[1], &options, &session);
  if (status != EDGERT_OK) return report(status);
  status = edgert_selftest(session, &count);
  if (status == EDGERT_OK)
    printf("pass: %u tests of '%s' (%s), %u steps each\n", (unsigned)count, edgert_session_model(session)->name,
           edgert_session_model(session)->target, (unsigned)edgert_step_count(session));
  edgert_close(session);
  return status == EDGERT_OK ? 0 : report(status);
}
