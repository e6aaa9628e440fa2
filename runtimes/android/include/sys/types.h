#pragma once
#include <stddef.h>
#include <stdint.h>

typedef long off_t, ssize_t, time_t;
typedef int pid_t;
typedef unsigned mode_t;
