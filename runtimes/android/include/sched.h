#pragma once
#include <sys/types.h>

#define CPU_SETSIZE 1024

#define CPU_WORD (8 * (int)sizeof(unsigned long))

typedef struct { unsigned long bits[CPU_SETSIZE / CPU_WORD]; } cpu_set_t;

#define CPU_ZERO(set) __builtin_memset(set, 0, sizeof(cpu_set_t))
#define CPU_SET(cpu, set) ((void)((set)->bits[(cpu) / CPU_WORD] |= 1ul << (cpu) % CPU_WORD))
#define CPU_ISSET(cpu, set) ((set)->bits[(cpu) / CPU_WORD] >> (cpu) % CPU_WORD & 1)
#define CPU_COUNT(set) __sched_cpucount(sizeof(cpu_set_t), set)

int __sched_cpucount(size_t bytes, const cpu_set_t *set);
int sched_getaffinity(pid_t process, size_t bytes, cpu_set_t *set);
int sched_setaffinity(pid_t process, size_t bytes, const cpu_set_t *set);
int sched_yield(void);
