/* seal OBJECT.so ARTIFACT.so: append the trailer. */
#include "seal.h"

static const char manifest[] = "{\"name\": \"toy\"";

static uint64_t find_manifest(bytes object) {
  size_t length = sizeof manifest - 1;
  for (size_t i = 0; i + length <= object.count; i++)
    if (memcmp(object.data + i, manifest, length) == 0) return i;
  return 0;
}

int main(int argc, char **argv) {
  CHECK(argc == 3);
  bytes object = read_all(argv[1]);
  edgert_trailer trailer = {.manifest_offset = find_manifest(object), .manifest_bytes = 35};
  memcpy(trailer.magic, EDGERT_TRAILER_MAGIC, sizeof trailer.magic);
  bytes artifact = {realloc(object.data, object.count + sizeof trailer), object.count + sizeof trailer};
  CHECK(artifact.data != NULL);
  memcpy(artifact.data + object.count, &trailer, sizeof trailer);
  seal(artifact);
  write_all(argv[2], artifact.data, artifact.count);
  free(artifact.data);
  return 0;
}
