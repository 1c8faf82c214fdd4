#include "node/core/address.h"

#include "node/base/crypto.h"
#include "tests/lib/runner.h"
#include "tests/sim/prng.h"

static const struct pack_bytes tenant = { (const uint8_t *)"acme", 4 };
static const struct pack_bytes env = { (const uint8_t *)"prod", 4 };

static struct address addr;
static struct detail why;

static enum rc parse_n(const void *p, size_t n)
{
	struct pack_bytes text = { p, n };

	why = (struct detail){ { 0 }, { 0 } };
	/* What the last one left must not show. */
	memset(&addr, 0xa5, sizeof(addr));
	return address_parse(text, tenant, env, &addr, &why);
}

static enum rc parse(const char *s)
{
	return parse_n(s, strlen(s));
}

static void put(void *to, const void *from, size_t n)
{
	memcpy(to, from, n);
}

#define EXPECT_BYTES(got, want)                          \
	do {                                             \
		EXPECT_UINT((got).n, strlen(want));      \
		EXPECT_MEM((got).p, want, strlen(want)); \
	} while (0)

#define EXPECT_BAD(said, part)                      \
	do {                                        \
		runner_context("%s", said);         \
		EXPECT_RC(parse(said), RC_INVALID); \
		EXPECT_STR(why.field, "address");   \
		EXPECT_HAS(why.text, part);         \
		runner_context("%s", "");           \
	} while (0)

TEST(a_short_address_is_of_the_callers_tenant_and_environment)
{
	EXPECT_RC(parse("kv/orders"), RC_OK);
	EXPECT_BYTES(addr.tenant, "acme");
	EXPECT_BYTES(addr.env, "prod");
	EXPECT_BYTES(addr.cls, "kv");
	EXPECT_BYTES(addr.name, "orders");
	EXPECT_FALSE(addr.by_id);
}

TEST(a_long_address_names_everything)
{
	EXPECT_RC(parse("t-1/e_2/rate_limiter/api"), RC_OK);
	EXPECT_BYTES(addr.tenant, "t-1");
	EXPECT_BYTES(addr.env, "e_2");
	EXPECT_BYTES(addr.cls, "rate_limiter");
	EXPECT_BYTES(addr.name, "api");
}

TEST(an_id_is_32_lower_case_digits)
{
	static const uint8_t want[OID_BYTES] = { 0x00, 0x11, 0x22, 0x33,
						 0x44, 0x55, 0x66, 0x77,
						 0x88, 0x99, 0xaa, 0xbb,
						 0xcc, 0xdd, 0xee, 0xff };

	EXPECT_RC(parse("kv/~00112233445566778899aabbccddeeff"), RC_OK);
	EXPECT_TRUE(addr.by_id);
	EXPECT_UINT(addr.name.n, 0);
	EXPECT_MEM(addr.oid.b, want, OID_BYTES);
	EXPECT_RC(parse("a/b/kv/~00112233445566778899aabbccddeeff"), RC_OK);
	EXPECT_TRUE(addr.by_id);
	EXPECT_BAD("kv/~", "lower-case hex");
	EXPECT_BAD("kv/~00112233445566778899aabbccddeef", "lower-case hex");
	EXPECT_BAD("kv/~00112233445566778899aabbccddeeff0", "lower-case hex");
	EXPECT_BAD("kv/~00112233445566778899aabbccddeeff00", "lower-case hex");
	EXPECT_BAD("kv/~00112233445566778899AABBCCDDEEFF", "lower-case hex");
	EXPECT_BAD("kv/~0011223344556677 899aabbccddeeff", "lower-case hex");
	EXPECT_BAD("kv/~x0112233445566778899aabbccddeeff", "lower-case hex");
}

TEST(a_name_has_one_spelling)
{
	EXPECT_RC(parse("kv/a%2Fb"), RC_OK);
	EXPECT_BYTES(addr.name, "a/b");
	EXPECT_RC(parse("kv/100%25"), RC_OK);
	EXPECT_BYTES(addr.name, "100%");
	EXPECT_RC(parse("kv/%7Ehome"), RC_OK);
	EXPECT_BYTES(addr.name, "~home");
	EXPECT_FALSE(addr.by_id);
	EXPECT_RC(parse("kv/a~b"), RC_OK);
	EXPECT_BYTES(addr.name, "a~b");
	EXPECT_RC(parse("kv/%252F"), RC_OK);
	EXPECT_BYTES(addr.name, "%2F");
	/* The same bytes in another spelling. */
	EXPECT_BAD("kv/a%2fb", "are escaped");
	EXPECT_BAD("kv/a%7Eb", "are escaped");
	EXPECT_BAD("kv/%41", "are escaped");
	EXPECT_BAD("kv/%7ehome", "are escaped");
	EXPECT_BAD("kv/%", "are escaped");
	EXPECT_BAD("kv/%2", "are escaped");
	EXPECT_BAD("kv/100%", "are escaped");
	EXPECT_BAD("kv/%00", "are escaped");
	EXPECT_BAD("kv/a%2Gb", "are escaped");
}

TEST(a_name_is_any_bytes_but_nul)
{
	uint8_t text[3 + 255];
	unsigned n = 0;
	unsigned i;

	put(text, "kv/", 3);
	for (i = 1; i < 256; i++)
		if (i != '/' && i != '%')
			text[3 + n++] = (uint8_t)i;
	EXPECT_RC(parse_n(text, 3 + n), RC_OK);
	EXPECT_UINT(addr.name.n, n);
	EXPECT_MEM(addr.name.p, text + 3, n);
	EXPECT_RC(parse_n("kv/a\0b", 6), RC_INVALID);
	EXPECT_HAS(why.text, "no NUL");
	EXPECT_RC(parse_n("kv/\0", 4), RC_INVALID);
	EXPECT_RC(parse_n("k\0v/a", 5), RC_INVALID);
}

TEST(parts_are_two_or_four)
{
	EXPECT_BAD("", "class/name");
	EXPECT_BAD("kv", "class/name");
	EXPECT_BAD("a/kv/x", "class/name");
	EXPECT_BAD("a/b/kv/x/y", "too many parts");
	EXPECT_BAD("kv/a/", "class/name");
	EXPECT_BAD("/", "class has 1 to");
	EXPECT_BAD("kv/", "name is empty");
	EXPECT_BAD("/a", "class has 1 to");
	EXPECT_BAD("///a", "tenant has 1 to");
	EXPECT_BAD("a//kv/x", "environment has 1 to");
	EXPECT_BAD("a/b//x", "class has 1 to");
	EXPECT_BAD("a/b/kv/", "name is empty");
}

TEST(labels_are_checked)
{
	EXPECT_BAD("A/b/kv/x", "a tenant is made of");
	EXPECT_BAD("a/B/kv/x", "an environment is made of");
	EXPECT_BAD("Kv/x", "a class is made of");
	EXPECT_BAD("1kv/x", "begins with a letter");
	EXPECT_BAD("-kv/x", "begins with a letter");
	EXPECT_BAD("_kv/x", "begins with a letter");
	EXPECT_BAD("k.v/x", "a class is made of");
	EXPECT_BAD("k v/x", "a class is made of");
	EXPECT_BAD("\xc3\xa4/x", "a class is made of");
	EXPECT_BAD("*/x", "a class is made of");
	EXPECT_RC(parse("k9-_z/x"), RC_OK);
}

TEST(bounds)
{
	char text[ADDRESS_BYTES_MAX + 2];
	char label[TENANT_BYTES_MAX + 2];
	size_t i;

	memset(label, 'a', sizeof(label));
	label[TENANT_BYTES_MAX] = '\0';
	snprintf(text, sizeof(text), "%s/%s/%s/x", label, label, label);
	EXPECT_RC(parse(text), RC_OK);
	label[TENANT_BYTES_MAX] = 'a';
	label[TENANT_BYTES_MAX + 1] = '\0';
	snprintf(text, sizeof(text), "%s/x", label);
	EXPECT_BAD(text, "1 to 64 bytes");

	put(text, "kv/", 3);
	memset(text + 3, 'n', sizeof(text) - 3);
	EXPECT_RC(parse_n(text, 3 + NAME_BYTES_MAX), RC_OK);
	EXPECT_UINT(addr.name.n, NAME_BYTES_MAX);
	EXPECT_RC(parse_n(text, 3 + NAME_BYTES_MAX + 1), RC_INVALID);
	EXPECT_HAS(why.text, "at most 512 bytes");
	EXPECT_RC(parse_n(text, ADDRESS_BYTES_MAX + 1), RC_INVALID);
	EXPECT_HAS(why.text, "at most 2048 bytes");

	/* All of them escaped: the bound counts what they mean. */
	for (i = 0; i < NAME_BYTES_MAX; i++)
		put(text + 3 + 3 * i, "%2F", 3);
	EXPECT_RC(parse_n(text, 3 + 3 * NAME_BYTES_MAX), RC_OK);
	EXPECT_UINT(addr.name.n, NAME_BYTES_MAX);
	put(text + 3 + 3 * NAME_BYTES_MAX, "%2F", 3);
	EXPECT_RC(parse_n(text, 3 + 3 * (NAME_BYTES_MAX + 1)), RC_INVALID);
}

TEST(the_detail_may_be_left_out)
{
	struct pack_bytes text = { (const uint8_t *)"kv", 2 };

	EXPECT_RC(address_parse(text, tenant, env, &addr, NULL), RC_INVALID);
}

static void expect_written(const char *text, const char *want)
{
	char out[ADDRESS_BYTES_MAX + 1];
	size_t n;

	EXPECT_RC(parse(text), RC_OK);
	n = address_write(addr.tenant, addr.env, addr.cls, addr.name, &addr.oid,
			  out, sizeof(out));
	EXPECT_STR(out, want);
	EXPECT_UINT(n, strlen(want));
}

TEST(what_is_written_is_canonical)
{
	expect_written("kv/orders", "acme/prod/kv/orders");
	expect_written("a/b/kv/x%2Fy%25", "a/b/kv/x%2Fy%25");
	expect_written("kv/%7E~", "acme/prod/kv/%7E~");
	expect_written("kv/~00112233445566778899aabbccddeeff",
		       "acme/prod/kv/~00112233445566778899aabbccddeeff");
}

TEST(what_is_written_is_cut_to_its_room)
{
	char full[64];
	char out[64];
	size_t want;
	size_t n;

	EXPECT_RC(parse("kv/a%2F%25b"), RC_OK);
	want = address_write(addr.tenant, addr.env, addr.cls, addr.name, NULL,
			     full, sizeof(full));
	for (n = 1; n <= sizeof(full); n++) {
		size_t room = n - 1 < want ? n - 1 : want;

		memset(out, 'X', sizeof(out));
		EXPECT_UINT(address_write(addr.tenant, addr.env, addr.cls,
					  addr.name, NULL, out, n),
			    room);
		EXPECT_MEM(out, full, room);
		EXPECT_INT(out[room], '\0');
		if (n < sizeof(out))
			EXPECT_INT(out[n], 'X');
	}
}

/* Any name survives being written and parsed; any text either is refused or is
 * the one spelling of what it says. */
TEST(every_name_round_trips)
{
	struct prng rng;
	char text[ADDRESS_BYTES_MAX + 1];
	char again[ADDRESS_BYTES_MAX + 1];
	uint8_t name[NAME_BYTES_MAX];
	unsigned round;
	size_t n;
	size_t i;

	prng_seed(&rng, 7, 0);
	for (round = 0; round < 3000; round++) {
		struct pack_bytes view = { name, 0 };

		view.n = 1 + prng_below(&rng, round % 10 == 0 ? 512 : 12);
		for (i = 0; i < view.n; i++) {
			static const char some[] = "/%~27EF5ab";
			bool odd = prng_below(&rng, 2) == 0;

			name[i] = odd ? (uint8_t)some[prng_below(&rng, 10)]
				      : (uint8_t)(1 + prng_below(&rng, 255));
		}
		n = address_write(tenant, env, tenant, view, NULL, text,
				  sizeof(text));
		runner_context("%s", text);
		EXPECT_RC(parse_n(text, n), RC_OK);
		EXPECT_UINT(addr.name.n, view.n);
		EXPECT_MEM(addr.name.p, name, view.n);
		/* One byte changed. */
		text[prng_below(&rng, n)] = (char)prng_below(&rng, 256);
		if (parse_n(text, n) != RC_OK)
			continue;
		(void)address_write(addr.tenant, addr.env, addr.cls, addr.name,
				    &addr.oid, again, sizeof(again));
		EXPECT_STR(again, text);
	}
}
