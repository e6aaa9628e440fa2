/* Files for the fuzzers, and a loader that runs none of their code: it stands in dlopen's place behind the checks. */
#ifndef EDGERT_FUZZ_FILES_H
#define EDGERT_FUZZ_FILES_H

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <dlfcn.h>
#include <edgert/model.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static bool is_loaded;              /* whether a file came as far as the loader */
static uint32_t place_of_digest;    /* where in the file the loaded descriptor's digest is said to be */
static edgert_model loaded_model = {.abi_version = EDGERT_ABI_VERSION}; /* too short to be opened */

static void *fake_dlopen(const char *path, int flags) {
  (void)flags;
  is_loaded = true;
  return *path ? &is_loaded : NULL;
}

static void *fake_dlsym(void *library, const char *name) {
  (void)library, (void)name;
  return &loaded_model;
}

static int fake_dladdr(const void *address, Dl_info *info) {
  (void)address;
  info->dli_fbase = (void *)((uintptr_t)loaded_model.sha256 - place_of_digest);
  return 1;
}

static int fake_dlclose(void *library) {
  (void)library;
  return 0;
}

#define dlopen fake_dlopen
#define dlsym fake_dlsym
#define dladdr fake_dladdr
#define dlclose fake_dlclose
#include "../src/artifact.c"

/* A file that is only in memory; `path` gets its name. */
static int make_file(const uint8_t *data, size_t bytes, char path[32]) {
  int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
  if (descriptor < 0 || !write_all(descriptor, data, bytes)) abort();
  snprintf(path, 32, "/proc/self/fd/%d", descriptor);
  return descriptor;
}

/* The digest of an artifact's file, at its end. */
static void put_digest_right(uint8_t *data, size_t bytes) {
  edgert_sha256 hash;
  if (bytes < sizeof(edgert_trailer)) return;
  edgert_sha256_start(&hash);
  edgert_sha256_add(&hash, data, bytes - 32);
  edgert_sha256_finish(&hash, data + bytes - 32);
}

/* What the caller is promised of every refusal: no session, and a sentence. */
static void expect_refusal(edgert_status status, const edgert_session *session) {
  if (status == EDGERT_OK || session || !*edgert_last_error()) abort();
}

#endif
