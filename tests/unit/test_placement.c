#include "raft-glue/placement.h"

#include "node/base/check.h"
#include "node/base/limits.h"
#include "tests/lib/runner.h"

static const uint8_t key[HASH_KEY_BYTES] = "holdfast cluster";

static struct pack_bytes bytes_of(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

static struct oid id_of(const uint8_t *k, const char *tenant, const char *env,
			const char *cls, const char *name)
{
	struct oid id;

	placement_id(k, bytes_of(tenant), bytes_of(env), bytes_of(cls),
		     bytes_of(name), &id);
	return id;
}

TEST(same_address_same_id)
{
	struct oid a = id_of(key, "default", "dev", "kv", "orders");
	struct oid b = id_of(key, "default", "dev", "kv", "orders");

	EXPECT_MEM(a.b, b.b, OID_BYTES);
}

TEST(every_part_counts)
{
	static const char *const address[][4] = {
		{ "default", "dev", "kv", "orders" },
		{ "defaul", "tdev", "kv", "orders" },
		{ "default", "de", "vkv", "orders" },
		{ "default", "dev", "kvo", "rders" },
		{ "default", "dev", "kv", "orderz" },
		{ "default", "dev", "rate_limiter", "orders" },
		{ "default", "prod", "kv", "orders" },
		{ "other", "dev", "kv", "orders" },
		{ "default", "dev", "kv", "" },
		{ "", "default", "devkv", "orders" },
	};
	struct oid id[ARRAY_LEN(address)];
	size_t i;
	size_t j;

	for (i = 0; i < ARRAY_LEN(address); i++) {
		id[i] = id_of(key, address[i][0], address[i][1], address[i][2],
			      address[i][3]);
		for (j = 0; j < i; j++)
			EXPECT_TRUE(memcmp(id[i].b, id[j].b, OID_BYTES) != 0);
	}
}

/* Whatever was asked for before, and also where two meet in a slot. */
TEST(remembered_ids_are_the_same)
{
	static struct placements p;
	static const char text[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
				   "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
				   "aaaaaaaaaa";
	struct pack_bytes part[4];
	struct oid want;
	struct oid got;
	unsigned i;
	unsigned k;

	for (i = 0; i < 3 * 20 * 20; i++) {
		for (k = 0; k < 4; k++)
			part[k] = bytes_of(text);
		part[0].n = i % 3;
		part[1].n = 2 - i % 3;
		part[2].n = i / 3 % 20;
		part[3].n = i / 60 * 4;
		placement_id(key, part[0], part[1], part[2], part[3], &want);
		for (k = 0; k < 2; k++) {
			placements_id(&p, key, part[0], part[1], part[2],
				      part[3], &got);
			EXPECT_MEM(got.b, want.b, OID_BYTES);
		}
	}
	for (i = 0; i < 2 * 20000; i++) {
		char name[16];

		snprintf(name, sizeof(name), "%u", i % 20000);
		want = id_of(key, "t", "e", "kv", name);
		placements_id(&p, key, bytes_of("t"), bytes_of("e"),
			      bytes_of("kv"), bytes_of(name), &got);
		EXPECT_MEM(got.b, want.b, OID_BYTES);
	}
}

TEST(the_key_decides)
{
	uint8_t other[HASH_KEY_BYTES];
	struct oid a = id_of(key, "default", "dev", "kv", "orders");
	struct oid b;
	unsigned moved = 0;
	unsigned i;

	memcpy(other, key, sizeof(other));
	other[0] ^= 1;
	b = id_of(other, "default", "dev", "kv", "orders");
	EXPECT_TRUE(memcmp(a.b, b.b, OID_BYTES) != 0);
	/* The shard of one and the same id, too. */
	for (i = 0; i < 64; i++) {
		a.b[0] = (uint8_t)i;
		moved += placement_shard(key, &a, 16) !=
			 placement_shard(other, &a, 16);
	}
	EXPECT_TRUE(moved > 32);
}

/* 1,600 names over 16 shards: 100 each, with a deviation of 9.7. */
TEST(names_spread)
{
	unsigned n[16] = { 0 };
	char name[16];
	struct oid id;
	unsigned i;

	for (i = 0; i < 1600; i++) {
		(void)snprintf(name, sizeof(name), "o%u", i);
		id = id_of(key, "default", "dev", "kv", name);
		n[placement_shard(key, &id, 16)]++;
	}
	for (i = 0; i < 16; i++) {
		runner_context("shard %u has %u", i, n[i]);
		EXPECT_TRUE(n[i] > 50);
		EXPECT_TRUE(n[i] < 150);
	}
}

TEST(any_number_of_shards)
{
	struct oid id = id_of(key, "default", "dev", "kv", "orders");
	uint32_t shards;

	for (shards = 1; shards <= SHARDS_MAX; shards++)
		EXPECT_TRUE(placement_shard(key, &id, shards) < shards);
	EXPECT_ABORT_SAYS(placement_shard(key, &id, 0), "shards > 0");
}

/* An id outlives the program that made it: this one must never change. */
TEST(known_answer)
{
	struct oid id = id_of(key, "default", "dev", "kv", "orders");
	char hex[2 * OID_BYTES + 1];

	hex_encode(id.b, OID_BYTES, hex);
	EXPECT_STR(hex, "08f20d0824b7f9a421e69111316dc4df");
	EXPECT_UINT(placement_shard(key, &id, 16), 14);
}
