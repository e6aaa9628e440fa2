/* Coded weights: the toy model's, decoded to the same bytes, in memory of the heap and of the caller; and damaged ones,
 * which are refused or give other weights, and never touch what is not theirs. */
#include "internal.h"
#include "toy.h"

#define RUNS 2
#define VALUES 18 /* int32, of which only the lowest bytes are not 0 */

/* The first nine values as they are, the others by codes of four bits for 0 to 15. */
typedef struct toy_coded {
  edgert_coded head;
  uint8_t table[EDGERT_CODE_TABLE_BYTES];
  edgert_coded_run runs[RUNS];
  uint8_t codes[9 + 5];
} toy_coded;

static const toy_coded sound = {
    {1, RUNS},
    {0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44},
    {{0, 9, 9, 4, EDGERT_CODE_STORED}, {36, 9, 5, 4, 0}},
    {3, 1, 4, 1, 5, 9, 2, 6, 5, 0x35, 0x89, 0x79, 0x32, 0x00},
};
static const size_t coded_bytes = offsetof(toy_coded, codes) + sizeof sound.codes;

static edgert_model model_of(const toy_coded *coded, size_t bytes) {
  edgert_model model = edgert_model_v1;
  edgert_sha256 hash;
  model.weights = NULL;
  model.coded = (const uint8_t *)coded;
  model.coded_bytes = bytes;
  edgert_sha256_start(&hash);
  edgert_sha256_add(&hash, coded, bytes);
  edgert_sha256_add(&hash, model.manifest, (size_t)model.manifest_bytes);
  edgert_sha256_finish(&hash, model.sha256);
  return model;
}

#if EDGERT_WITH_FILES

static void check_sound(bool given) {
  static _Alignas(128) uint8_t memory[32768];
  const edgert_model model = model_of(&sound, coded_bytes);
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session;
  uint64_t required, plain;
  CHECK_OK(edgert_memory_required(&model, &options, &required));
  CHECK_OK(edgert_memory_required(&edgert_model_v1, &options, &plain));
  CHECK(required > plain && required <= plain + 4 * VALUES + model.arena_alignment);
  memset(memory, 0xA5, sizeof memory);
  options.memory = given ? memory : NULL;
  options.memory_bytes = required;
  CHECK_OK(edgert_open_model(&model, &options, &session));
  CHECK(memcmp(session->weights, edgert_model_v1.weights, 4 * VALUES) == 0);
  toy_run(session, 3);
  edgert_close(session);
  CHECK(memory[required] == 0xA5);
}

static void refuse(const toy_coded *coded, size_t bytes) {
  const edgert_model model = model_of(coded, bytes);
  edgert_session *session;
  CHECK_REFUSED(edgert_open_model(&model, NULL, &session), EDGERT_ERROR_MODEL, "coded weights of model 'toy'");
  CHECK(session == NULL);
}

#define CHECK_DAMAGED(field, value) \
  do {                              \
    toy_coded coded = sound;        \
    coded.field = value;            \
    refuse(&coded, coded_bytes);    \
  } while (0)

static void check_damaged(void) {
  CHECK_DAMAGED(head.table_count, 0);
  CHECK_DAMAGED(head.table_count, UINT32_MAX);
  CHECK_DAMAGED(head.run_count, 1);
  CHECK_DAMAGED(head.run_count, UINT32_MAX);
  CHECK_DAMAGED(table[0], 0x45);   /* a code less than complete */
  CHECK_DAMAGED(table[0], 0x34);   /* and more */
  CHECK_DAMAGED(table[100], 0x40);
  CHECK_DAMAGED(table[100], 0xF0); /* longer than any */
  CHECK_DAMAGED(runs[0].offset, 40);
  CHECK_DAMAGED(runs[0].offset, UINT32_MAX);
  CHECK_DAMAGED(runs[0].count, 0);
  CHECK_DAMAGED(runs[0].count, 8);
  CHECK_DAMAGED(runs[0].bytes, 8);
  CHECK_DAMAGED(runs[0].step, 0);
  CHECK_DAMAGED(runs[0].step, UINT16_MAX);
  CHECK_DAMAGED(runs[1].count, 7);  /* a byte of its code is left */
  CHECK_DAMAGED(runs[1].count, 10); /* fits, but the last four bits are no padding then: it leaves the weights */
  CHECK_DAMAGED(runs[1].bytes, 4);
  CHECK_DAMAGED(runs[1].bytes, 6);
  CHECK_DAMAGED(runs[1].bytes, UINT32_MAX);
  CHECK_DAMAGED(runs[1].table, 1);
  CHECK_DAMAGED(codes[13], 1); /* bits after the last code */
  for (size_t bytes = 0; bytes < coded_bytes; bytes++) refuse(&sound, bytes);
}

/* Any bit: what opens has weights; that no byte outside is touched is AddressSanitizer's to say. */
static void check_bits(void) {
  for (size_t bit = 0; bit < 8 * coded_bytes; bit++) {
    toy_coded *coded = malloc(coded_bytes); /* exactly as large as it is said to be */
    edgert_session *session;
    CHECK(coded != NULL);
    memcpy(coded, &sound, coded_bytes);
    ((uint8_t *)coded)[bit / 8] ^= (uint8_t)(1u << bit % 8);
    edgert_model model = model_of(coded, coded_bytes);
    if (edgert_open_model(&model, NULL, &session) == EDGERT_OK) CHECK_OK(edgert_run(session));
    edgert_close(session);
    memcpy(model.sha256, model_of(&sound, coded_bytes).sha256, sizeof model.sha256);
    CHECK_STATUS(edgert_open_model(&model, NULL, &session), EDGERT_ERROR_DIGEST);
    free(coded);
  }
}

int main(void) {
  edgert_model model = model_of(&sound, coded_bytes);
  edgert_session *session;
  check_sound(false);
  check_sound(true);
  check_damaged();
  check_bits();
  model.weights = edgert_model_v1.weights;
  CHECK_REFUSED(edgert_open_model(&model, NULL, &session), EDGERT_ERROR_MODEL, "twice");
  return 0;
}

#else

int main(void) {
  const edgert_model model = model_of(&sound, coded_bytes);
  edgert_session *session;
  CHECK_REFUSED(edgert_open_model(&model, NULL, &session), EDGERT_ERROR_MODEL, "without --compress");
  return 0;
}

#endif
