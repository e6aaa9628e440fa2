/* Assertions: the first that does not hold ends the test and says where. */
#ifndef EDGERT_CHECK_H
#define EDGERT_CHECK_H

#include <edgert/edgert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) {                                                   \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);     \
      exit(1);                                                            \
    }                                                                     \
  } while (0)

#define CHECK_STATUS(call, expected)                                                              \
  do {                                                                                            \
    edgert_status status_ = (call);                                                               \
    if (status_ != (expected)) {                                                                  \
      fprintf(stderr, "%s:%d: %s is %s, not %s: %s\n", __FILE__, __LINE__, #call,                 \
              edgert_status_name(status_), edgert_status_name(expected), edgert_last_error());    \
      exit(1);                                                                                    \
    }                                                                                             \
  } while (0)

/* The call fails with `expected` and a sentence that holds `words`. */
#define CHECK_REFUSED(call, expected, words)                                                              \
  do {                                                                                                    \
    CHECK_STATUS(call, expected);                                                                         \
    if (!strstr(edgert_last_error(), words)) {                                                            \
      fprintf(stderr, "%s:%d: no '%s' in: %s\n", __FILE__, __LINE__, words, edgert_last_error());         \
      exit(1);                                                                                            \
    }                                                                                                     \
  } while (0)

#define CHECK_OK(call) CHECK_STATUS(call, EDGERT_OK)

#endif
