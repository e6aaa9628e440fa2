#pragma once
#include <sys/types.h>

#define PROT_READ 1
#define PROT_WRITE 2
#define MAP_SHARED 1
#define MAP_PRIVATE 2
#define MAP_FAILED ((void *)-1)

void *mmap(void *wanted, size_t bytes, int protection, int flags, int descriptor, off_t offset);
int munmap(void *memory, size_t bytes);
