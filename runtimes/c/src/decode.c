/* Weights that an artifact holds as Huffman codes. Nothing of the codes is trusted: what leaves the weights or the codes,
 * and codes that are not complete, are refused. */
#include "internal.h"

#include <string.h>

#define ENTRIES (1u << EDGERT_CODE_BITS)

/* By the next EDGERT_CODE_BITS bits: the byte, and above it the bits of its code. */
typedef struct decoder {
  uint16_t entries[ENTRIES];
  uint32_t table; /* what they are made of; EDGERT_CODE_STORED: of nothing yet */
} decoder;

const uint8_t *edgert_model_coded(const edgert_model *model) {
  const size_t end = offsetof(edgert_model, coded_bytes) + sizeof model->coded_bytes;
  return model->struct_bytes >= end ? model->coded : NULL;
}

#if EDGERT_WITH_FILES

static uint32_t length_of(const uint8_t *table, uint32_t value) {
  return value & 1 ? table[value / 2] >> 4 : table[value / 2] & 15u;
}

/* Gives each code the entries that begin with it; false unless every entry is then given once. */
static bool make_entries(decoder *made, const uint8_t *table) {
  uint32_t next = 0;
  for (uint32_t value = 0; value < 256; value++)
    if (length_of(table, value) > EDGERT_CODE_BITS) return false;
  for (uint32_t length = 1; length <= EDGERT_CODE_BITS; length++) {
    const uint32_t span = ENTRIES >> length;
    for (uint32_t value = 0; value < 256; value++) {
      if (length_of(table, value) != length) continue;
      if (span > ENTRIES - next) return false;
      for (uint32_t i = 0; i < span; i++) made->entries[next++] = (uint16_t)(length << 8 | value);
    }
  }
  return next == ENTRIES;
}

static uint64_t eight_bytes(const uint8_t *from) {
  uint64_t word;
  memcpy(&word, from, sizeof word);
  return __builtin_bswap64(word); /* every architecture of edgert_arch is little endian */
}

static bool decode_bytes(const decoder *by, const edgert_coded_run *run, const uint8_t *code, uint8_t *weights) {
  uint64_t window = 0; /* its highest `held` bits are the next ones; what is below is 0, or what comes there anyway */
  uint32_t held = 0, next = 0;
  for (uint32_t i = 0; i < run->count; i++) {
    if (held < EDGERT_CODE_BITS && run->bytes - next >= 8) {
      window |= eight_bytes(code + next) >> held;
      next += (63 - held) / 8;
      held += (63 - held) / 8 * 8;
    }
    for (; held < EDGERT_CODE_BITS && next < run->bytes; held += 8) window |= (uint64_t)code[next++] << (56 - held);
    const uint32_t entry = by->entries[window >> (64 - EDGERT_CODE_BITS)], length = entry >> 8;
    if (length > held) return false;
    window <<= length;
    held -= length;
    weights[(size_t)i * run->step] = (uint8_t)entry;
  }
  return next == run->bytes && held < 8 && window == 0;
}

static bool decode_run(decoder *by, const uint8_t *tables, const edgert_coded_run *run, const uint8_t *code,
                       uint8_t *weights) {
  if (run->table == EDGERT_CODE_STORED) {
    if (run->bytes != run->count) return false;
    for (uint32_t i = 0; i < run->count; i++) weights[(size_t)i * run->step] = code[i];
    return true;
  }
  if (by->table != run->table) {
    if (!make_entries(by, tables + (size_t)run->table * EDGERT_CODE_TABLE_BYTES)) return false;
    by->table = run->table;
  }
  return decode_bytes(by, run, code, weights);
}

static bool decode(const uint8_t *coded, uint64_t bytes, uint8_t *weights, uint64_t weights_bytes) {
  edgert_coded head;
  decoder by;
  if (bytes < sizeof head) return false;
  memcpy(&head, coded, sizeof head);
  const uint64_t tables = (uint64_t)head.table_count * EDGERT_CODE_TABLE_BYTES;
  const uint64_t first = sizeof head + tables + (uint64_t)head.run_count * sizeof(edgert_coded_run);
  if (first > bytes) return false;
  const uint8_t *at = coded + sizeof head + tables, *code = coded + first, *end = coded + bytes;
  by.table = EDGERT_CODE_STORED;
  memset(weights, 0, (size_t)weights_bytes);
  for (uint32_t i = 0; i < head.run_count; i++, at += sizeof(edgert_coded_run)) {
    edgert_coded_run run;
    memcpy(&run, at, sizeof run);
    if (run.count == 0 || run.step == 0 || run.bytes > (uint64_t)(end - code)) return false;
    if (run.offset + (uint64_t)(run.count - 1) * run.step >= weights_bytes) return false;
    if (run.table != EDGERT_CODE_STORED && run.table >= head.table_count) return false;
    if (!decode_run(&by, coded + sizeof head, &run, code, weights + run.offset)) return false;
    code += run.bytes;
  }
  return code == end;
}

edgert_status edgert_decode(const edgert_model *model, uint8_t *weights) {
  if (decode(edgert_model_coded(model), model->coded_bytes, weights, model->weights_bytes)) return EDGERT_OK;
  return edgert_fail(EDGERT_ERROR_MODEL, "the coded weights of model '%s' are damaged; compile the model again or copy "
                     "it anew", model->name);
}

#else

edgert_status edgert_decode(const edgert_model *model, uint8_t *weights) {
  (void)weights;
  return edgert_fail(EDGERT_ERROR_MODEL, "the weights of model '%s' are coded, and this libedgert was built without what "
                     "decodes them (EDGERT_FILES); compile the model without --compress", model->name);
}

#endif
