/* Time, and which CPUs there are and which of them are fast. */
#define _GNU_SOURCE
#include "internal.h"

#include <stdio.h>
#include <time.h>

#if defined(__linux__)
#include <sched.h>
#endif

uint64_t edgert_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
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

/* The fastest allowed CPUs slower than `below`: adds all that share the highest speed, which is returned. */
static long add_fastest(const cpu_set_t *allowed, const long *speeds, long below, cpu_set_t *chosen) {
  long best = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, allowed) && speeds[cpu] < below && speeds[cpu] > best) best = speeds[cpu];
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (best > 0 && CPU_ISSET(cpu, allowed) && speeds[cpu] == best) CPU_SET(cpu, chosen);
  return best;
}

int edgert_pin_caller(uint32_t threads) {
  cpu_set_t allowed, chosen;
  long speeds[CPU_SETSIZE], speed = __LONG_MAX__;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) speeds[cpu] = CPU_ISSET(cpu, &allowed) ? cpu_speed(cpu) : 0;
  CPU_ZERO(&chosen);
  do speed = add_fastest(&allowed, speeds, speed, &chosen);
  while (speed > 0 && (uint32_t)CPU_COUNT(&chosen) < threads);
  return CPU_COUNT(&chosen) > 0 && sched_setaffinity(0, sizeof chosen, &chosen) == 0;
}

#else

uint32_t edgert_cpu_count(void) { return 0; }

int edgert_pin_caller(uint32_t threads) {
  (void)threads;
  return 0;
}

#endif
