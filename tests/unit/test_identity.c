#include "raft-glue/identity.h"

#include "node/base/check.h"
#include "node/base/limits.h"
#include "raft-glue/pair.h"
#include "tests/lib/runner.h"
#include "tests/sim/world.h"

static struct world *w;
static struct disk *disk;
static struct env *env;
static struct detail why;

static struct identity sample(void)
{
	struct identity id = { .node_id = 3,
			       .node_name = "n3",
			       .shards = 16,
			       .segment_bytes = 1u << 20 };

	memset(id.cluster_id, 0xc1, ID_BYTES);
	memset(id.hash_key, 0x4b, ID_BYTES);
	return id;
}

static void begin(uint64_t seed)
{
	w = world_new(seed);
	disk = world_disk(w, 0);
	env = world_env(w, 0);
	why = (struct detail){ .text = "" };
}

static void format(struct identity *id)
{
	*id = sample();
	EXPECT_RC(identity_format(disk, env, id, &why), RC_OK);
}

static void end(void)
{
	world_free(w);
}

static void expect_same(const struct identity *a, const struct identity *b)
{
	EXPECT_MEM(a->cluster_id, b->cluster_id, ID_BYTES);
	EXPECT_MEM(a->incarnation, b->incarnation, ID_BYTES);
	EXPECT_MEM(a->hash_key, b->hash_key, ID_BYTES);
	EXPECT_UINT(a->node_id, b->node_id);
	EXPECT_STR(a->node_name, b->node_name);
	EXPECT_UINT(a->shards, b->shards);
	EXPECT_UINT(a->segment_bytes, b->segment_bytes);
	EXPECT_UINT(a->birth.inode, b->birth.inode);
	EXPECT_UINT(a->birth.birth_ns, b->birth.birth_ns);
}

TEST(empty_directory_is_no_data_directory)
{
	struct identity id;

	begin(1);
	EXPECT_RC(identity_open(disk, env, &id, &why), RC_NOT_FOUND);
	EXPECT_HAS(why.text, "not a data directory");
	EXPECT_RC(identity_read(disk, &id, NULL), RC_NOT_FOUND);
	end();
}

TEST(format_open_read)
{
	static const uint8_t zero[ID_BYTES];
	struct identity made;
	struct identity one;
	struct identity two;
	struct identity read;

	begin(2);
	format(&made);
	EXPECT_TRUE(memcmp(made.incarnation, zero, ID_BYTES) != 0);
	EXPECT_UINT(made.cluster_id[0], 0xc1);
	EXPECT_RC(identity_open(disk, env, &one, &why), RC_OK);
	expect_same(&one, &made);
	EXPECT_UINT(one.boot, 1);
	EXPECT_RC(identity_open(disk, env, &two, &why), RC_OK);
	expect_same(&two, &made);
	EXPECT_UINT(two.boot, 2);
	EXPECT_TRUE(memcmp(one.nonce, two.nonce, ID_BYTES) != 0);
	EXPECT_RC(identity_read(disk, &read, &why), RC_OK);
	EXPECT_UINT(read.boot, 2);
	EXPECT_MEM(read.nonce, two.nonce, ID_BYTES);
	end();
}

TEST(cluster_id_and_hash_key_are_drawn_when_not_given)
{
	static const uint8_t zero[ID_BYTES];
	struct identity id = sample();

	begin(3);
	memset(id.cluster_id, 0, ID_BYTES);
	memset(id.hash_key, 0, ID_BYTES);
	EXPECT_RC(identity_format(disk, env, &id, &why), RC_OK);
	EXPECT_TRUE(memcmp(id.cluster_id, zero, ID_BYTES) != 0);
	EXPECT_TRUE(memcmp(id.hash_key, zero, ID_BYTES) != 0);
	EXPECT_TRUE(memcmp(id.hash_key, id.cluster_id, ID_BYTES) != 0);
	end();
}

TEST(formatted_directory_is_not_formatted_again)
{
	struct identity id;
	struct identity again = sample();

	begin(4);
	format(&id);
	EXPECT_RC(identity_format(disk, env, &again, &why), RC_EXISTS);
	EXPECT_HAS(why.text, "already");
	EXPECT_RC(identity_open(disk, env, &again, &why), RC_OK);
	expect_same(&again, &id);
	end();
}

TEST(copied_directory_is_refused)
{
	struct identity id;
	int hidden;

	for (hidden = 0; hidden < 2; hidden++) {
		begin(5);
		world_birth_hidden(w, 0, hidden == 1);
		world_birth_hidden(w, 1, hidden == 1);
		format(&id);
		world_copy(w, 0, 1);
		EXPECT_RC(identity_open(world_disk(w, 1), world_env(w, 1), &id,
					&why),
			  RC_FOREIGN);
		EXPECT_HAS(why.text, "copy");
		/* Tools may look at it. */
		EXPECT_RC(identity_read(world_disk(w, 1), &id, &why), RC_OK);
		EXPECT_UINT(id.boot, 0);
		EXPECT_RC(identity_open(disk, env, &id, NULL), RC_OK);
		EXPECT_UINT(id.boot, 1);
		end();
	}
}

TEST(a_directory_that_was_moved_on_purpose)
{
	struct identity made;
	struct identity id;

	begin(15);
	format(&made);
	EXPECT_RC(identity_open(disk, env, &made, &why), RC_OK);
	world_copy(w, 0, 1);
	EXPECT_RC(identity_adopt(world_disk(w, 1), &id, &why), RC_OK);
	EXPECT_UINT(id.boot, 1);
	EXPECT_MEM(id.incarnation, made.incarnation, ID_BYTES);
	EXPECT_MEM(id.nonce, made.nonce, ID_BYTES);
	EXPECT_RC(identity_open(world_disk(w, 1), world_env(w, 1), &id, &why),
		  RC_OK);
	EXPECT_UINT(id.boot, 2);
	/* It is told once: a copy of it is a copy. */
	world_copy(w, 1, 0);
	EXPECT_RC(identity_open(disk, env, &id, &why), RC_FOREIGN);
	end();
}

TEST(what_cannot_be_adopted)
{
	struct identity id;

	begin(16);
	EXPECT_RC(identity_adopt(disk, &id, &why), RC_NOT_FOUND);
	format(&id);
	EXPECT_RC(world_flip(w, 0, "identity", 100, 1), RC_OK);
	EXPECT_RC(world_flip(w, 0, "identity", PAIR_BLOCK + 100, 1), RC_OK);
	EXPECT_RC(identity_adopt(disk, &id, &why), RC_CORRUPT);
	end();
}

TEST(birth_time_that_is_no_longer_told_is_no_copy)
{
	struct identity id;

	begin(6);
	format(&id);
	world_birth_hidden(w, 0, true);
	EXPECT_RC(identity_open(disk, env, &id, &why), RC_OK);
	end();
}

TEST(every_flipped_bit_changes_nothing_or_is_found)
{
	struct identity made;
	struct identity got;
	uint64_t byte;

	begin(7);
	format(&made);
	EXPECT_RC(identity_open(disk, env, &made, &why), RC_OK);
	for (byte = 0; byte < 2 * PAIR_BLOCK; byte++) {
		runner_context("byte %llu", (unsigned long long)byte);
		EXPECT_RC(world_flip(w, 0, "identity", byte, byte % 8), RC_OK);
		EXPECT_RC(identity_read(disk, &got, &why), RC_OK);
		expect_same(&got, &made);
		EXPECT_UINT(got.boot, 1);
		EXPECT_RC(world_flip(w, 0, "identity", byte, byte % 8), RC_OK);
	}
	end();
}

TEST(both_copies_bad_is_corrupt)
{
	struct identity id;

	begin(8);
	format(&id);
	EXPECT_RC(world_flip(w, 0, "identity", 100, 1), RC_OK);
	EXPECT_RC(world_flip(w, 0, "identity", PAIR_BLOCK + 100, 1), RC_OK);
	EXPECT_RC(identity_open(disk, env, &id, &why), RC_CORRUPT);
	EXPECT_HAS(why.text, "damaged");
	end();
}

/* Patches both copies, and seals them. */
static void patch(unsigned at, uint8_t byte)
{
	struct disk_file *f;
	uint8_t *p;
	size_t n;

	p = world_file(w, 0, "identity", false, &n);
	p[at] = byte;
	p[PAIR_BLOCK + at] = byte;
	pair_seal(p);
	pair_seal(p + PAIR_BLOCK);
	EXPECT_RC(disk_open(disk, "identity", 0, &f, NULL), RC_OK);
	EXPECT_RC(disk_write(f, p, n, 0), RC_OK);
	disk_close(f);
	free(p);
}

TEST(newer_version_is_refused)
{
	struct identity id;

	begin(9);
	format(&id);
	patch(8, 2);
	EXPECT_RC(identity_open(disk, env, &id, &why), RC_VERSION);
	EXPECT_HAS(why.text, "newer version");
	end();
}

TEST(values_out_of_bounds_are_corrupt)
{
	struct identity id;
	int i;

	for (i = 0; i < 4; i++) {
		begin(10);
		format(&id);
		if (i == 0)
			patch(12, 0); /* No shards. */
		else if (i == 1)
			patch(12, SHARDS_MAX + 1);
		else if (i == 2)
			patch(88, 0); /* No node id. */
		else
			patch(183, 'x'); /* A name without end. */
		EXPECT_RC(identity_open(disk, env, &id, &why), RC_CORRUPT);
		end();
	}
}

/* At every operation of a format: no data directory, or a whole one. */
TEST(crash_in_a_format)
{
	struct world_fault f = { .kind = WORLD_CRASH_AFTER,
				 .op = WORLD_CHANGE };
	struct identity id;
	struct identity got;
	unsigned whole = 0;
	uint64_t seed;
	enum rc rc;

	for (seed = 0; seed < 200; seed++) {
		runner_context("seed %llu", (unsigned long long)seed);
		begin(seed);
		f.nth = seed % 9 + 1;
		world_fault(w, 0, &f);
		id = sample();
		rc = identity_format(disk, env, &id, &why);
		world_power_cut(w, 0);
		world_faults_clear(w, 0);
		if (rc == RC_OK)
			EXPECT_RC(identity_open(disk, env, &got, &why), RC_OK);
		rc = identity_open(disk, env, &got, NULL);
		if (rc == RC_NOT_FOUND) {
			id = sample();
			EXPECT_RC(identity_format(disk, env, &id, &why), RC_OK);
			rc = identity_open(disk, env, &got, &why);
		} else {
			whole++;
		}
		EXPECT_RC(rc, RC_OK);
		expect_same(&got, &id);
		end();
	}
	EXPECT_TRUE(whole > 20);
}

/* A boot that began is counted once and for all before it is told. */
TEST(crash_in_a_boot)
{
	struct world_fault f = { .kind = WORLD_CRASH_AFTER,
				 .op = WORLD_CHANGE };
	struct identity made;
	struct identity one;
	struct identity two;
	uint64_t seed;
	enum rc rc;

	for (seed = 0; seed < 100; seed++) {
		runner_context("seed %llu", (unsigned long long)seed);
		begin(seed);
		format(&made);
		f.nth = seed % 5 + 1;
		world_fault(w, 0, &f);
		rc = identity_open(disk, env, &one, NULL);
		world_power_cut(w, 0);
		world_faults_clear(w, 0);
		EXPECT_RC(identity_open(disk, env, &two, &why), RC_OK);
		EXPECT_TRUE(two.boot == 1 || two.boot == 2);
		if (rc == RC_OK)
			EXPECT_UINT(two.boot, 2);
		expect_same(&two, &made);
		end();
	}
}

TEST(failed_write_or_sync_is_told)
{
	struct identity id;
	uint64_t nth;

	for (nth = 1; nth <= 4; nth++) {
		struct world_fault f = { .kind = WORLD_EIO,
					 .op = WORLD_CHANGE,
					 .nth = nth };

		begin(11);
		format(&id);
		world_fault(w, 0, &f);
		EXPECT_RC(identity_open(disk, env, &id, &why), RC_IO);
		world_kill(w, 0);
		EXPECT_RC(identity_open(disk, env, &id, NULL), RC_OK);
		end();
	}
}
