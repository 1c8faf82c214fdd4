/*
 * Cases of tests/README.md about what is on disk when it is told: power cuts of
 * one and of all, followers that know of a commit before they have it. Three
 * shards on real logs in the seeded world (replica_rig.h); each test is one
 * schedule and bears the id of its case.
 */
#include "tests/lib/replica_rig.h"

static struct cluster c;

static void begin(uint64_t seed)
{
	unsigned i;

	cluster_init(&c, 3, seed);
	/* What is not synced when it is told will be gone. */
	for (i = 0; i < 3; i++)
		world_sync_time(c.w, i, 4000, 8000, 0, 0);
	cluster_boot_all(&c);
}

/* Until the leader tells more than `index` as committed. */
static void until_committed(uint64_t index)
{
	unsigned i;

	for (i = 0; i < 100000 && c.committed <= index; i++)
		(void)cluster_step(&c);
	EXPECT_TRUE(c.committed > index);
}

/* The power fails everywhere in the moment in which a client would be told. */
TEST(du1_a_power_cut_of_all_at_the_acknowledgement)
{
	unsigned round;
	unsigned i;

	begin(1);
	for (round = 0; round < 20; round++) {
		runner_context("round %u", round);
		(void)cluster_elect(&c);
		cluster_write(&c, 2);
		cluster_propose(&c, 1 + round % 5);
		until_committed(c.committed);
		for (i = 0; i < 3; i++)
			cluster_cut_power(&c, (round + i) % 3);
		cluster_boot_all(&c);
		(void)cluster_elect(&c);
		cluster_settle(&c);
		EXPECT_STR(c.wrong, "");
	}
	cluster_free(&c);
}

/*
 * A leader and one follower have an entry, the third nothing. The follower's
 * power fails when the entry is told, the leader is gone: follower and third
 * make the next majority.
 */
TEST(du2_a_power_cut_of_one_that_the_next_majority_needs)
{
	unsigned l;
	unsigned f;
	unsigned third;
	unsigned round;
	unsigned i;

	begin(2);
	for (round = 0; round < 12; round++) {
		runner_context("round %u", round);
		l = (unsigned)cluster_elect(&c);
		f = (l + 1 + round % 2) % 3;
		third = 3 - l - f;
		cluster_write(&c, 2);
		cluster_settle(&c);
		cluster_cut(&c, third, l);
		cluster_cut(&c, third, f);
		cluster_propose(&c, 1 + round % 3);
		until_committed(c.committed);
		cluster_cut_power(&c, f);
		cluster_kill(&c, l);
		memset(c.held_links, 0, sizeof(c.held_links));
		cluster_boot(&c, f);
		(void)cluster_elect(&c);
		cluster_write(&c, 2);
		EXPECT_STR(c.wrong, "");
		cluster_boot(&c, l);
		for (i = 0; i < 3; i++)
			EXPECT_TRUE(c.node[i].up);
		cluster_settle(&c);
	}
	cluster_free(&c);
}

/*
 * A follower with a slow disk hears that entries are committed before it has
 * them. It applies none of those, whenever it is looked at, and after a crash
 * its state is not ahead of its log.
 */
TEST(du6_nothing_is_applied_beyond_the_own_log)
{
	const struct world_latency slow = { 40000, 60000, 10, 20 };
	struct shard *s;
	unsigned ahead = 0;
	unsigned round;
	unsigned f;
	unsigned i;

	begin(6);
	for (round = 0; round < 5; round++) {
		runner_context("round %u", round);
		f = ((unsigned)cluster_elect(&c) + 1) % 3;
		cluster_write(&c, 2);
		cluster_settle(&c);
		world_latency(c.w, f, ENV_WORKER_LOG, &slow);
		s = c.node[f].shard;
		cluster_propose(&c, 10);
		for (i = 0; i < 3000; i++) {
			(void)cluster_step(&c);
			if (i % 50 == 0)
				cluster_propose(&c, 1);
			ahead += shard_commit_index(s) > shard_durable_index(s);
			EXPECT_TRUE(c.node[f].now.index <=
				    shard_durable_index(s));
			if (i % 100 == 0)
				cr_save(&c.node[f]);
		}
		cluster_cut_power(&c, f);
		cluster_boot(&c, f);
		EXPECT_TRUE(c.node[f].now.index <=
			    shard_last_index(c.node[f].shard));
		cluster_settle(&c);
	}
	EXPECT_TRUE(ahead > 100);
	cluster_free(&c);
}
