#pragma once
#pragma GCC system_header
#include_next <limits.h>

#define PATH_MAX 4096
