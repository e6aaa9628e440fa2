/* flip ARTIFACT [KEY-IN-HEX]: changes one bit in each byte of the file in turn, and each time opening must be refused.
 *
 * With a key, through edgert_open_signed. The file is as before in the end, and must open then. Exit code 0 and the
 * count of bytes, or 1 and the place of the byte.
 */
#define _GNU_SOURCE
#include <edgert/edgert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static edgert_status try_open(const char *path, const uint8_t *key) {
  edgert_session *session = NULL;
  edgert_status status =
      key ? edgert_open_signed(path, key, NULL, &session) : edgert_open(path, NULL, &session);
  if ((status == EDGERT_OK) != (session != NULL)) exit(3);
  edgert_close(session);
  return status;
}

int main(int argc, char **argv) {
  uint8_t key[32];
  struct stat info;
  int file = argc > 1 ? open(argv[1], O_RDWR) : -1;
  if (file < 0 || fstat(file, &info) != 0) return 2;
  for (int i = 0; argc > 2 && i < 32; i++) {
    char digits[3] = {argv[2][2 * i], argv[2][2 * i + 1], 0};
    key[i] = (uint8_t)strtoul(digits, NULL, 16);
  }
  for (off_t i = 0; i < info.st_size; i++) {
    uint8_t own, changed;
    if (pread(file, &own, 1, i) != 1) return 2;
    changed = (uint8_t)(own ^ 1u << i % 8);
    if (pwrite(file, &changed, 1, i) != 1) return 2;
    edgert_status status = try_open(argv[1], argc > 2 ? key : NULL);
    if (pwrite(file, &own, 1, i) != 1) return 2;
    if (status == EDGERT_OK) {
      fprintf(stderr, "flip: byte %lld of '%s' changed and it opened\n", (long long)i, argv[1]);
      return 1;
    }
  }
  close(file);
  if (try_open(argv[1], argc > 2 ? key : NULL) != EDGERT_OK) {
    fprintf(stderr, "flip: '%s' does not open as it is: %s\n", argv[1], edgert_last_error());
    return 1;
  }
  printf("%lld bytes\n", (long long)info.st_size);
  return 0;
}
