/*
 * crypto - the one user of libcrypto's primitives and of libsodium's.
 *
 * Any thread after crypto_init(). Hashes here protect against accidents
 * and, where keyed, against chosen names; secrets live in secret.h.
 */
#ifndef HOLDFAST_BASE_CRYPTO_H
#define HOLDFAST_BASE_CRYPTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/proto/rc.h"

#define HASH_KEY_BYTES 16u /* SipHash key. */
#define HASH_BYTES     16u /* BLAKE2b-128 output. */

/* Once, before anything else. RC_INTERNAL when libsodium refuses. */
enum rc crypto_init(void);

/* SipHash-2-4 (Aumasson and Bernstein 2012). */
uint64_t crypto_siphash(const uint8_t key[HASH_KEY_BYTES], const void *p,
			size_t n);

struct hash_part {
	const void *p;
	size_t n;
};
/*
 * BLAKE2b with 16 bytes of output (RFC 7693), keyed when `key` is not NULL
 * (key_bytes 16..64), over the parts, each preceded by its length as 8 bytes
 * little endian, so that no two lists of parts collide.
 */
void crypto_hash(const uint8_t *key, size_t key_bytes,
		 const struct hash_part *parts, size_t n,
		 uint8_t out[HASH_BYTES]);

/* Constant time. */
bool crypto_equal(const void *a, const void *b, size_t n);
void crypto_wipe(void *p, size_t n);

/* Lower-case hex with a final NUL; `out` has 2 * n + 1 bytes. */
void hex_encode(const uint8_t *p, size_t n, char *out);
/* RC_INVALID unless `hex` is exactly 2 * n lower-case digits. */
enum rc hex_decode(const char *hex, size_t hex_bytes, uint8_t *out, size_t n);

#endif
