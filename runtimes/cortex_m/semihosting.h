/* ARM's semihosting: files and the console of the machine that runs the emulator (or the debugger). */
#ifndef EDGEC_SEMIHOSTING_H
#define EDGEC_SEMIHOSTING_H

#include <stddef.h>
#include <stdint.h>

enum { SEMIHOSTING_READ_BINARY = 1, SEMIHOSTING_WRITE_BINARY = 5 }; /* modes of semihosting_open */

/* One call: an operation by its number, and a block of arguments. */
static inline intptr_t semihosting(int operation, const void *arguments) {
  register int number __asm__("r0") = operation;
  register const void *block __asm__("r1") = arguments;
  __asm__ volatile("bkpt 0xab" : "+r"(number) : "r"(block) : "memory");
  return number;
}

/* A handle, or -1. */
static inline intptr_t semihosting_open(const char *path, int mode) {
  size_t length = 0;
  while (path[length]) length++;
  const uintptr_t block[] = {(uintptr_t)path, (uintptr_t)mode, length};
  return semihosting(0x01, block);
}

/* Whether all `bytes` were written. */
static inline int semihosting_write(intptr_t file, const void *data, size_t bytes) {
  const uintptr_t block[] = {(uintptr_t)file, (uintptr_t)data, bytes};
  return semihosting(0x05, block) == 0;
}

/* Whether all `bytes` were there to read. */
static inline int semihosting_read(intptr_t file, void *data, size_t bytes) {
  const uintptr_t block[] = {(uintptr_t)file, (uintptr_t)data, bytes};
  return semihosting(0x06, block) == 0;
}

static inline void semihosting_close(intptr_t file) {
  const uintptr_t block[] = {(uintptr_t)file};
  semihosting(0x02, block);
}

static inline void semihosting_print(const char *text) { semihosting(0x04, text); }

/* End the emulator with an exit code. */
__attribute__((noreturn)) static inline void semihosting_exit(int code) {
  const uintptr_t block[] = {0x20026 /* the application ended */, (uintptr_t)code};
  semihosting(0x20, block);
  for (;;) {
  }
}

#endif
