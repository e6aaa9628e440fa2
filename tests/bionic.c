/* What Android's C library has and glibc has not: with it, programs for Android run under glibc's loader. */
#define _LARGEFILE64_SOURCE
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>

double (*const loads_libm)(double) = tgamma;

int *__errno(void) { return &errno; }

#ifdef __arm__ /* Android's struct stat is what glibc calls stat64 there */
int fstat(int descriptor, struct stat *info) { return fstat64(descriptor, (struct stat64 *)info); }
#endif

void __libc_init(void *arguments, void (*at_exit)(void), int (*run)(int, char **, char **), const void *functions) {
  long count = *(long *)arguments;
  char **values = (char **)arguments + 1;
  (void)at_exit, (void)functions;
  exit(run((int)count, values, values + count + 1));
}
