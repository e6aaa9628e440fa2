#pragma once
#include <sys/types.h>

#define R_OK 4
#define _SC_NPROCESSORS_CONF 0x60
#define _SC_NPROCESSORS_ONLN 0x61

int access(const char *path, int mode);
int close(int descriptor);
ssize_t read(int descriptor, void *data, size_t bytes);
ssize_t write(int descriptor, const void *data, size_t bytes);
ssize_t pread(int descriptor, void *data, size_t bytes, off_t offset);
int unlink(const char *path);
pid_t getpid(void);
int usleep(unsigned microseconds);
long sysconf(int name);
long syscall(long number, ...);
