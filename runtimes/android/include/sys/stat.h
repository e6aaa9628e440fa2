#pragma once
#include <sys/types.h>
#include <time.h>

#define S_IFMT 0170000
#define S_IFDIR 0040000
#define S_IFREG 0100000
#define S_ISDIR(mode) (((mode) & S_IFMT) == S_IFDIR)
#define S_ISREG(mode) (((mode) & S_IFMT) == S_IFREG)

/* As the kernel gives it, on a system of 32 bits its stat64. */
struct stat {
#if defined(__aarch64__)
  unsigned long st_dev, st_ino;
  mode_t st_mode;
  unsigned st_nlink, st_uid, st_gid;
  unsigned long st_rdev, padding;
  off_t st_size;
  int st_blksize, padding2;
  long st_blocks;
  struct timespec st_atim, st_mtim, st_ctim;
  unsigned unused[2];
#elif defined(__arm__)
  unsigned long long st_dev;
  unsigned padding;
  unsigned long st_short_ino;
  mode_t st_mode;
  unsigned st_nlink, st_uid, st_gid;
  unsigned long long st_rdev;
  unsigned padding2;
  long long st_size;
  unsigned long st_blksize;
  unsigned long long st_blocks;
  struct timespec st_atim, st_mtim, st_ctim;
  unsigned long long st_ino;
#elif defined(__x86_64__)
  unsigned long st_dev, st_ino, st_nlink;
  mode_t st_mode;
  unsigned st_uid, st_gid, padding;
  unsigned long st_rdev;
  off_t st_size;
  long st_blksize, st_blocks;
  struct timespec st_atim, st_mtim, st_ctim;
  long unused[3];
#endif
};

int stat(const char *path, struct stat *info);
int fstat(int descriptor, struct stat *info);
int mkdir(const char *path, mode_t mode);
