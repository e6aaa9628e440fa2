/* Ed25519 signatures of artifacts, by the library that EDGERT_SIGNATURES names. */
#include "internal.h"

#include <string.h>

#if EDGERT_SIGNATURES_OPENSSL
#include <openssl/evp.h>
#elif EDGERT_SIGNATURES_SODIUM
#include <sodium.h>
#endif

/* What is signed: which kind of thing this is, its terminator included, and the SHA-256 of its bytes. */
#define CONTEXT "edgec artifact, version 1"

#if EDGERT_SIGNATURES_OPENSSL

static bool verify(const uint8_t key[32], const uint8_t signature[64], const uint8_t *message, size_t bytes) {
  EVP_PKEY *public_key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, key, 32);
  EVP_MD_CTX *context = EVP_MD_CTX_new();
  bool valid = public_key && context && EVP_DigestVerifyInit(context, NULL, NULL, NULL, public_key) == 1 &&
               EVP_DigestVerify(context, signature, 64, message, bytes) == 1;
  EVP_MD_CTX_free(context);
  EVP_PKEY_free(public_key);
  return valid;
}

#elif EDGERT_SIGNATURES_SODIUM

static bool verify(const uint8_t key[32], const uint8_t signature[64], const uint8_t *message, size_t bytes) {
  return sodium_init() >= 0 && crypto_sign_verify_detached(signature, message, bytes, key) == 0;
}

#else

static bool verify(const uint8_t key[32], const uint8_t signature[64], const uint8_t *message, size_t bytes) {
  (void)key, (void)signature, (void)message, (void)bytes;
  return false;
}

#endif

bool edgert_verifies_signatures(void) {
#if EDGERT_SIGNATURES_OPENSSL || EDGERT_SIGNATURES_SODIUM
  return true;
#else
  return false;
#endif
}

bool edgert_signature_is_valid(const uint8_t key[32], const uint8_t signature[64], const uint8_t digest[32]) {
  uint8_t message[sizeof CONTEXT + 32];
  memcpy(message, CONTEXT, sizeof CONTEXT);
  memcpy(message + sizeof CONTEXT, digest, 32);
  return verify(key, signature, message, sizeof message);
}
