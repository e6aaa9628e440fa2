/* libFuzzer: files for edgert_open_signed. The last four bytes of an input say what becomes of the others: they are
 * opened as they are, signed, signed after their digest was put right, or signed and then damaged. What the key has not
 * signed never comes to the loader, nor does what it has signed with a wrong digest. A keyed hash stands in the place
 * of Ed25519, which is another library's. */
#include "files.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const uint8_t key[32] = "the key of a fuzzer";

static void sign(const uint8_t message[32], uint8_t signature[64]) {
  edgert_sha256 hash;
  for (unsigned half = 0; half < 2; half++) {
    edgert_sha256_start(&hash);
    edgert_sha256_add(&hash, key, sizeof key);
    edgert_sha256_add(&hash, message, 32);
    edgert_sha256_finish(&hash, signature + 32 * half);
  }
}

bool edgert_verifies_signatures(void) { return true; }

bool edgert_signature_is_valid(const uint8_t public_key[32], const uint8_t signature[64], const uint8_t digest[32]) {
  uint8_t wanted[64];
  sign(digest, wanted);
  return memcmp(public_key, key, 32) == 0 && memcmp(signature, wanted, 64) == 0;
}

/* The signature's block behind `bytes` of content. */
static void append_signature(uint8_t *data, size_t bytes) {
  edgert_signature block;
  edgert_sha256 hash;
  uint8_t digest[32];
  edgert_sha256_start(&hash);
  edgert_sha256_add(&hash, data, bytes);
  edgert_sha256_finish(&hash, digest);
  sign(digest, block.signature);
  memcpy(block.magic, EDGERT_SIGNATURE_MAGIC, sizeof block.magic);
  memcpy(data + bytes, &block, sizeof block);
}

static bool has_right_digest(const uint8_t *data, size_t bytes) {
  edgert_sha256 hash;
  uint8_t digest[32];
  if (bytes < 32) return false;
  edgert_sha256_start(&hash);
  edgert_sha256_add(&hash, data, bytes - 32);
  edgert_sha256_finish(&hash, digest);
  return memcmp(digest, data + bytes - 32, 32) == 0;
}

static edgert_status open_bytes(const uint8_t *data, size_t bytes) {
  char path[32];
  int descriptor = make_file(data, bytes, path);
  edgert_session *session = NULL;
  is_loaded = false;
  edgert_status status = edgert_open_signed(path, key, NULL, &session);
  expect_refusal(status, session);
  close(descriptor);
  return status;
}

enum { AS_IT_IS, SIGNED, SIGNED_WITH_DIGEST, DAMAGED, CUT, WAYS };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
  uint32_t control;
  if (bytes < sizeof control) return 0;
  bytes -= sizeof control;
  memcpy(&control, data + bytes, sizeof control);
  unsigned way = control % WAYS;
  size_t whole = bytes + sizeof(edgert_signature), place = (control / WAYS) % whole;
  uint8_t *copy = malloc(whole);
  if (!copy) return 0;
  memcpy(copy, data, bytes);
  place_of_digest = (uint32_t)place;
  if (way != AS_IT_IS && way != SIGNED) put_digest_right(copy, bytes);
  append_signature(copy, bytes);
  if (way == DAMAGED) copy[place] ^= (uint8_t)(1 + control / 7 % 255);
  edgert_status status = open_bytes(copy, way == AS_IT_IS ? bytes : way == CUT ? place : whole);
  bool is_trusted = way == SIGNED || way == SIGNED_WITH_DIGEST;
  if (!is_trusted && (status != EDGERT_ERROR_SIGNATURE || is_loaded)) abort();
  if (is_trusted && (status == EDGERT_ERROR_SIGNATURE || (is_loaded && !has_right_digest(copy, bytes)))) abort();
  free(copy);
  return 0;
}
