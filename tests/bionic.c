/* What Android's C library has and glibc has not: with it, programs for Android run under glibc's loader. */
#include <errno.h>
#include <stdlib.h>

int *__errno(void) { return &errno; }

void __libc_init(void *arguments, void (*at_exit)(void), int (*run)(int, char **, char **), const void *functions) {
  long count = *(long *)arguments;
  char **values = (char **)arguments + 1;
  (void)at_exit, (void)functions;
  exit(run((int)count, values, values + count + 1));
}
