/* Time, and which CPUs there are and which of them are fast. */
#define _GNU_SOURCE
#include "internal.h"

#include <limits.h>

#if EDGERT_WITH_SYSTEM
#include <stdio.h>
#include <time.h>
#endif

#if defined(__linux__)
#include <sched.h>
#endif

#if EDGERT_WITH_SYSTEM

uint64_t edgert_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#else

__attribute__((weak)) uint64_t edgert_clock_ns(void) { return 0; } /* the program may define its own */

uint64_t edgert_now_ns(void) { return edgert_clock_ns(); }

#endif

/* The highest speed below `limit`, 0 if there is none. */
static long next_speed(const long *speeds, int count, long limit) {
  long best = 0;
  for (int cpu = 0; cpu < count; cpu++)
    if (speeds[cpu] < limit && speeds[cpu] > best) best = speeds[cpu];
  return best;
}

static uint32_t count_from(const long *speeds, int count, long least) {
  uint32_t found = 0;
  for (int cpu = 0; cpu < count; cpu++) found += speeds[cpu] >= least;
  return found;
}

long edgert_least_speed(const long *speeds, int count, uint32_t threads) {
  long least = next_speed(speeds, count, LONG_MAX);
  while (least > 0 && count_from(speeds, count, least) < threads) {
    long next = next_speed(speeds, count, least);
    if (next == 0) break;
    least = next;
  }
  return least;
}

#if defined(__linux__)

uint32_t edgert_cpu_count(void) {
  cpu_set_t allowed;
  return sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? (uint32_t)CPU_COUNT(&allowed) : 0;
}

static long read_number(const char *format, int cpu) {
  char path[96];
  long number = -1;
  snprintf(path, sizeof path, format, cpu);
  FILE *file = fopen(path, "re");
  if (!file) return -1;
  if (fscanf(file, "%ld", &number) != 1) number = -1;
  fclose(file);
  return number;
}

/* The kernel's own measure of a core's speed where it has one (ARM), its highest frequency elsewhere. */
static long cpu_speed(int cpu) {
  long speed = read_number("/sys/devices/system/cpu/cpu%d/cpu_capacity", cpu);
  return speed > 0 ? speed : read_number("/sys/devices/system/cpu/cpu%d/cpufreq/cpuinfo_max_freq", cpu);
}

int edgert_pin_caller(uint32_t threads) {
  cpu_set_t allowed, chosen;
  long speeds[CPU_SETSIZE];
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) speeds[cpu] = CPU_ISSET((size_t)cpu, &allowed) ? cpu_speed(cpu) : 0;
  long least = edgert_least_speed(speeds, CPU_SETSIZE, threads);
  CPU_ZERO(&chosen);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (least > 0 && speeds[cpu] >= least) CPU_SET((size_t)cpu, &chosen);
  return least > 0 && sched_setaffinity(0, sizeof chosen, &chosen) == 0;
}

#else

uint32_t edgert_cpu_count(void) { return 0; }

int edgert_pin_caller(uint32_t threads) {
  (void)threads;
  return 0;
}

#endif
