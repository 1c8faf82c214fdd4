#include "client/routes.h"

#include <string.h>

#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

static struct routes *routes(uint32_t addresses_max)
{
	struct routes *r = NULL;

	EXPECT_RC(routes_new(7, addresses_max, &r), RC_OK);
	return r;
}

static uint64_t hash(const struct routes *r, const char *address)
{
	struct pack_bytes b = { (const uint8_t *)address, strlen(address) };

	return routes_hash(r, b);
}

static uint32_t owner(struct routes *r, const char *address)
{
	const struct route *e = routes_find(r, hash(r, address));

	return e != NULL ? routes_owner(r, e) : ROUTES_NONE;
}

TEST(addresses_share_a_shard)
{
	struct routes *r = routes(0);

	EXPECT_UINT(owner(r, "kv/a"), ROUTES_NONE);
	routes_learn(r, hash(r, "kv/a"), 5, 1);
	routes_learn(r, hash(r, "kv/b"), 5, 1);
	routes_learn(r, hash(r, "kv/c"), 6, 1);
	EXPECT_UINT(owner(r, "kv/a"), 1);
	routes_learn(r, hash(r, "kv/a"), 5, 2);
	EXPECT_UINT(owner(r, "kv/b"), 2);
	EXPECT_UINT(owner(r, "kv/c"), 1);
	/* An answer does not say the shard; it is known. */
	routes_learn(r, hash(r, "kv/b"), ROUTES_NONE, 3);
	EXPECT_UINT(owner(r, "kv/a"), 3);
	routes_learn(r, hash(r, "kv/a"), 5, ROUTES_NONE);
	EXPECT_UINT(owner(r, "kv/b"), ROUTES_NONE);
	routes_free(r);
}

TEST(an_address_without_a_shard)
{
	struct routes *r = routes(0);

	routes_learn(r, hash(r, "kv/a"), ROUTES_NONE, 4);
	routes_learn(r, hash(r, "kv/b"), ROUTES_SHARDS_MAX, 5);
	EXPECT_UINT(owner(r, "kv/a"), 4);
	EXPECT_UINT(owner(r, "kv/b"), 5);
	routes_learn(r, hash(r, "kv/a"), 7, 2);
	EXPECT_UINT(owner(r, "kv/a"), 2);
	routes_free(r);
}

TEST(a_lost_node_owns_nothing)
{
	struct routes *r = routes(0);

	routes_learn(r, hash(r, "kv/a"), 5, 1);
	routes_learn(r, hash(r, "kv/b"), ROUTES_NONE, 1);
	routes_learn(r, hash(r, "kv/c"), 6, 2);
	routes_lost(r, 1);
	EXPECT_UINT(owner(r, "kv/a"), ROUTES_NONE);
	EXPECT_UINT(owner(r, "kv/b"), ROUTES_NONE);
	EXPECT_UINT(owner(r, "kv/c"), 2);
	/* What is learned afterwards counts. */
	routes_learn(r, hash(r, "kv/a"), 5, 1);
	EXPECT_UINT(owner(r, "kv/a"), 1);
	routes_free(r);
}

TEST(hashes_differ_by_every_byte_and_by_seed)
{
	struct routes *r = routes(0);
	struct routes *other;
	char text[32];
	uint64_t first;
	unsigned i;

	EXPECT_RC(routes_new(8, 0, &other), RC_OK);
	(void)snprintf(text, sizeof(text), "kv/abcdefghijklmnopqrst");
	first = hash(r, text);
	EXPECT_TRUE(first != hash(other, text));
	for (i = 0; i < strlen(text); i++) {
		text[i]++;
		EXPECT_TRUE(hash(r, text) != first);
		text[i]--;
	}
	EXPECT_UINT(hash(r, text), first);
	EXPECT_TRUE(hash(r, "") != hash(r, "a"));
	routes_free(r);
	routes_free(other);
	routes_free(NULL);
}

TEST(the_table_is_bounded)
{
	struct routes *r = routes(16);
	uint32_t known = 0;
	char text[32];
	uint32_t i;

	for (i = 0; i < 1000; i++) {
		(void)snprintf(text, sizeof(text), "kv/%u", i);
		routes_learn(r, hash(r, text), ROUTES_NONE, 1);
		EXPECT_UINT(owner(r, text), 1);
	}
	for (i = 0; i < 1000; i++) {
		(void)snprintf(text, sizeof(text), "kv/%u", i);
		known += owner(r, text) == 1;
	}
	EXPECT_UINT(known, 16);
	routes_free(r);
}

/* Entries that are asked for stay, those that are not make room. */
TEST(what_is_used_stays)
{
	struct routes *r = routes(16);
	char text[32];
	uint32_t kept = 0;
	uint32_t i;

	routes_learn(r, hash(r, "hot"), ROUTES_NONE, 2);
	for (i = 0; i < 400; i++) {
		(void)snprintf(text, sizeof(text), "kv/%u", i);
		routes_learn(r, hash(r, text), ROUTES_NONE, 1);
		if (owner(r, "hot") == 2)
			kept++;
		else
			routes_learn(r, hash(r, "hot"), ROUTES_NONE, 2);
	}
	EXPECT_TRUE(kept > 360);
	routes_free(r);
}

TEST(calls_in_flight_pin_their_entry)
{
	struct routes *r = routes(16);
	struct route *held[16];
	uint64_t h[16];
	uint32_t n = 0;
	uint64_t i;

	for (i = 0; i < 100000 && n < 16; i++) {
		struct route *e = routes_make(r, i * 0x9e3779b97f4a7c15u);

		if (e == NULL || e->in_flight > 0)
			continue;
		e->in_flight = 1;
		h[n] = i * 0x9e3779b97f4a7c15u;
		held[n++] = e;
	}
	EXPECT_UINT(n, 16);
	EXPECT_NULL(routes_make(r, 1));
	EXPECT_NULL(routes_find(r, 1));
	/* Learned all the same, for the shard. */
	routes_learn(r, 1, 3, 2);
	for (i = 0; i < 16; i++)
		EXPECT_TRUE(routes_find(r, h[i]) == held[i]);
	held[0]->in_flight = 0;
	EXPECT_TRUE(routes_make(r, h[0] + 16) != NULL);
	routes_free(r);
}

TEST(no_memory)
{
	struct routes *r = NULL;

	fault_alloc(1);
	EXPECT_RC(routes_new(1, 0, &r), RC_NOMEM);
	EXPECT_TRUE(fault_off());
	EXPECT_NULL(r);
}
