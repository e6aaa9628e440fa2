/* SHA-256 against the examples of FIPS 180-4, and the same bytes in pieces of every size. */
#include "check.h"
#include "internal.h"

static void expect(const void *data, size_t count, size_t piece, const char *wanted) {
  edgert_sha256 hash;
  uint8_t digest[32];
  char text[65];
  edgert_sha256_start(&hash);
  for (size_t done = 0; done < count; done += piece)
    edgert_sha256_add(&hash, (const char *)data + done, count - done < piece ? count - done : piece);
  edgert_sha256_finish(&hash, digest);
  for (int i = 0; i < 32; i++) snprintf(text + 2 * i, 3, "%02x", digest[i]);
  CHECK(strcmp(text, wanted) == 0);
}

static void check_lengths(void) {
  /* The digests of 0, 1, ... 130 bytes of 'a' together, from Python's hashlib. */
  edgert_sha256 all;
  uint8_t data[130], digest[32];
  memset(data, 'a', sizeof data);
  edgert_sha256_start(&all);
  for (size_t length = 0; length <= sizeof data; length++) {
    edgert_sha256 one;
    edgert_sha256_start(&one);
    edgert_sha256_add(&one, data, length);
    edgert_sha256_finish(&one, digest);
    edgert_sha256_add(&all, digest, sizeof digest);
  }
  edgert_sha256_finish(&all, digest);
  static const uint8_t wanted[4] = {0xf9, 0x08, 0xa4, 0x3f};
  CHECK(memcmp(digest, wanted, sizeof wanted) == 0);
}

int main(void) {
  const char *two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  static char million[1000000];
  memset(million, 'a', sizeof million);
  expect("", 0, 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  expect("abc", 3, 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  for (size_t piece = 1; piece <= 57; piece++)
    expect(two_blocks, 56, piece, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  for (size_t piece = 1; piece <= 200; piece += 63)
    expect(million, sizeof million, piece, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  check_lengths();
  return 0;
}
