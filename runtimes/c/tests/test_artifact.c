/* Artifact files, whole and damaged. Runs in the folder of the toy artifacts. */
#include "seal.h"
#include "toy.h"

#include <elf.h>
#include <unistd.h>

static edgert_status try_file(const char *path) {
  edgert_session *session = (edgert_session *)(uintptr_t)1;
  edgert_status status = edgert_open(path, NULL, &session);
  CHECK(status != EDGERT_OK && session == NULL);
  return status;
}

static edgert_status try_bytes(bytes content) {
  write_all("damaged.so", content.data, content.count);
  return try_file("damaged.so");
}

/* No code of a file may run before the file is known to be whole. The toy's constructor leaves a mark. */
static void check_flipped_bytes(void) {
  bytes toy = read_all("toy.so");
  size_t header = 64, trailer = toy.count - sizeof(edgert_trailer);
  for (size_t i = 0; i < toy.count; i += i < header || i >= trailer ? 1 : 31) {
    toy.data[i] ^= 0x10;
    edgert_status status = try_bytes(toy);
    CHECK(status == EDGERT_ERROR_DIGEST || status == EDGERT_ERROR_FORMAT || status == EDGERT_ERROR_ARCH);
    toy.data[i] ^= 0x10;
  }
  free(toy.data);
  CHECK(getenv("TOY_MODEL_LOADED") == NULL);
}

static void check_truncated(void) {
  bytes toy = read_all("toy.so");
  size_t whole = toy.count;
  const size_t lengths[] = {0, 1, 63, 64, 128, 1000, whole / 2, whole - 64, whole - 32, whole - 1};
  for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
    toy.count = lengths[i];
    CHECK_REFUSED(try_bytes(toy), EDGERT_ERROR_FORMAT, "damaged.so");
  }
  free(toy.data);
}

static void check_appended(void) {
  bytes toy = read_all("toy.so");
  bytes longer = {calloc(1, toy.count + 5), toy.count + 5};
  memcpy(longer.data, toy.data, toy.count);
  CHECK_REFUSED(try_bytes(longer), EDGERT_ERROR_FORMAT, "trailer");
  free(longer.data);
  free(toy.data);
}

/* Sealed files whose ELF header says something that this machine cannot load. */
static void check_foreign(void) {
  bytes toy = read_all("toy.so");
  uint16_t own = (uint16_t)(toy.data[18] | toy.data[19] << 8);
  toy.data[18] = own == EM_X86_64 ? EM_AARCH64 : EM_X86_64;
  toy.data[19] = 0;
  seal(toy);
  CHECK_REFUSED(try_bytes(toy), EDGERT_ERROR_ARCH, own == EM_X86_64 ? "built for aarch64" : "built for x86_64");
  toy.data[18] = EM_RISCV;
  seal(toy);
  CHECK_REFUSED(try_bytes(toy), EDGERT_ERROR_ARCH, "does not know");
  toy.data[18] = (uint8_t)own;
  toy.data[16] = ET_REL;
  seal(toy);
  CHECK_REFUSED(try_bytes(toy), EDGERT_ERROR_FORMAT, "no shared object for this machine");
  free(toy.data);
}

static void check_broken_trailer(void) {
  bytes toy = read_all("toy.so");
  memset(toy.data + toy.count - 48, 0xff, 8); /* the manifest's offset */
  seal(toy);
  CHECK_REFUSED(try_bytes(toy), EDGERT_ERROR_FORMAT, "broken trailer");
  free(toy.data);
}

static void check_other_files(void) {
  char text[4096];
  memset(text, 'x', sizeof text);
  write_all("text.so", text, sizeof text);
  CHECK_REFUSED(try_file("text.so"), EDGERT_ERROR_FORMAT, "no shared object");
  CHECK_REFUSED(try_file("no such file.so"), EDGERT_ERROR_FILE, "'no such file.so'");
  CHECK_REFUSED(try_file("."), EDGERT_ERROR_FILE, "not a regular file");
  CHECK_STATUS(try_file(""), EDGERT_ERROR_FILE);
  CHECK_STATUS(try_file(NULL), EDGERT_ERROR_ARGUMENT);
  CHECK_STATUS(edgert_open("toy.so", NULL, NULL), EDGERT_ERROR_ARGUMENT);
}

static void check_variants(void) {
  CHECK_REFUSED(try_file("toy_abi.so"), EDGERT_ERROR_ABI, "version 2");
  CHECK_REFUSED(try_file("toy_arch.so"), EDGERT_ERROR_ARCH, "unknown architecture");
  CHECK_REFUSED(try_file("toy_cpu.so"), EDGERT_ERROR_CPU, "lacks");
  CHECK_REFUSED(try_file("toy_shape.so"), EDGERT_ERROR_MODEL, "shape");
  CHECK_REFUSED(try_file("toy_symbol.so"), EDGERT_ERROR_LOAD, EDGERT_MODEL_SYMBOL);
}

static void check_skipped_digest(void) {
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session;
  bytes toy = read_all("toy.so");
  toy.data[toy.count - 1] ^= 1;
  CHECK_STATUS(try_bytes(toy), EDGERT_ERROR_DIGEST);
  options.flags = EDGERT_SKIP_DIGEST;
  CHECK_OK(edgert_open("damaged.so", &options, &session));
  toy_run(session, 3);
  edgert_close(session);
  free(toy.data);
}

static void check_whole(void) {
  char folder[1024], path[2048];
  edgert_session *session;
  CHECK_OK(edgert_open("toy.so", NULL, &session));
  CHECK(getenv("TOY_MODEL_LOADED") != NULL);
  toy_run(session, 3);
  edgert_close(session);
  CHECK(getcwd(folder, sizeof folder) != NULL);
  snprintf(path, sizeof path, "%s/toy.so", folder);
  CHECK_OK(edgert_open(path, NULL, &session));
  toy_run(session, 3);
  edgert_close(session);
}

static void copy_over(const char *from, const char *to) {
  bytes content = read_all(from);
  write_all("beside.so", content.data, content.count);
  CHECK(rename("beside.so", to) == 0);
  free(content.data);
}

/* A session keeps its model when the file is compiled anew, and the next one gets the new model. */
static void check_replaced(void) {
  edgert_session *old, *new, *same;
  copy_over("toy.so", "replaced.so");
  CHECK_OK(edgert_open("replaced.so", NULL, &old));
  copy_over("toy_other.so", "replaced.so");
  CHECK_OK(edgert_open("replaced.so", NULL, &new));
  CHECK_OK(edgert_open("replaced.so", NULL, &same));
  toy_run(old, 3);
  toy_run(new, 7);
  toy_run(same, 7);
  toy_run(old, 3);
  edgert_close(old);
  toy_run(new, 7);
  edgert_close(new);
  edgert_close(same);
}

int main(void) {
  check_flipped_bytes();
  check_truncated();
  check_appended();
  check_foreign();
  check_broken_trailer();
  check_other_files();
  check_variants();
  check_whole();
  check_skipped_digest();
  check_replaced();
  return 0;
}
