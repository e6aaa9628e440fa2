/* Keeps what drivers made of a source: one file a key, its own digest in front. A cache that cannot be read or
 * written is as good as none. */
#define _POSIX_C_SOURCE 200809L
#include "internal.h"

#if EDGERT_WITH_OPENCL

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef PATH_MAX
#define PATH_MAX 4096
#endif

enum { DIGEST = 32 };
static const char magic[8] = {'E', 'D', 'G', 'E', 'R', 'T', 'C', '1'};

/* The folder, made if it is not there; false where there is none. */
static bool folder(char *path, size_t bytes) {
  const char *own = getenv("EDGERT_CACHE_DIR"), *system = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
  int length;
  if (own)
    length = snprintf(path, bytes, "%s", own);
  else if (system && *system)
    length = snprintf(path, bytes, "%s/edgert", system);
  else if (home && *home)
    length = snprintf(path, bytes, "%s/.cache/edgert", home);
  else
    return false;
  if (length <= 0 || (size_t)length >= bytes) return false;
  for (char *slash = path + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
    *slash = 0;
    mkdir(path, 0755);
    *slash = '/';
  }
  mkdir(path, 0755);
  return true;
}

static bool file_of(const uint8_t key[DIGEST], char *path, size_t bytes) {
  char name[2 * DIGEST + 1];
  if (!folder(path, bytes)) return false;
  for (int i = 0; i < DIGEST; i++) snprintf(name + 2 * i, 3, "%02x", key[i]);
  size_t used = strlen(path);
  return snprintf(path + used, bytes - used, "/%s.clbin", name) < (int)(bytes - used);
}

static void digest_of(const uint8_t *bytes, size_t size, uint8_t digest[DIGEST]) {
  edgert_sha256 hash;
  edgert_sha256_start(&hash);
  edgert_sha256_add(&hash, bytes, size);
  edgert_sha256_finish(&hash, digest);
}

/* The content of a file whose head is right; NULL for any other. */
static uint8_t *content(FILE *file, size_t *size) {
  uint8_t head[sizeof magic + DIGEST], digest[DIGEST];
  if (fread(head, 1, sizeof head, file) != sizeof head || memcmp(head, magic, sizeof magic) != 0) return NULL;
  if (fseek(file, 0, SEEK_END) != 0) return NULL;
  long end = ftell(file);
  if (end <= (long)sizeof head || fseek(file, (long)sizeof head, SEEK_SET) != 0) return NULL;
  *size = (size_t)end - sizeof head;
  uint8_t *bytes = malloc(*size);
  if (!bytes) return NULL;
  if (fread(bytes, 1, *size, file) == *size) {
    digest_of(bytes, *size, digest);
    if (memcmp(digest, head + sizeof magic, DIGEST) == 0) return bytes;
  }
  free(bytes);
  return NULL;
}

void edgert_cache_read(const uint8_t key[DIGEST], uint8_t **bytes, size_t *size) {
  char path[PATH_MAX];
  *bytes = NULL;
  if (!file_of(key, path, sizeof path)) return;
  FILE *file = fopen(path, "rb");
  if (!file) return;
  *bytes = content(file, size);
  fclose(file);
}

/* Written beside its place and renamed, so that nobody reads a half of it. */
void edgert_cache_write(const uint8_t key[DIGEST], const uint8_t *bytes, size_t size) {
  char path[PATH_MAX], part[PATH_MAX + 16];
  uint8_t digest[DIGEST];
  if (!file_of(key, path, sizeof path)) return;
  snprintf(part, sizeof part, "%s.%ld", path, (long)getpid());
  FILE *file = fopen(part, "wb");
  if (!file) return;
  digest_of(bytes, size, digest);
  bool whole = fwrite(magic, 1, sizeof magic, file) == sizeof magic && fwrite(digest, 1, DIGEST, file) == DIGEST &&
               fwrite(bytes, 1, size, file) == size;
  if (fclose(file) != 0 || !whole || rename(part, path) != 0) remove(part);
}

#endif
