/* libFuzzer: files that are almost artifacts. Everything that edgert_open does with a file, but for the loader, runs on
 * mutated bytes: as they are, and with their digest put right, so that what stands behind it is reached, too. */
#include "files.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check(const uint8_t *data, size_t bytes) {
  char path[32];
  int descriptor = make_file(data, bytes, path);
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session = NULL;
  expect_refusal(edgert_open(path, NULL, &session), session);
  options.flags = EDGERT_SKIP_DIGEST;
  expect_refusal(edgert_open(path, &options, &session), session);
  close(descriptor);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  uint8_t *copy = malloc(bytes + 1);
  if (!copy) return 0;
  memcpy(copy, data, bytes);
  place_of_digest = bytes > 4 ? data[bytes - 1] << 8 | data[bytes - 2] : 0; /* of a digest that counts for nothing */
  check(copy, bytes);
  put_digest_right(copy, bytes);
  check(copy, bytes);
  free(copy);
  return 0;
}
