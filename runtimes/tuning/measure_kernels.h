/* What the file written for a batch of candidate kernels tells the program that measures them. */
#ifndef MEASURE_KERNELS_H
#define MEASURE_KERNELS_H

#include <stdint.h>

typedef struct candidate {
  void (*call)(void *const *operands);
  uint64_t weight_bytes; /* of operand 1 as this candidate packs it; 0: it is shared like the others */
} candidate;

/* An operand of every candidate: its size, and whether it holds float32. */
typedef struct operand {
  uint64_t bytes;
  int is_float;
} operand;

extern const candidate candidates[];
extern const uint32_t candidate_count;
extern const operand operands[];
extern const uint32_t operand_count;

#endif
