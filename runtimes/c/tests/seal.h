/* Artifact files for tests: reading, writing, and appending the trailer that edgec appends. */
#ifndef EDGERT_SEAL_H
#define EDGERT_SEAL_H

#include "check.h"
#include "internal.h"

typedef struct bytes {
  uint8_t *data;
  size_t count;
} bytes;

static inline bytes read_all(const char *path) {
  bytes content = {NULL, 0};
  FILE *file = fopen(path, "rb");
  CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0);
  content.count = (size_t)ftell(file);
  content.data = malloc(content.count);
  rewind(file);
  CHECK(content.data != NULL && fread(content.data, 1, content.count, file) == content.count);
  fclose(file);
  return content;
}

static inline void write_all(const char *path, const void *data, size_t count) {
  FILE *file = fopen(path, "wb");
  CHECK(file != NULL && fwrite(data, 1, count, file) == count && fclose(file) == 0);
}

/* The digest over everything before it, at the end of `artifact`. */
static inline void seal(bytes artifact) {
  edgert_sha256 hash;
  edgert_sha256_start(&hash);
  edgert_sha256_add(&hash, artifact.data, artifact.count - 32);
  edgert_sha256_finish(&hash, artifact.data + artifact.count - 32);
}

#endif
