/* SHA-256 as FIPS 180-4 (section 6.2) writes it. */
#include "internal.h"

#include <string.h>

/* Section 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64 primes. */
static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t x, int count) { return x >> count | x << (32 - count); }

static uint32_t load_word(const uint8_t *bytes) {
  return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static void store_word(uint8_t *bytes, uint32_t word) {
  for (int i = 0; i < 4; i++) bytes[i] = (uint8_t)(word >> (24 - 8 * i));
}

/* One round. Rounds rename the eight words instead of moving them, so that they stay in registers. */
static inline void sha_round(uint32_t a, uint32_t b, uint32_t c, uint32_t *d, uint32_t e, uint32_t f, uint32_t g,
                             uint32_t *h, uint32_t input) {
  uint32_t big1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
  uint32_t big0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
  uint32_t choice = (e & f) ^ (~e & g);
  uint32_t majority = (a & b) ^ (a & c) ^ (b & c);
  *h += big1 + choice + input;
  *d += *h;
  *h += big0 + majority;
}

static inline void eight_rounds(uint32_t s[8], const uint32_t *w, const uint32_t *k) {
  sha_round(s[0], s[1], s[2], &s[3], s[4], s[5], s[6], &s[7], w[0] + k[0]);
  sha_round(s[7], s[0], s[1], &s[2], s[3], s[4], s[5], &s[6], w[1] + k[1]);
  sha_round(s[6], s[7], s[0], &s[1], s[2], s[3], s[4], &s[5], w[2] + k[2]);
  sha_round(s[5], s[6], s[7], &s[0], s[1], s[2], s[3], &s[4], w[3] + k[3]);
  sha_round(s[4], s[5], s[6], &s[7], s[0], s[1], s[2], &s[3], w[4] + k[4]);
  sha_round(s[3], s[4], s[5], &s[6], s[7], s[0], s[1], &s[2], w[5] + k[5]);
  sha_round(s[2], s[3], s[4], &s[5], s[6], s[7], s[0], &s[1], w[6] + k[6]);
  sha_round(s[1], s[2], s[3], &s[4], s[5], s[6], s[7], &s[0], w[7] + k[7]);
}

static void compress(uint32_t state[8], const uint8_t block[64]) {
  uint32_t w[64], s[8];
  for (int t = 0; t < 16; t++) w[t] = load_word(block + 4 * t);
  for (int t = 16; t < 64; t++) {
    uint32_t small0 = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3;
    uint32_t small1 = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10;
    w[t] = small1 + w[t - 7] + small0 + w[t - 16];
  }
  memcpy(s, state, sizeof s);
  for (int t = 0; t < 64; t += 8) eight_rounds(s, w + t, constants + t);
  for (int i = 0; i < 8; i++) state[i] += s[i];
}

void edgert_sha256_start(edgert_sha256 *hash) {
  /* Section 5.3.3: the first 32 bits of the fractional parts of the square roots of the first 8 primes. */
  static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  memcpy(hash->state, initial, sizeof initial);
  hash->length = 0;
}

void edgert_sha256_add(edgert_sha256 *hash, const void *data, size_t bytes) {
  const uint8_t *next = data;
  size_t filled = hash->length % 64;
  hash->length += bytes;
  while (bytes > 0) {
    if (filled == 0 && bytes >= 64) {
      compress(hash->state, next);
      next += 64;
      bytes -= 64;
      continue;
    }
    size_t part = bytes < 64 - filled ? bytes : 64 - filled;
    memcpy(hash->block + filled, next, part);
    next += part;
    bytes -= part;
    filled = (filled + part) % 64;
    if (filled == 0) compress(hash->state, hash->block);
  }
}

/* Section 5.1.1: a one bit, zeros, and the length in bits as the last 64 bits of a block. */
void edgert_sha256_finish(edgert_sha256 *hash, uint8_t digest[32]) {
  uint64_t bits = hash->length * 8;
  uint8_t padding[72] = {0x80};
  size_t zeros = (119 - hash->length % 64) % 64;
  for (int i = 0; i < 8; i++) padding[1 + zeros + (size_t)i] = (uint8_t)(bits >> (56 - 8 * i));
  edgert_sha256_add(hash, padding, 1 + zeros + 8);
  for (int i = 0; i < 8; i++) store_word(digest + 4 * i, hash->state[i]);
}
