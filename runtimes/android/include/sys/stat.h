#pragma once
#include <sys/types.h>
#include <time.h>

#define S_IFMT 0170000
#define S_IFDIR 0040000
#define S_IFREG 0100000
#define S_ISDIR(mode) (((mode) & S_IFMT) == S_IFDIR)
#define S_ISREG(mode) (((mode) & S_IFMT) == S_IFREG)

struct stat {
  unsigned long st_dev, st_ino;
  mode_t st_mode;
  unsigned st_nlink, st_uid, st_gid;
  unsigned long st_rdev, padding;
  off_t st_size;
  int st_blksize, padding2;
  long st_blocks;
  struct timespec st_atim, st_mtim, st_ctim;
  unsigned unused[2];
};

int stat(const char *path, struct stat *info);
int fstat(int descriptor, struct stat *info);
int mkdir(const char *path, mode_t mode);
