#include "node/base/crypto.h"

/* libsodium has a function of that name that we do not use. */
#define crypto_hash sodium_crypto_hash
#include <sodium.h>
#undef crypto_hash

#include "node/base/check.h"

_Static_assert(HASH_KEY_BYTES == crypto_shorthash_KEYBYTES, "SipHash key");
_Static_assert(crypto_shorthash_BYTES == 8, "SipHash output");
_Static_assert(HASH_BYTES >= crypto_generichash_BYTES_MIN, "BLAKE2b output");

enum rc crypto_init(void)
{
	/* 1: somebody called it before us. */
	return sodium_init() >= 0 ? RC_OK : RC_INTERNAL;
}

static void le64_put(uint8_t out[8], uint64_t v)
{
	unsigned i;

	for (i = 0; i < 8; i++)
		out[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t le64_get(const uint8_t in[8])
{
	uint64_t v = 0;
	unsigned i;

	for (i = 0; i < 8; i++)
		v |= (uint64_t)in[i] << (8 * i);
	return v;
}

uint64_t crypto_siphash(const uint8_t key[HASH_KEY_BYTES], const void *p,
			size_t n)
{
	uint8_t out[crypto_shorthash_BYTES];

	CHECK(crypto_shorthash(out, p, n, key) == 0);
	return le64_get(out);
}

void crypto_hash(const uint8_t *key, size_t key_bytes,
		 const struct hash_part *parts, size_t n,
		 uint8_t out[HASH_BYTES])
{
	crypto_generichash_state st;
	uint8_t length[8];
	size_t i;

	if (key == NULL) {
		PRE(key_bytes == 0);
	} else {
		PRE(key_bytes >= crypto_generichash_KEYBYTES_MIN);
		PRE(key_bytes <= crypto_generichash_KEYBYTES_MAX);
	}
	CHECK(crypto_generichash_init(&st, key, key_bytes, HASH_BYTES) == 0);
	for (i = 0; i < n; i++) {
		le64_put(length, parts[i].n);
		CHECK(crypto_generichash_update(&st, length, sizeof(length)) ==
		      0);
		CHECK(crypto_generichash_update(&st, parts[i].p, parts[i].n) ==
		      0);
	}
	CHECK(crypto_generichash_final(&st, out, HASH_BYTES) == 0);
	/* The state holds the key's block. */
	if (key != NULL)
		sodium_memzero(&st, sizeof(st));
}

bool crypto_equal(const void *a, const void *b, size_t n)
{
	return sodium_memcmp(a, b, n) == 0;
}

void crypto_wipe(void *p, size_t n)
{
	sodium_memzero(p, n);
}

void hex_encode(const uint8_t *p, size_t n, char *out)
{
	static const char digits[] = "0123456789abcdef";
	size_t i;

	for (i = 0; i < n; i++) {
		out[2 * i] = digits[p[i] >> 4];
		out[2 * i + 1] = digits[p[i] & 15];
	}
	out[2 * n] = '\0';
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

enum rc hex_decode(const char *hex, size_t hex_bytes, uint8_t *out, size_t n)
{
	size_t i;
	int high;
	int low;

	if (hex_bytes / 2 != n || hex_bytes % 2 != 0)
		return RC_INVALID;
	for (i = 0; i < n; i++) {
		high = hex_digit(hex[2 * i]);
		low = hex_digit(hex[2 * i + 1]);
		if (high < 0 || low < 0)
			return RC_INVALID;
		out[i] = (uint8_t)(high << 4 | low);
	}
	return RC_OK;
}
