#include "node/base/crc32c.h"

#include "client/proto/rc.h"
#include "tests/lib/runner.h"

/* RFC 3720 appendix B.4. */
TEST(known_answers)
{
	uint8_t zeros[32] = { 0 };
	uint8_t ones[32];
	uint8_t up[32];
	uint8_t down[32];
	unsigned i;

	memset(ones, 0xff, sizeof(ones));
	for (i = 0; i < 32; i++) {
		up[i] = (uint8_t)i;
		down[i] = (uint8_t)(31 - i);
	}
	EXPECT_UINT(crc32c(0, zeros, 32), 0x8a9136aa);
	EXPECT_UINT(crc32c(0, ones, 32), 0x62a8ab43);
	EXPECT_UINT(crc32c(0, up, 32), 0x46dd794e);
	EXPECT_UINT(crc32c(0, down, 32), 0x113fdb5c);
	EXPECT_UINT(crc32c(0, "123456789", 9), 0xe3069283);
	EXPECT_UINT(crc32c(0, "", 0), 0);
	EXPECT_UINT(crc32c(0, NULL, 0), 0);
}

TEST(table_and_instruction_agree_on_every_length_and_alignment)
{
	uint8_t bytes[300];
	size_t at;
	size_t n;

	for (at = 0; at < sizeof(bytes); at++)
		bytes[at] = (uint8_t)(at * 131 + 7);
	for (at = 0; at < 9; at++)
		for (n = 0; n + at <= sizeof(bytes); n++)
			EXPECT_UINT(crc32c(0, bytes + at, n),
				    crc32c_table(0, bytes + at, n));
}

TEST(pieces_make_the_whole)
{
	static const char text[] = "pieces of any length make the whole";
	size_t cut;

	for (cut = 0; cut <= sizeof(text); cut++)
		EXPECT_UINT(crc32c(crc32c(0, text, cut), text + cut,
				   sizeof(text) - cut),
			    crc32c(0, text, sizeof(text)));
}

TEST(every_flipped_bit_shows)
{
	uint8_t bytes[504];
	uint32_t good;
	size_t i;

	memset(bytes, 0x5a, sizeof(bytes));
	good = crc32c(0, bytes, sizeof(bytes));
	for (i = 0; i < sizeof(bytes) * 8; i++) {
		bytes[i / 8] ^= (uint8_t)(1u << i % 8);
		EXPECT_TRUE(crc32c(0, bytes, sizeof(bytes)) != good);
		bytes[i / 8] ^= (uint8_t)(1u << i % 8);
	}
}
