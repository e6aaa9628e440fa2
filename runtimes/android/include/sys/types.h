#pragma once
#include <stddef.h>
#include <stdint.h>

typedef long off_t, time_t; /* 32 bits on a system of 32 bits, as the functions of these names take them */
typedef intptr_t ssize_t;
typedef int pid_t;
typedef unsigned mode_t;
