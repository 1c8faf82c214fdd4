#include "node/base/crypto.h"

#include "tests/lib/runner.h"

/* Appendix A of the SipHash paper: key 00..0f, input 00..0e. */
TEST(siphash_known_answer)
{
	uint8_t key[HASH_KEY_BYTES];
	uint8_t in[15];
	uint8_t i;

	EXPECT_RC(crypto_init(), RC_OK);
	EXPECT_RC(crypto_init(), RC_OK);
	for (i = 0; i < 16; i++)
		key[i] = i;
	for (i = 0; i < 15; i++)
		in[i] = i;
	EXPECT_UINT(crypto_siphash(key, in, 15), 0xa129ca6149be45e5);
}

static void hash_of(const char *a, const char *b, const uint8_t *key,
		    size_t key_bytes, uint8_t out[HASH_BYTES])
{
	const struct hash_part parts[] = {
		{ a, strlen(a) },
		{ b, strlen(b) },
	};

	crypto_hash(key, key_bytes, parts, 2, out);
}

/* b2sum -l 128 and Python's hashlib.blake2b give the same. */
TEST(hash_known_answers)
{
	uint8_t key[32];
	uint8_t out[HASH_BYTES];
	char hex[2 * HASH_BYTES + 1];
	uint8_t i;

	for (i = 0; i < 32; i++)
		key[i] = i;
	crypto_hash(NULL, 0, NULL, 0, out);
	hex_encode(out, sizeof(out), hex);
	EXPECT_STR(hex, "cae66941d9efbd404e4d88758ea67670");
	hash_of("ab", "c", NULL, 0, out);
	hex_encode(out, sizeof(out), hex);
	EXPECT_STR(hex, "4826ed043ab3cdec576d8541fa5d5a80");
	hash_of("ab", "c", key, sizeof(key), out);
	hex_encode(out, sizeof(out), hex);
	EXPECT_STR(hex, "c006572bf2a0f76fe91755c911b607d2");
}

TEST(lists_of_parts_do_not_collide)
{
	uint8_t a[HASH_BYTES];
	uint8_t b[HASH_BYTES];

	hash_of("ab", "c", NULL, 0, a);
	hash_of("a", "bc", NULL, 0, b);
	EXPECT_FALSE(crypto_equal(a, b, HASH_BYTES));
	hash_of("abc", "", NULL, 0, b);
	EXPECT_FALSE(crypto_equal(a, b, HASH_BYTES));
	hash_of("ab", "c", NULL, 0, b);
	EXPECT_TRUE(crypto_equal(a, b, HASH_BYTES));
}

TEST(a_key_out_of_range_is_held_back)
{
	uint8_t key[65] = { 1 };
	uint8_t out[HASH_BYTES];

	crypto_hash(key, 16, NULL, 0, out);
	crypto_hash(key, 64, NULL, 0, out);
	EXPECT_ABORT(crypto_hash(key, 15, NULL, 0, out));
	EXPECT_ABORT(crypto_hash(key, 65, NULL, 0, out));
	EXPECT_ABORT(crypto_hash(NULL, 16, NULL, 0, out));
}

TEST(hex_round_trip)
{
	uint8_t in[256];
	uint8_t back[256];
	char hex[513];
	unsigned i;

	for (i = 0; i < 256; i++)
		in[i] = (uint8_t)i;
	hex_encode(in, 256, hex);
	EXPECT_UINT(strlen(hex), 512);
	EXPECT_RC(hex_decode(hex, 512, back, 256), RC_OK);
	EXPECT_MEM(back, in, 256);
	hex_encode(in, 0, hex);
	EXPECT_STR(hex, "");
	EXPECT_RC(hex_decode("", 0, back, 0), RC_OK);
}

TEST(hex_refuses_what_is_not_canonical)
{
	uint8_t out[4];

	EXPECT_RC(hex_decode("0011223", 7, out, 4), RC_INVALID);
	EXPECT_RC(hex_decode("0011223", 7, out, 3), RC_INVALID);
	EXPECT_RC(hex_decode("0011223344", 10, out, 4), RC_INVALID);
	EXPECT_RC(hex_decode("001122AA", 8, out, 4), RC_INVALID);
	EXPECT_RC(hex_decode("0011 223", 8, out, 4), RC_INVALID);
	EXPECT_RC(hex_decode("001122g0", 8, out, 4), RC_INVALID);
	EXPECT_RC(hex_decode("0x112233", 8, out, 4), RC_INVALID);
}

TEST(wipe_leaves_zeros)
{
	uint8_t key[32];
	static const uint8_t zero[32];

	memset(key, 7, sizeof(key));
	crypto_wipe(key, sizeof(key));
	EXPECT_MEM(key, zero, sizeof(key));
}
