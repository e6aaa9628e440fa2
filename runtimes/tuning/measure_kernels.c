/* Measures candidate kernels, each against the others, on one thread; edgec writes the table of candidates.
 *
 *   measure_kernels SECONDS ROUNDS     time: up to ROUNDS rounds, at most about SECONDS
 *   measure_kernels count              reads the clock before and after one call of each, for an emulator that counts
 *
 * A line "try I" announces the first call of candidate I: if the program ends in it, the candidate is to blame. Then
 * come lines "best I NANOSECONDS". In a round every candidate is called once. What the others have executed pushes its
 * code and weights out of the nearest caches, as the rest of a network does; input and output are shared, and warm.
 */
#define _POSIX_C_SOURCE 200809L
#include "measure_kernels.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ALIGNMENT = 64, SPARE = 64, LEAST_ROUNDS = 3 };

static uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* Random values in [-0.5, 0.5), or random bytes; kernels may read SPARE bytes more. */
static void *filled(uint64_t bytes, int is_float) {
  static uint32_t state = 1;
  size_t size = (size_t)((bytes + SPARE + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
  void *memory = aligned_alloc(ALIGNMENT, size);
  if (!memory) {
    fputs("out of memory\n", stderr);
    exit(2);
  }
  for (size_t i = 0; i < size / 4; i++) {
    state = state * 1664525u + 1013904223u;
    float value = (float)(state >> 8) / 16777216.0f - 0.5f;
    if (is_float) ((float *)memory)[i] = value;
    else ((uint32_t *)memory)[i] = state ^ state >> 16;
  }
  return memory;
}

static void ***bind_operands(void) {
  void **shared = calloc(operand_count, sizeof *shared);
  void ***bound = calloc(candidate_count, sizeof *bound);
  if (!shared || !bound) exit(2);
  for (uint32_t i = 0; i < operand_count; i++) shared[i] = filled(operands[i].bytes, operands[i].is_float);
  for (uint32_t i = 0; i < candidate_count; i++) {
    bound[i] = calloc(operand_count, sizeof **bound);
    if (!bound[i]) exit(2);
    memcpy(bound[i], shared, operand_count * sizeof *shared);
    if (candidates[i].weight_bytes) bound[i][1] = filled(candidates[i].weight_bytes, operands[1].is_float);
  }
  return bound;
}

static void count(void ***bound) {
  for (uint32_t i = 0; i < candidate_count; i++) {
    now_ns();
    candidates[i].call(bound[i]);
    now_ns();
  }
}

static void measure(void ***bound, double seconds, uint64_t rounds) {
  uint64_t *best = malloc(candidate_count * sizeof *best);
  if (!best) exit(2);
  for (uint32_t i = 0; i < candidate_count; i++) best[i] = UINT64_MAX;
  uint64_t end = now_ns() + (uint64_t)(seconds * 1e9);
  for (uint64_t round = 0; round < rounds && (round < LEAST_ROUNDS || now_ns() < end); round++) {
    for (uint32_t i = 0; i < candidate_count; i++) {
      uint64_t start = now_ns();
      candidates[i].call(bound[i]);
      uint64_t taken = now_ns() - start;
      if (taken < best[i]) best[i] = taken;
    }
  }
  for (uint32_t i = 0; i < candidate_count; i++) printf("best %" PRIu32 " %" PRIu64 "\n", i, best[i]);
  free(best);
}

int main(int argc, char **argv) {
  void ***bound = bind_operands();
  for (uint32_t i = 0; i < candidate_count; i++) {
    printf("try %" PRIu32 "\n", i);
    fflush(stdout);
    candidates[i].call(bound[i]);
  }
  if (argc == 3) measure(bound, strtod(argv[1], NULL), strtoull(argv[2], NULL, 10));
  else count(bound);
  return 0;
}
