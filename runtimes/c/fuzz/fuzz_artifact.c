/* libFuzzer: files that are almost artifacts. Everything that happens before the dynamic loader sees a file runs on
 * mutated bytes: as they are, and with their digest put right, so that what stands behind it is reached, too. */
#define _GNU_SOURCE
#include "../src/artifact.c"

#include <stdlib.h>
#include <sys/mman.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void put_digest_right(uint8_t *data, size_t bytes) {
  edgert_sha256 hash;
  if (bytes < sizeof(edgert_trailer)) return;
  edgert_sha256_start(&hash);
  edgert_sha256_add(&hash, data, bytes - 32);
  edgert_sha256_finish(&hash, data + bytes - 32);
}

static void check(const uint8_t *data, size_t bytes, bool check_digest) {
  char path[64];
  int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
  if (descriptor < 0 || write(descriptor, data, bytes) != (ssize_t)bytes) abort();
  snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
  artifact file = {.path = path, .descriptor = -1};
  edgert_status status = check_file(&file, check_digest);
  if (status == EDGERT_OK) { /* as is_from asks, for an address that may be anywhere */
    uint64_t offset;
    for (uintptr_t address = 0; address < 0x40000; address += 0x1330) file_offset(&file, NULL, (void *)address, &offset);
  } else if (!*edgert_last_error()) {
    abort();
  }
  if (file.descriptor >= 0) close(file.descriptor);
  close(descriptor);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  check(data, bytes, true);
  uint8_t *copy = malloc(bytes + 1);
  if (!copy) return 0;
  memcpy(copy, data, bytes);
  put_digest_right(copy, bytes);
  check(copy, bytes, true);
  free(copy);
  return 0;
}
