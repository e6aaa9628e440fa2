/* What the toy model computes, for the tests that run it. */
#ifndef EDGERT_TOY_H
#define EDGERT_TOY_H

#include "check.h"

#define TOY_ELEMENTS 119

extern const edgert_model edgert_model_v1;

static inline float toy_x(int i) { return (float)(i % 23) - 11.0f; }

/* y[i] where the first of the 17 weights is `first`. */
static inline float toy_y(int i, int first) {
  static const int weights[17] = {0, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2};
  int source = (i + 1) % TOY_ELEMENTS;
  int weight = source % 17 ? weights[source % 17] : first;
  return toy_x(source) * (float)weight + 1.0f;
}

static inline void toy_fill(float *x, int8_t *q) {
  for (int i = 0; i < TOY_ELEMENTS; i++) x[i] = toy_x(i);
  for (int i = 0; i < 5; i++) q[i] = (int8_t)(10 * i - 27);
}

static inline void toy_expect(const float *y, const int32_t *sum, int first) {
  for (int i = 0; i < TOY_ELEMENTS; i++) CHECK(y[i] == toy_y(i, first));
  CHECK(*sum == -35);
}

/* Run a session on its own buffers and check what comes out. */
static inline void toy_run(edgert_session *session, int first) {
  toy_fill(edgert_input_data(session, 0), edgert_input_data(session, 1));
  CHECK_OK(edgert_run(session));
  toy_expect(edgert_output_data(session, 0), edgert_output_data(session, 1), first);
}

#endif
