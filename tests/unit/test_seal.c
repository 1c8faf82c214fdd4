#include "objects/seal.h"

#include "tests/lib/runner.h"

static const struct oid oid = { { 1, 2, 3 } };
static const struct seal_address at = { .oid = &oid, .kind = 1, .rev = 7 };

static struct pack_bytes bytes(const void *p, size_t n)
{
	return (struct pack_bytes){ p, n };
}

TEST(round_trip)
{
	uint8_t plain[300];
	uint8_t sealed[sizeof(plain) + SEAL_OVERHEAD_BYTES];
	struct pack_bytes out;
	size_t n;

	for (n = 0; n < sizeof(plain); n++)
		plain[n] = (uint8_t)(n * 7);
	for (n = 0; n <= sizeof(plain); n++) {
		memset(sealed, 0xaa, sizeof(sealed));
		seal_close(&at, bytes(plain, n), sealed);
		EXPECT_RC(seal_open(&at, bytes(sealed, n + SEAL_OVERHEAD_BYTES),
				    &out),
			  RC_OK);
		EXPECT_UINT(out.n, n);
		EXPECT_MEM(out.p, plain, n);
	}
}

TEST(empty_without_memory)
{
	uint8_t sealed[SEAL_OVERHEAD_BYTES];
	struct pack_bytes out;

	seal_close(&at, bytes(NULL, 0), sealed);
	EXPECT_RC(seal_open(&at, bytes(sealed, sizeof(sealed)), &out), RC_OK);
	EXPECT_UINT(out.n, 0);
	EXPECT_NOT_NULL(out.p);
}

/* Whatever is not the payload is verified, bit by bit. */
TEST(every_flip_around_the_payload)
{
	static const char plain[] = "payload";
	uint8_t sealed[sizeof(plain) + SEAL_OVERHEAD_BYTES];
	struct pack_bytes out;
	enum rc rc;
	size_t i;

	for (i = 0; i < sizeof(sealed) * 8; i++) {
		seal_close(&at, bytes(plain, sizeof(plain)), sealed);
		sealed[i / 8] ^= (uint8_t)(1u << i % 8);
		rc = seal_open(&at, bytes(sealed, sizeof(sealed)), &out);
		runner_context("bit %zu", i);
		if (i / 8 == 0)
			EXPECT_RC(rc, RC_VERSION);
		else if (i / 8 >= 5 && i / 8 < 5 + sizeof(plain))
			EXPECT_RC(rc, RC_OK);
		else
			EXPECT_RC(rc, RC_CORRUPT);
	}
}

TEST(too_short)
{
	uint8_t sealed[SEAL_OVERHEAD_BYTES] = { 0 };
	struct pack_bytes out;
	size_t n;

	for (n = 0; n < sizeof(sealed); n++)
		EXPECT_RC(seal_open(&at, bytes(sealed, n), &out), RC_CORRUPT);
	EXPECT_RC(seal_open(&at, bytes(NULL, 0), &out), RC_CORRUPT);
}

TEST(an_address_has_an_id)
{
	static const struct seal_address none;
	uint8_t sealed[SEAL_OVERHEAD_BYTES];

	EXPECT_ABORT_SAYS(seal_close(&none, bytes(NULL, 0), sealed), "at->oid");
}
